"""Journal of a data set: every answer, result, charge and finished conversation, appended and never changed.

    {"reserve": N, "cost": C}                                a request may cost C, and is about to be sent
    {"charge": N, "cost": C}                                 what it did cost, without an answer that can be used
    {"answer": KEY, "charge": N, "cost": C, "value": {...}}  the same with its answer
    {"result": KEY, "value": "..."}                          a tool's result that a function gave
    {"done": KEY, "value": {...}}                            a conversation, kept or dropped

A start reads it once and remembers where each value stands, not the value, so that memory does not grow with what was
said. A line that a kill cut off is left out; a reservation without a charge counts as spent. Costs are whole numbers
of 1e-12 of the currency.

A kill loses no line. `sync` forces them to disk: a power cut loses those since the last one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kd.atomic_files import flush
from kd.hashing import hash_text
from kd.toolcalls.json_values import encode_json

FOLDER = ".generation"  # in the data set's
_KINDS = ("answer", "result", "done")


def name_value(*parts: Any) -> str:
    """Name a value by its content: equal JSON values have equal names."""
    return hash_text(json.dumps(parts, sort_keys=True))


class Journal:
    """Journal in the folder `out`; what earlier starts left is read at once.

    Attributes:
        path: of the file.
        spent: by all starts, unsettled reservations at their bounds.
        num_lost: requests of earlier starts whose answers a kill has lost.

    Raises:
        OSError: it cannot be read or written.
    """

    def __init__(self, out: Path):
        self.path = out / FOLDER / "journal.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
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
            self._enter(line, at)
            at += len(line)
        if not whole:  # an earlier start was killed within a line
            self._file.write(b"\n")
            self._file.flush()

    def _enter(self, line: bytes, at: int) -> None:
        try:
            found = json.loads(line)
            if "reserve" in found:
                self._open[found["reserve"]] = found["cost"]
                self._next = max(self._next, found["reserve"] + 1)
                return
            if "charge" in found:
                cost = int(found["cost"])
                self._open.pop(found["charge"], None)
                self.spent += cost
            for kind in _KINDS:
                if kind in found and "value" in found:
                    self._places[kind][bytes.fromhex(found[kind])] = at
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # empty, or cut by a kill

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
        at = self._file.seek(0, os.SEEK_END)
        self._file.write(encode_json(line) + b"\n")
        self._file.flush()
        self._is_synced = False
        return at

    def sync(self) -> None:
        """Force to disk what was written since the last time; another thread may write meanwhile."""
        if not self._is_synced:
            self._is_synced = True  # before: what is written during it is for the next one
            os.fsync(self._file.fileno())

    def find(self, kind: str, key: str) -> Any | None:
        """Find a value of that kind; None where there is none."""
        at = self._places[kind].get(bytes.fromhex(key))
        if at is None:
            return None
        self._file.seek(at)
        return json.loads(self._file.readline())["value"]

    def count(self, kind: str) -> int:
        """Count the values of a kind."""
        return len(self._places[kind])

    def close(self) -> None:
        """Force it to disk, and close it."""
        self.sync()
        self._file.close()
