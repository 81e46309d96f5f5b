"""Worker processes: they know what this process knows."""

from __future__ import annotations

import os
from itertools import islice

from kd.batching.workers import in_order
from kd.config.registries import FORMATS, import_extension
from kd.records.files import DataFiles
from kd.sources.file_index import RecordIndex


def test_a_worker_imports_the_users_modules(tmp_path, monkeypatch):
    """A format of their own is read there too."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_worker_format.py").write_text(
        "from kd.config.registries import FORMATS\n"
        "from kd.records.formats.format import Format\n"
        "def convert(data, where):\n"
        "    said = zip(('user', 'assistant'), (data['q'], data['a']))\n"
        "    return {'messages': [{'role': role, 'content': text} for role, text in said]}\n"
        "FORMATS.register('mine', Format(detect=lambda data: 'q' in data, convert=convert))\n"
    )
    (tmp_path / "a.jsonl").write_text('{"q": "hello", "a": "hi"}\n')
    assert import_extension("my_worker_format") is None
    try:
        index = RecordIndex([DataFiles(str(tmp_path / "a.jsonl"))])
        (made,) = islice(in_order(index.__getitem__, [0], 1), 1)
        assert made == index[0] and made.messages[1]["content"] == "hi"
    finally:
        FORMATS.unregister("mine")
