"""Calls as an object whose keys have no quotes, and whose strings stand between marks of their own (Gemma).

call:f{city:<|"|>Paris<|"|>,days:3}, call:f{city:<escape>Paris<escape>}. A key is a word, or stands between the marks
too; a value is a string, a number, true, false, null, a list or an object. A string cannot hold its mark. ARGS is the
object, braces included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kd.toolcalls.json_scan import skip_space
from kd.toolcalls.json_values import MAX_DEPTH, same_json
from kd.toolcalls.place import Place, find_whole_names
from kd.toolcalls.syntax.frame import Probe, find_frame, find_units
from kd.toolcalls.syntax.registry import Parse, Syntax
from kd.toolcalls.syntax.sections import Source, Unit, read_sections
from kd.toolcalls.syntax.strict_json import JsonProblem, find_excess, read_json
from kd.toolcalls.syntax.typed import CONSTANTS, NO_VALUE, read_literal, read_python, read_typed

_ANY_MARK = re.compile(r"<[^<>\s]{1,30}>")
_WORD = re.compile(r"[^\s:,{}\[\]<>\"']{1,200}")
_HEAD = re.compile(r"([^\s{}\[\]()<>:,\"']{1,200})\{")


def locate_bare_keys(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first such call in text[start:end] that is this one."""
    for at in find_whole_names(text, start, end, name):
        brace = at + len(name)
        if not text.startswith("{", brace):
            continue
        value, close = _read(Source(text, ()), brace)
        if isinstance(value, dict) and close <= end and _equals(value, arguments):
            return Place((at, brace), (brace, close), close)
    return None


def _equals(written: dict, arguments: dict) -> bool:
    """Compare arguments as they were read with a call's, of which some templates write every value as a string."""
    return written.keys() == arguments.keys() and all(
        same_json(written[key], value) or _is_text_of(written[key], value) for key, value in arguments.items()
    )


def _is_text_of(written: object, value: object) -> bool:
    return (
        isinstance(written, str)
        and not isinstance(value, str)
        and (written == str(value) or same_json(read_literal(written), value))
    )


def _read(source: Source, at: int, marks: re.Pattern[str] = _ANY_MARK, depth: int = 0) -> tuple[object, int]:
    """Read the value at `at`: (value, end); (NO_VALUE, where it breaks) where there is none.

    marks: what a string stands between.
    """
    text = source.text
    if depth > MAX_DEPTH:
        return NO_VALUE, at
    if text.startswith(("{", "["), at):
        return _read_inside(source, at, marks, depth)
    mark = marks.match(text, at)
    if mark:
        end = source.find(mark[0], mark.end())
        return (NO_VALUE, at) if end < 0 else (text[mark.end() : end], end + len(mark[0]))
    word = _WORD.match(text, at)
    try:
        value, end = read_json(text, at)
        return (NO_VALUE, at) if isinstance(value, str) else (value, end)
    except JsonProblem:
        value = read_python(word[0]) if word and word[0] in CONSTANTS else NO_VALUE
        return value, word.end() if word else at


def _read_inside(source: Source, at: int, marks: re.Pattern[str], depth: int) -> tuple[object, int]:
    text = source.text
    keyed = text[at] == "{"
    closing, members, items = "}" if keyed else "]", {}, []
    at = skip_space(text, at + 1)
    while not text.startswith(closing, at):
        if keyed:
            word = _WORD.match(text, at)
            key, at = (word[0], word.end()) if word else _read(source, at, marks, MAX_DEPTH)
            at = skip_space(text, at)
            if not isinstance(key, str) or key in members or not text.startswith(":", at):
                return NO_VALUE, at
            value, at = _read(source, skip_space(text, at + 1), marks, depth + 1)
            members[key] = value
        else:
            value, at = _read(source, at, marks, depth + 1)
            items.append(value)
        if value is NO_VALUE:
            return NO_VALUE, at
        at = skip_space(text, at)
        if text.startswith(",", at):
            at = skip_space(text, at + 1)
            if text.startswith(closing, at):
                return NO_VALUE, at
        elif not text.startswith(closing, at):
            return NO_VALUE, at
    return members if keyed else items, at + 1


@dataclass(frozen=True)
class BareKeysBody:
    """Call as a name and an object without quotes.

    Attributes:
        marks: pattern of what a string stands between.
        texts: every argument is written as a string; its schema says what it is.
    """

    marks: re.Pattern[str]
    texts: bool = False
    head: str = _HEAD.pattern
    noun: str = "object"

    def read(self, source: Source, at: int) -> Unit:
        """Read one call."""
        named = _HEAD.match(source.text, skip_space(source.text, at))
        if named is None:
            return Unit(None, at, "no name and brace", whole=False)
        value, end = _read(source, named.end() - 1, self.marks)
        if value is NO_VALUE:
            return Unit(None, at, f"not an object of arguments (character {end - at})", whole=False)
        if self.texts and isinstance(value, dict):
            schemas = source.parameters.get(named[1], {})
            value = {
                key: read_typed(text, schemas.get(key)) if isinstance(text, str) else text
                for key, text in value.items()
            }
        call = {"name": named[1], "arguments": value}
        excess = find_excess(call)
        return Unit(None, end, excess) if excess else Unit(call, end)

    def mend(self, source: Source, start: int, end: int) -> dict | None:
        """Read a call that lacks its last brace."""
        unit = self.read(Source(source.text[start:end].rstrip() + "}", source.tools), 0)
        return unit.call


def learn_bare_keys(probes: Sequence[Probe]) -> Parse | None:
    """Learn the frame around calls from probes."""

    def find(probe: Probe, at: int, call: dict) -> tuple[int, int] | None:
        place = locate_bare_keys(probe.text, at, len(probe.text), call["name"], call["arguments"])
        if place is None:
            return None
        written, _ = _read(Source(probe.text, ()), place.arguments[0])
        assert isinstance(written, dict), "it was located"
        marks.update(_ANY_MARK.findall(probe.text, *place.arguments)[:1])
        texts.extend(_is_text_of(written[key], value) for key, value in call["arguments"].items())
        return place.name[0], place.end

    texts: list[bool] = []
    marks: set[str] = set()
    units = find_units(probes, find)
    if units is None:
        return None
    body = BareKeysBody(re.compile("|".join(map(re.escape, sorted(marks)))), any(texts))
    frame = find_frame(probes, units, body.head)
    return lambda text, tools: read_sections(text, frame, body, tools)


BARE_KEYS = Syntax(locate_bare_keys, learn_bare_keys)
