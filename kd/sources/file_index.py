"""Records of many files by position, for a loader that draws them in an order of its own.

    index = RecordIndex([DataFiles("train/*.jsonl"), DataFiles("bfcl/*.json.gz", weight=2)], Quarantine("bad.jsonl",
    0.01)) index[7]

Every line is checked once, when the index is made. A record that is a line of a plain file is read again from there,
and refused by name if its bytes are no longer those that were checked; what is compressed, Parquet, an array or joined
from two files is written once, as a chat record, into a file that goes with the index. In memory there are 24 bytes a
record. An index is pickled to other processes, which read the same files; the one that made it removes its file in the
end.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import tempfile
import weakref
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kd.atomic_files import naming
from kd.config.sections.data import RewriteCalls
from kd.records.checks import DataError
from kd.records.files import DataFiles, expand, holds_truth, num_copies, read_each
from kd.records.lines import is_plain_lines
from kd.records.quarantine import Quarantine
from kd.records.record import Record, parse_checked_line


class _Making(NamedTuple):
    """Tools that an index is made with, and of no use afterwards."""

    quarantine: Quarantine
    spool: BinaryIO
    digest: Any  # hashlib's


class _File(NamedTuple):
    """File that records are read from again: one of the run's, or the spool."""

    path: str
    format: str | None
    rewrite_calls: RewriteCalls
    origin: str  # the run's file that its records come from


class RecordIndex:
    """A sequence of records; `size_hint(i)` is the length of record i in bytes of JSON.

    Args:
        sources: read in order; a weight repeats records (kd.records.files.num_copies).
        quarantine: where refused lines go; by default the first one stops. Several indices may share one: who made it
            calls its `check` in the end.
        spool: the file for what is written once; by default a temporary one of this machine.

    Raises:
        DataError: a file is missing, no record is found, or more is refused than the quarantine allows.
    """

    def __init__(
        self, sources: Iterable[DataFiles], quarantine: Quarantine | None = None, *, spool: Path | None = None
    ):
        self._files: list[_File] = []
        self._at, self._sizes, self._of, self._lines = array("q"), array("i"), array("i"), array("i")
        self.notes: dict[str, Counter[str]] = {}  # by file: number of records of each of kd.records.conversation.NOTES
        self._checksums = array("I")  # CRC-32 of the bytes that were checked
        self.spool = str(spool) if spool is not None else _make_temporary()
        weakref.finalize(self, _remove, self.spool, _lock(self.spool))
        with naming(self.spool), open(self.spool, "wb") as out:
            making = _Making(quarantine or Quarantine(), out, hashlib.sha256())
            sources = list(sources)
            for source in sources:
                files = expand([source.pattern])
                truths = [file for file in files if holds_truth(file)] if source.format in (None, "bfcl") else []
                for file in files:
                    if file not in truths:
                        self._add(file, source, truths, making)
        self._fingerprint = making.digest.hexdigest()
        if not len(self):
            named = ", ".join(source.pattern for source in sources)
            raise DataError(f"{named}: no record in any of the data files: give another, or mend data.* in the config")

    def _add(self, file: Path, source: DataFiles, truths: list[Path], making: _Making) -> None:
        plain, notes = is_plain_lines(file), Counter()
        for item in read_each(file, source.format, truths, rewrite_calls=source.rewrite_calls):
            if item.record is None:
                making.quarantine.refuse(item)
                continue
            making.quarantine.accept()
            notes.update(item.notes)
            rewrite = source.rewrite_calls
            if plain and item.offset is not None:
                at, raw, path, format = item.offset, item.raw, str(file), source.format
            else:
                raw = json.dumps(asdict(item.record), ensure_ascii=False).encode() + b"\n"
                at, path, format = making.spool.tell(), self.spool, "chat"
                rewrite = "never" if rewrite == "never" else False
                making.spool.write(raw)
            held = _File(path, format, rewrite, str(file))
            if not self._files or self._files[-1] != held:
                self._files.append(held)
            copies = num_copies(source.weight, item)
            rule = f"{format} rewrite_calls" if rewrite is True else f"{format} {rewrite}" if rewrite else format
            making.digest.update(f"{copies} {rule} {len(raw.strip())}\n".encode() + raw.strip())
            checksum = zlib.crc32(raw)
            for _ in range(copies):
                self._at.append(at)
                self._sizes.append(len(raw))
                self._of.append(len(self._files) - 1)
                self._lines.append(item.line)
                self._checksums.append(checksum)
        self.notes[str(file)] = notes

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index: int) -> Record:
        """Read a record again.

        Raises:
            DataError: its bytes are not those that were checked; names the file and line.
        """
        path, format, rewrite, _ = self._files[self._of[index]]
        where = f"{path}:{self._lines[index]}"
        try:
            with open(path, "rb") as file:
                file.seek(self._at[index])
                raw = file.read(self._sizes[index])
        except OSError as error:
            raise DataError(f"{where}: cannot be read again: {error.strerror}; put the file back") from None
        if zlib.crc32(raw) != self._checksums[index]:
            raise DataError(
                f"{where}: the file is not what it was when its records were checked: put it back, or start again with "
                "the new one"
            )
        return parse_checked_line(raw, where, format, rewrite_calls=rewrite)

    def size_hint(self, index: int) -> int:
        """Return the record's length in bytes of JSON."""
        return self._sizes[index]

    def place(self, index: int) -> str:
        """Return "file:line" of a record, in the file that the run names."""
        return f"{self._files[self._of[index]].origin}:{self._lines[index]}"

    def fingerprint(self) -> str:
        """Return the SHA-256 over every record in order: its bytes, their format, and how often it is read.

        Two indices with the same one give the same records, wherever their files are.
        """
        return self._fingerprint


def _make_temporary() -> str:
    handle, path = tempfile.mkstemp(prefix="records-", suffix=".jsonl")
    os.close(handle)
    return path


def make_spool(folder: Path) -> Path:
    """Make an index's file in `folder`, and remove there those that killed programs left, with what lies beside them.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".records-*.jsonl"):
        with contextlib.suppress(OSError), left.open("rb") as file:  # only tidying
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # that of a living program is locked
            for path in [*folder.glob(f"{glob.escape(left.name)}*"), *folder.glob(f".{glob.escape(left.name)}*.part")]:
                path.unlink(missing_ok=True)
    handle, path = tempfile.mkstemp(prefix=".records-", suffix=".jsonl", dir=folder)
    os.close(handle)
    return Path(path)


def _lock(path: str) -> int:
    """Open and lock a file for as long as this process, or a fork of it, has it open."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):  # some network disks have no locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _remove(path: str, handle: int) -> None:
    os.close(handle)
    Path(path).unlink(missing_ok=True)
