"""Records by position: what was checked once is read again only while its bytes are the same."""

from __future__ import annotations

import gzip
import json
import pickle

import pytest

from kd.records.checks import DataError
from kd.records.files import DataFiles
from kd.sources.file_index import RecordIndex


def line(name: str) -> bytes:
    messages = [{"role": "user", "content": name}, {"role": "assistant", "content": "ok"}]
    return json.dumps({"id": name, "messages": messages}).encode() + b"\n"


def test_a_file_that_changes_after_indexing_is_refused_by_name(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line("a0") + line("a1") + line("a2"))
    index = RecordIndex([DataFiles(str(path))])
    path.write_bytes(line("a0") + line("b1") + line("a2"))  # as long as before
    assert [index[0].id, index[2].id] == ["a0", "a2"]
    for same in (index, pickle.loads(pickle.dumps(index))):
        with pytest.raises(DataError, match=r"a\.jsonl:2: the file is not what it was when its records were checked"):
            same[1]
    path.write_bytes(line("a0")[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl:1: the file is not what it was"):
        index[0]
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl:1: cannot be read again: No such file"):
        index[0]


def test_a_file_that_was_written_once_is_guarded_too(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line("a0") + line("a1")))
    index = RecordIndex([DataFiles(str(tmp_path / "a.jsonl.gz"))], spool=tmp_path / "records-0.jsonl")
    (tmp_path / "a.jsonl.gz").unlink()
    assert index[1].id == "a1"
    spool = tmp_path / "records-0.jsonl"
    spool.write_bytes(spool.read_bytes().replace(b"ok", b"no"))
    with pytest.raises(DataError, match=r"records-0\.jsonl:2: the file is not what it was"):
        index[1]
