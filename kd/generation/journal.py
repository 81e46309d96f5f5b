"""Journal of a data set: every answer, result, charge and finished conversation, appended and never changed.

    {"reserve": N, "cost": C}                                a request may cost C, and is about to be sent
    {"charge": N, "cost": C}                                 what it did cost, without an answer that can be used
    {"answer": KEY, "charge": N, "cost": C, "value": {...}}  the same with its answer
    {"result": KEY, "value": "..."}                          a tool's result that a function gave
    {"done": KEY, "value": {...}}                            a conversation, kept or dropped

A start reads it once and remembers where each value stands, not the value, so that memory does not grow with what was
said. Each line ends in the CRC-32 of what stands before, `"crc": "01234567"`; one that a kill cut off, or that was
changed, is left out, and a line without (of an earlier version) is taken. A reservation without a charge counts as
spent. Costs are whole numbers of 1e-12 of the currency.

A kill loses no line. `sync` forces them to disk: a power cut loses those since the last one.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from kd.atomic_files import flush, naming
from kd.hashing import hash_text
from kd.outputs import OutputError
from kd.toolcalls.json_values import encode_json

FOLDER = ".generation"  # in the data set's
_KINDS = ("answer", "result", "done")
_SUM = b', "crc": "%08x"}'
_SUM_BYTES = len(_SUM % 0)


def name_value(*parts: Any) -> str:
    """Name a value by its content: equal JSON values have equal names."""
    return hash_text(json.dumps(parts, sort_keys=True))


class Journal:
    """Journal in the folder `out`; what earlier starts left is read at once.

    Attributes:
        path: of the file.
        spent: by all starts, unsettled reservations at their bounds.
        num_lost: requests of earlier starts whose answers a kill has lost.
        num_damaged: lines that are left out, as they are not as they were written.

    Raises:
        OutputError: something else stands in its place.
        OSError: it cannot be read or written.
    """

    def __init__(self, out: Path):
        self.path = out / FOLDER / "journal.jsonl"
        for place, is_kind in ((self.path.parent, Path.is_dir), (self.path, Path.is_file)):
            if os.path.lexists(place) and not is_kind(place):  # a pipe would be waited for
                raise OutputError(f"output_dir: {place} is no journal: move it away, or name another folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.num_damaged = 0
        self._places: dict[str, dict[bytes, int]] = {kind: {} for kind in _KINDS}
        self._open: dict[int, int] = {}
        self._next = self.spent = 0
        self._is_synced = True
        self._file = self.path.open("a+b")
        flush(self.path.parent)  # its name
        self._read()
        self.num_lost = len(self._open)
        self.spent += sum(self._open.values())
        self._open.clear()

    def _read(self) -> None:
        self._file.seek(0)
        at, whole = 0, True
        for line in self._file:
            whole = line.endswith(b"\n")
            self.num_damaged += not self._enter(line, at) and bool(line.strip())
            at += len(line)
        if not whole:  # an earlier start was killed within a line
            with naming(self.path):
                self._file.write(b"\n")
                self._file.flush()

    def _enter(self, line: bytes, at: int) -> bool:
        """Enter a line; tells whether it is as it was written."""
        body, told = line.rstrip(b"\n")[:-_SUM_BYTES] + b"}", line.rstrip(b"\n")[-_SUM_BYTES:]
        if told[:9] == _SUM[:9] and told != _SUM % zlib.crc32(body):
            return False
        try:
            found = json.loads(line)
            if "reserve" in found:
                number, cost = _read_count(found["reserve"]), _read_count(found["cost"])
                self._open[number] = cost
                self._next = max(self._next, number + 1)
                return True
            if "charge" in found:
                number, cost = _read_count(found["charge"]), _read_count(found["cost"])
                self._open.pop(number, None)
                self.spent += cost
            for kind in _KINDS:
                if kind in found and "value" in found:
                    self._places[kind][bytes.fromhex(found[kind])] = at
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False  # cut by a kill, or of another hand
        return True

    def reserve(self, cost: int) -> int:
        """Write that a request of at most `cost` will be sent; returns its number."""
        number, self._next = self._next, self._next + 1
        self._append({"reserve": number, "cost": cost})
        return number

    def charge(self, number: int, cost: int) -> None:
        """Write what a request did cost, which gave no answer that can be used."""
        self.spent += cost
        self._append({"charge": number, "cost": cost})

    def keep_answer(self, key: str, number: int, cost: int, value: dict[str, Any]) -> None:
        """Write an answer and what it did cost."""
        self.spent += cost
        self._keep("answer", key, {"charge": number, "cost": cost, "value": value})

    def keep(self, kind: str, key: str, value: Any) -> None:
        """Write a result or a finished conversation."""
        self._keep(kind, key, {"value": value})

    def _keep(self, kind: str, key: str, rest: dict[str, Any]) -> None:
        at = self._append({kind: key, **rest})
        self._places[kind][bytes.fromhex(key)] = at

    def _append(self, line: dict[str, Any]) -> int:
        body = encode_json(line)
        with naming(self.path):
            at = self._file.seek(0, os.SEEK_END)
            self._file.write(body[:-1] + _SUM % zlib.crc32(body) + b"\n")
            self._file.flush()
        self._is_synced = False
        return at

    def sync(self) -> None:
        """Force to disk what was written since the last time; another thread may write meanwhile."""
        if not self._is_synced:
            self._is_synced = True  # before: what is written during it is for the next one
            with naming(self.path):
                os.fsync(self._file.fileno())

    def find(self, kind: str, key: str) -> Any | None:
        """Find a value of that kind; None where there is none."""
        at = self._places[kind].get(bytes.fromhex(key))
        if at is None:
            return None
        with naming(self.path):  # what could not be written before is tried again
            self._file.seek(at)
            return json.loads(self._file.readline())["value"]

    def count(self, kind: str) -> int:
        """Count the values of a kind."""
        return len(self._places[kind])

    def close(self) -> None:
        """Force it to disk, and close it."""
        self.sync()
        with naming(self.path):
            self._file.close()


def _read_count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no count")
    return value
