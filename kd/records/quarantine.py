"""Quarantine: counts of what is read and refused, and a file of what is refused, with the reason."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kd.atomic_files import naming
from kd.outputs import Output, check_outputs, read_object
from kd.records.checks import DataError
from kd.records.record import Record

RAW_BYTES = 2000  # of a refused line that are kept to look at
_MIN_SEEN = 100  # a fraction of fewer lines says little


class Item(NamedTuple):
    """One line: its record, or the error that refuses it (whose message begins with file:line)."""

    file: str
    line: int
    record: Record | None
    error: DataError | None
    raw: bytes
    id: str | None  # as the line gives it; None where it cannot be read
    offset: int | None = None  # where `raw` begins, if these bytes alone give the record again
    notes: tuple[str, ...] = ()  # names of kd.records.conversation.NOTES that hold of the record

    @property
    def reason(self) -> str:
        return "" if self.error is None else str(self.error)


class Quarantine:
    """Counts of lines, and a file of the refused ones: {"file", "line", "reason", "raw"} a line, of `raw` the first
    RAW_BYTES.

    Args:
        path: where refused lines are written; None keeps none. The file is made at the first of them; an older one is
            renamed as `earlier` says.
        max_bad_fraction: of the lines seen, from 0 (none may be bad) to 1.

    Raises:
        DataError: max_bad_fraction is no fraction.
        OutputError: path is a folder, another's file, or lies in a folder that cannot be written.
    """

    def __init__(self, path: str | Path | None = None, max_bad_fraction: float = 0.0):
        if not 0 <= max_bad_fraction <= 1:
            raise DataError(f"max_bad_fraction: {max_bad_fraction}: a fraction from 0 to 1 is needed")
        self.num_good = self.num_bad = 0
        self._path, self._fraction, self._last = Path(path) if path is not None else None, max_bad_fraction, ""
        if self._path is not None:
            older = earlier(self._path)
            check_outputs(
                [
                    Output("data.quarantine", path, "a file of refused records", is_quarantine)
                    for path in (self._path, older)
                ]
            )
            if self._path.is_file():  # /dev/null is none
                if older.exists():  # and this one is of a program that ended before its work began
                    self._path.unlink()
                else:
                    os.rename(self._path, older)

    def accept(self) -> None:
        """Count a good line."""
        self.num_good += 1

    def refuse(self, item: Item) -> None:
        """Count a refused line, and keep it.

        Raises:
            DataError: it is one too many, whatever may follow a hundred lines.
        """
        self.num_bad += 1
        self._last = item.reason
        if self._path is not None:
            keep_refused(
                self._path,
                [
                    {
                        "file": item.file,
                        "line": item.line,
                        "reason": item.reason,
                        "raw": item.raw[:RAW_BYTES].decode("utf-8", "backslashreplace"),
                    }
                ],
            )
        if self.num_bad > self._fraction * max(self.num_good + self.num_bad, _MIN_SEEN):
            self._stop()

    def check(self) -> None:
        """Check the fraction once all is read.

        Raises:
            DataError: too many lines are refused.
        """
        if self.num_bad > self._fraction * (self.num_good + self.num_bad):
            self._stop()

    def _stop(self) -> None:
        kept = f"; they are in {self._path}" if self._path is not None else ""
        raise DataError(
            f"{self._last} ({self.num_bad} of {self.num_good + self.num_bad} lines are refused, more than "
            f"max_bad_fraction {self._fraction:g} allows{kept}): mend them, or raise max_bad_fraction"
        )


def earlier(path: Path) -> Path:
    """Return the name that a quarantine file has from the start of another program until that one's work begins."""
    return path.with_name(f"{path.name}.earlier")


def keep_refused(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Append what is refused to a quarantine file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def is_quarantine(path: Path) -> bool:
    """Tell whether a file begins with a line that `keep_refused` wrote."""
    line = read_object(path)
    return "reason" in line and ("stage" in line or {"file", "line", "raw"} <= line.keys())
