"""Source: records by position, for a loader that draws them in an order of its own."""

from __future__ import annotations

from typing import Protocol

from kd.records.record import Record


class Source(Protocol):
    """Records by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    def size_hint(self, index: int) -> int:
        """Return any cheap measure of a record's length; it only decides what is batched with what."""
        ...

    def place(self, index: int) -> str:
        """Return where a record comes from, for messages: "file:line"."""
        ...

    def fingerprint(self) -> str:
        """Return text that is the same for sources that give the same records, and for no others."""
        ...

    @property
    def spool(self) -> str | None:
        """The source's own file, on a disk that every rank reads; files that go with it are put beside it."""
        ...
