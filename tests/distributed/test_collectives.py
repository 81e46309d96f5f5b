"""An error of one rank is every rank's, so that none waits for ever."""

from __future__ import annotations

from helpers.jobs import Job

SCRIPT = """
import torch.distributed as dist
from kd.distributed.collectives import on_every_rank
from kd.errors import SpanwiseError

dist.init_process_group("gloo")
assert on_every_rank(dist.get_rank) == dist.get_rank()
try:
    on_every_rank(lambda: 1 / dist.get_rank() if dist.get_rank() < 1 else 2)
except SpanwiseError as error:
    print(error)
dist.destroy_process_group()
"""


def test_an_error_of_one_rank_is_raised_on_all():
    outputs = Job(["-c", SCRIPT], world_size=2).wait(timeout=120)
    assert [output.strip().splitlines()[-1] for output in outputs] == [
        "rank 0: ZeroDivisionError: division by zero"
    ] * 2
