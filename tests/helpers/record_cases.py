"""A good record as a line, and the readers of a test's files."""

from __future__ import annotations

import json

from kd.records.files import read_each
from kd.sources.file_index import RecordIndex

GOOD = {"id": "g", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
LINE = json.dumps(GOOD).encode()


def ids_of(sources, quarantine=None, **options) -> list[str]:
    index = RecordIndex(sources, quarantine, **options)
    if quarantine is not None:
        quarantine.check()
    return [index[at].id for at in range(len(index))]


def items(path, **options):
    return list(read_each(path, **options))
