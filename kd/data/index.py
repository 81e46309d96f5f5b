"""Records of many files by position, for a loader that draws them in an order of its own.

    index = RecordIndex([DataFiles("train/*.jsonl"), DataFiles("bfcl/*.json.gz", weight=2)], Quarantine("bad.jsonl", 0.01))
    index[7]

Every line is checked once, when the index is made. A record that is a line of a plain file is read again from there; what is
compressed, Parquet, an array or joined from two files is written once, as a chat record, into a temporary file that goes with
the index. In memory there are 20 bytes a record.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from kd.data.checks import DataError
from kd.data.files import DataFiles, Quarantine, expand, holds_truth, num_copies, read_each
from kd.data.lines import is_plain_lines
from kd.data.records import Record, parse_line


class RecordIndex:
    """A sequence of records; `size_hint(i)` is the length of record i in bytes of JSON.

    Args:
        sources: read in order; a weight repeats records, and its fraction is drawn by `seed` (kd.data.files.read_files).
        quarantine: where refused lines go; by default the first one stops.

    Raises:
        DataError: a file is missing, no record is found, or more is refused than the quarantine allows.
    """

    def __init__(self, sources: Iterable[DataFiles], quarantine: Quarantine | None = None, *, seed: int = 0):
        quarantine = quarantine or Quarantine()
        self._files: list[tuple[str, str | None]] = []  # path, form
        self._at, self._sizes, self._of, self._lines = array("q"), array("i"), array("i"), array("i")
        handle, self._spool = tempfile.mkstemp(prefix="records-", suffix=".jsonl")
        weakref.finalize(self, _remove, self._spool)
        with os.fdopen(handle, "wb") as spool:
            for source in sources:
                files = expand([source.pattern])
                truths = [file for file in files if holds_truth(file)] if source.format in (None, "bfcl") else []
                for file in files:
                    if file not in truths:
                        self._add(file, source, truths, quarantine, seed, spool)
        quarantine.close()
        if not len(self):
            raise DataError("no record in any of the data files")

    def _add(self, file: Path, source: DataFiles, truths: list[Path], quarantine: Quarantine, seed: int, spool: BinaryIO) -> None:
        plain = is_plain_lines(file)
        for item in read_each(file, source.format, truths):
            if item.record is None:
                quarantine.refuse(item)
                continue
            quarantine.accept()
            again = plain and item.offset is not None
            if again:
                at, size, path, form = item.offset, len(item.raw), str(file), source.format
            else:
                raw = json.dumps(asdict(item.record), ensure_ascii=False).encode() + b"\n"
                at, size, path, form = spool.tell(), len(raw), self._spool, "chat"
                spool.write(raw)
            if not self._files or self._files[-1] != (path, form):
                self._files.append((path, form))
            for _ in range(num_copies(source.weight, seed, item)):
                self._at.append(at)
                self._sizes.append(size)
                self._of.append(len(self._files) - 1)
                self._lines.append(item.line)

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index: int) -> Record:
        path, form = self._files[self._of[index]]
        with open(path, "rb") as file:
            file.seek(self._at[index])
            return parse_line(file.read(self._sizes[index]), f"{path}:{self._lines[index]}", form)

    def size_hint(self, index: int) -> int:
        return self._sizes[index]


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
