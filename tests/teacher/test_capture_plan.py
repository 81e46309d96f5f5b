"""What capture runs over, before any teacher is asked."""

from __future__ import annotations

import numpy as np
import pytest

from kd.data import demo
from kd.data.records import DataError, Record
from kd.teacher.capture_plan import BatchMaker, arranged

BAD = Record("bad", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "half a pair \ud800"}])


def test_a_record_is_captured_once_for_each_set_of_rows():
    """Columns: tokens, rows, the key's halves, the rows' digest. Record 1 repeats 0; record 2 has its tokens, and other rows."""
    measured = np.array([[9, 3, 1, 1, 5], [9, 3, 1, 1, 5], [9, 2, 1, 1, 6], [4, 2, 7, 7, 5], [0, 0, 0, 0, 0], [-1, 0, 0, 0, 0]])
    places = np.array([(0, i) for i in range(len(measured))])
    plan = arranged(places, measured, 2, 1)
    assert plan.places.tolist() == [[0, 3], [0, 0], [0, 2]] and plan.rows.tolist() == [2, 3, 2]
    assert (plan.num_repeated, plan.num_too_long, plan.num_refused) == (1, 1, 1)
    assert plan.shards == [range(0, 1), range(1, 2)] and plan.keys.tolist() == [[7, 7], [1, 1], [1, 1]]


def test_a_record_that_cannot_be_rendered(tokenizer):
    source = [demo.record("single", 1), BAD]
    maker = BatchMaker((source,), tokenizer, (600,), False, refuse=True)
    good, refused = maker.measured([(0, 0), (0, 1)])
    assert good[0] > good[1] > 0 and refused == [-1, 0, 0, 0, 0]
    with pytest.raises(DataError, match="bad"):
        maker._replace(refuse=False).measured([(0, 1)])
