"""Calls that a text was read to make."""

from __future__ import annotations

from typing import NamedTuple


class ParsedCalls(NamedTuple):
    """Calls of one text. A block that does not parse as written is in `problems`, never in `calls`."""

    calls: list[dict]  # {"name": str, "arguments": dict} of each block that is valid as written, in order
    problems: list[str]  # one for each block that is not
    spans: list[tuple[int, int]]  # character span of every block, tags included; one a call
    text_outside: str  # the text less its blocks, stripped
    repaired_calls: list[dict]  # as `calls`, with the blocks that could be mended, in order

    @property
    def valid(self) -> bool:
        """At least one block, and every block valid as written."""
        return bool(self.spans) and not self.problems

    @property
    def valid_after_repair(self) -> bool:
        """At least one block, and every block valid as written or mended."""
        return bool(self.spans) and len(self.repaired_calls) == len(self.spans)
