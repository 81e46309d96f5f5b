"""Reading of a generated text, block by block, for every syntax: a frame around calls, and a body that reads one call.

A block that is not right as written ends at the next mark that ends or begins one, or with the text. Every character
is looked at a bounded number of times, so that the time is linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kd.toolcalls.json_scan import skip_space
from kd.toolcalls.json_values import show_json
from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.syntax.frame import Frame
from kd.toolcalls.syntax.strict_json import Mender

_EFFORT_AT_LEAST, _EFFORT_A_CHARACTER = 20_000, 4  # characters that may be read again, by means that are slow
_MAX_ABSENT = 256  # strings that are looked for once each in a text and are not in it

Tools = Sequence[dict[str, Any]]  # declarations as a record has them: {"type": "function", "function": {...}}


class Source:
    """Text that is read, with what is known of it."""

    def __init__(self, text: str, tools: Tools):
        self.text, self.tools = text, tools
        self.mender = Mender()
        self.parameters = {
            tool["function"].get("name"): _properties(tool["function"])
            for tool in tools
            if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
        }
        self._absent: dict[str, int] = {}
        self._effort = _EFFORT_AT_LEAST + _EFFORT_A_CHARACTER * len(text)

    def spend(self, characters: int) -> bool:
        """Take the reading of so many characters from the text's budget, or refuse it where none is left."""
        self._effort -= characters
        return self._effort >= 0

    def find(self, string: str, at: int) -> int:
        """Find a string from `at` on, or -1; the rest of the text is not searched twice for what is not in it."""
        if at >= self._absent.get(string, len(self.text) + 1) or len(self._absent) >= _MAX_ABSENT:
            return -1
        found = self.text.find(string, at)
        if found < 0:
            self._absent[string] = at
        return found


def _properties(function: Mapping) -> Mapping:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


class Unit(NamedTuple):
    """One call as read.

    Attributes:
        call: {"name", "arguments"}, or None where it is not right.
        end: past the call; where its end is not known, the place from which the next mark is looked for.
        problem: what is wrong, or "".
        whole: the end is known.
    """

    call: dict | None
    end: int
    problem: str = ""
    whole: bool = True


class Body(Protocol):
    """Reader of one call, less its frame."""

    @property
    def noun(self) -> str:
        """Return what a call is written as, for messages."""
        ...

    @property
    def head(self) -> str:
        """Return the pattern of a call's beginning, for templates that write nothing before it."""
        ...

    def read(self, source: Source, at: int) -> Unit:
        """Read the call that begins at `at`, space apart, strictly."""
        ...

    def mend(self, source: Source, start: int, end: int) -> dict | None:
        """Read the damaged call in [start, end) as it was meant; None where that is not clear."""
        ...


class _Reading:
    def __init__(self, source: Source, frame: Frame, body: Body):
        self.source, self.frame, self.body = source, frame, body
        self.head = re.compile(body.head)
        self.calls: list[dict] = []
        self.problems: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self.repaired: list[dict] = []

    def block(self, start: int) -> int:
        """Read the block that begins at `start`, and return its end."""
        text, frame = self.source.text, self.frame
        opened = frame.opens.match(text, start)
        if opened is None:
            trigger = frame.trigger.match(text, start)
            body = trigger.end() if trigger else start + 1
            return self._damaged(start, body, Unit(None, body, f"no call after {text[start:body]!r}", whole=False))
        body = opened.end()
        while True:
            unit = self.body.read(self.source, body)
            after = frame.between.match(text, unit.end) if frame.between and unit.whole else None
            goes_on = after is not None and (bool(after[0].strip()) or self._begins(after.end()))
            closed = unit.end if frame.closes is None else -1
            if not goes_on and frame.closes and unit.whole and (closing := frame.closes.match(text, unit.end)):
                closed = closing.end()
            if closed < 0 and frame.ends_turn and skip_space(text, unit.end) == len(text):
                closed = len(text)
            if not unit.whole or not (goes_on or closed >= 0) or unit.problem and not goes_on:
                return self._damaged(start, body, unit, stands_whole=goes_on or closed >= 0)
            if unit.call is None:
                self._report(unit.problem, body, unit.end)
            else:
                self.calls.append(unit.call)
                self.repaired.append(unit.call)
            self.spans.append((start, unit.end if goes_on else closed))
            if not goes_on or after is None:
                return closed
            start = body = after.end()

    def _begins(self, at: int) -> bool:
        return self.head.match(self.source.text, skip_space(self.source.text, at)) is not None

    def _damaged(self, start: int, body: int, unit: Unit, stands_whole: bool = False) -> int:
        text, frame = self.source.text, self.frame
        mark = frame.mark.search(text, unit.end if unit.whole else body) if frame.mark else None
        end = mark.start() if mark else len(text)
        closed = bool(mark and frame.close_words and mark[0] == frame.close_words)
        unclosed = f"the block is not closed by {frame.close_words}" if frame.close_words else ""
        problem = unit.problem
        if unit.whole and not stands_whole:
            rest = show_json(text[unit.end : end].strip())
            problem = unclosed if unclosed and not closed else f"text after the {self.body.noun}: {rest}"
        elif not unit.whole and unclosed and not closed:
            problem += f", and {unclosed}"
        self._report(problem, body, end)
        if mark and closed:
            end = mark.end()
        self.spans.append((start, end))
        return end

    def _report(self, problem: str, start: int, end: int) -> None:
        self.problems.append(f"call {len(self.spans) + 1}: {problem}")
        mended = self.body.mend(self.source, start, end)
        if mended is not None:
            self.repaired.append(mended)


def read_sections(text: str, frame: Frame, body: Body, tools: Tools = ()) -> ParsedCalls:
    """Read every call of a generated text; it never raises."""
    reading = _Reading(Source(text, tools), frame, body)
    outside, done = [], 0
    while begins := frame.trigger.search(text, done):
        outside.append(text[done : begins.start()])
        done = max(reading.block(begins.start()), begins.start() + 1)
    outside.append(text[done:])
    return ParsedCalls(reading.calls, reading.problems, reading.spans, "".join(outside).strip(), reading.repaired)
