"""TODO docstring."""

from __future__ import annotations

from typing import Protocol

from kd.records.record import Record


class Source(Protocol):
    """Records by position. `size_hint` is any cheap measure of length; it only decides what is batched with what.
    `fingerprint` is the same for sources that give the same records, and for no others."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def size_hint(self, index: int) -> int: ...
    def fingerprint(self) -> str: ...
