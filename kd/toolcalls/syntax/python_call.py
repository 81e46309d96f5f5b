"""Calls as Python: f(city="Paris", days=3), alone, in a list, or as f.call(...).

Arguments are named, in any order. A value is a Python or JSON literal, or true, false and null. Templates that print
values without escaping them are read by that rule: a string between quotes as it is, to the quote that the next
argument or the end follows; any value between quotes; or a string without quotes. ARGS is the list of arguments,
parentheses included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kd.toolcalls.json_scan import read_value, skip_space
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.frame import Probe, find_frame, find_units
from kd.toolcalls.syntax.registry import Parse, Syntax
from kd.toolcalls.syntax.sections import Source, Unit, read_sections
from kd.toolcalls.syntax.strict_json import JsonProblem, find_excess, read_json
from kd.toolcalls.syntax.typed import NO_VALUE, read_python, read_typed

_OPENS = re.compile(r"(?:\.\w+)?\(")
_FOLLOWS = re.compile(r"\s*([,)])")
_JOINED = re.compile(r"\s*([,)]|(?=[^\s()\[\]{}\"'=,<>]{1,200}\s*=))")  # or the next name, with nothing before it
_PART = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[\[({]|[\])},]", re.DOTALL)
_CALLEE = re.compile(r"([^\s()\[\]{}\"'=,<>]{1,200}?)((?:\.call)?)\(")
_KEY = re.compile(r"([^\s()\[\]{}\"'=,<>]{1,200})\s*=(\s*)")
_MAX_VALUE = 20_000  # characters of one value that is no JSON


class _Written(NamedTuple):
    """Value as it was found: its end, and how it is written."""

    follows: re.Match
    form: str  # "literal", "as it is" between quotes, "quoted" (no string, between quotes), or "bare" (no quotes)


def locate_python(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first Python call in text[start:end] that is this one."""
    found = _find_call(text, start, end, name, arguments)
    return found and found[0]


def _find_call(
    text: str, start: int, end: int, name: str, arguments: dict
) -> tuple[Place, list[tuple[object, str]]] | None:
    """Find a call: (its place, [(value, the form in which it is written)])."""
    names = re.compile(rf"(?<![\w-]){re.escape(name)}{_OPENS.pattern}")
    for match in names.finditer(text, start, end):
        found = _find_arguments(text, match.end(), arguments)
        if found is not None and found[0] <= end:
            place = Place((match.start(), match.start() + len(name)), (match.end() - 1, found[0]), found[0])
            return place, found[1]
    return None


def _find_arguments(text: str, at: int, arguments: dict) -> tuple[int, list[tuple[object, str]]] | None:
    """Find the end of the arguments that begin at `at`, past their parenthesis; None where they are not `arguments`."""
    left, forms = dict(arguments), []
    while left:
        at = skip_space(text, at)
        for key in left:
            sign = skip_space(text, at + len(key))
            if text.startswith(key, at) and text.startswith("=", sign):
                break
        else:
            return None
        value = left.pop(key)
        found = _find_value(text, skip_space(text, sign + 1), value)
        if found is None and isinstance(value, str):
            found = _find_value(text, sign + 1, value)  # space that begins a text without quotes
        if found is None or (found.follows[1] == ")") == bool(left):
            return None
        forms.append((value, found.form))
        if not found.follows[1]:
            forms.append((None, "joined"))
        at = found.follows.end()
        if not left:
            return at, forms
    at = skip_space(text, at)
    return (at + 1, forms) if text.startswith(")", at) else None


def _find_value(text: str, at: int, value: object) -> _Written | None:
    """Find the comma or parenthesis after the value at `at`; None where that value is not `value`."""
    found = read_value(text, at)
    if found and same_json(found[0], value) and (follows := _JOINED.match(text, found[1])):
        return _Written(follows, "literal")
    end = _literal_end(text, at)
    if end is not None and same_json(read_python(text[at:end]), value) and (follows := _JOINED.match(text, end)):
        return _Written(follows, "literal")
    written = value if isinstance(value, str) else str(value)
    form = "as it is" if isinstance(value, str) else "quoted"
    forms = [(f'"{written}"', form), (f"'{written}'", form)]
    for spelling, form in [*forms, (written, "bare")] if isinstance(value, str) else forms:
        if text.startswith(spelling, at) and (follows := _JOINED.match(text, at + len(spelling))):
            return _Written(follows, form)
    return None


def _literal_end(text: str, at: int) -> int | None:
    """Find the end of the expression that begins at `at`: the comma or bracket that is not inside it, less space."""
    depth = 0
    for part in _PART.finditer(text, at, at + _MAX_VALUE):
        if part[0] in "[({":
            depth += 1
        elif depth and part[0] in "])}":
            depth -= 1
        elif not depth and part[0] in "])},":
            return at + len(text[at : part.start()].rstrip())
    return None


@dataclass(frozen=True)
class PythonBody:
    """Call as Python.

    Attributes:
        form: how strings are written: "literal" and escaped, "as it is" between quotes, or "bare" without quotes.
        quoted: other values stand between quotes too.
        joined: nothing stands between a value and the next name.
        attribute: what stands between the name and its parenthesis.
    """

    form: str = "literal"
    quoted: bool = False
    joined: bool = False
    attribute: str = ""
    head: str = r"[A-Za-z_][\w.-]*\(\s*(?:\)|[A-Za-z_]\w*\s*=)"
    noun: str = "call"

    def read(self, source: Source, at: int) -> Unit:
        """Read one call."""
        text = source.text
        callee = _CALLEE.match(text, skip_space(text, at))
        if callee is None or callee[2] != self.attribute:
            return Unit(None, at, "no name and parenthesis", whole=False)
        arguments: dict = {}
        properties, place = source.parameters.get(callee[1], {}), skip_space(text, callee.end())
        while not text.startswith(")", place):
            key = _KEY.match(text, place)
            if key is None or key[1] in arguments:
                problem = f"{key[1]!r} is named twice" if key else "an argument has no name"
                return Unit(None, at, f"{problem} (character {place - at})", whole=False)
            begin = key.start(2) if self.form == "bare" else key.end()
            value, end = self._value(source, begin, properties.get(key[1]))
            follows = (_JOINED if self.joined else _FOLLOWS).match(text, end) if value is not NO_VALUE else None
            if follows is None:
                return Unit(None, at, f"{key[1]}: no Python literal (character {key.end() - at})", whole=False)
            arguments[key[1]] = value
            place = skip_space(text, follows.end()) if follows[1] != ")" else follows.end() - 1
        call = {"name": callee[1], "arguments": arguments}
        excess = find_excess(call)
        return Unit(None, place + 1, excess) if excess else Unit(call, place + 1)

    def _value(self, source: Source, at: int, schema: object) -> tuple[object, int]:
        """Read the value at `at`: (value, end); NO_VALUE where there is none."""
        text = source.text
        quote = text[at : at + 1]
        if quote in ("'", '"') and (self.form == "as it is" or self.quoted):
            closing = re.compile(rf"{quote}\s*(?=,\s*[^\s()=,]+\s*=|\)\s*(?:[^\w\s]|\Z|\n))")
            end = closing.search(text, at + 1, at + _MAX_VALUE) if source.spend(0) else None
            inner = text[at + 1 : end.start()] if end else ""
            source.spend(len(inner) if end else _MAX_VALUE)
            return (NO_VALUE, at) if end is None else (read_typed(inner, schema) if self.quoted else inner, end.end())
        try:
            if self.form != "bare":
                return read_json(text, at)
        except JsonProblem:
            pass
        end = _literal_end(text, at) if source.spend(0) else None
        if end is not None and self.form == "bare":
            end = skip_space(text, end)  # the space at a text's edges is its own
        if end is None or end == at and self.form != "bare" or not source.spend(end - at):
            source.spend(_MAX_VALUE)
            return NO_VALUE, at
        return read_typed(text[at:end], schema) if self.form == "bare" else read_python(text[at:end]), end

    def mend(self, source: Source, start: int, end: int) -> dict | None:
        """Read a call whose quotes, brackets or parenthesis are not closed at its end."""
        text = source.text[start:end].rstrip()
        if len(text) > _MAX_VALUE:
            return None
        for closing in (")", '")', "')", "])", '"])', "'])", "})", '"})', "'})"):
            unit = self.read(Source(text + closing, source.tools), 0)
            if unit.call is not None and unit.end == len(text) + len(closing):
                return unit.call
        return None


def learn_python(probes: Sequence[Probe]) -> Parse | None:
    """Learn how values are written, and the frame around calls, from probes."""
    forms: list[tuple[object, str]] = []
    attributes: set[str] = set()

    def find(probe: Probe, at: int, call: dict) -> tuple[int, int] | None:
        found = _find_call(probe.text, at, len(probe.text), call["name"], call["arguments"])
        if found is None:
            return None
        place, written = found
        forms.extend(written)
        attributes.add(probe.text[place.name[1] : place.arguments[0]])
        return place.name[0], place.end

    units = find_units(probes, find)
    if units is None or len(attributes) != 1:
        return None
    texts = {form for value, form in forms if isinstance(value, str)}
    body = PythonBody(
        form=next((form for form in ("as it is", "bare") if form in texts), "literal"),
        quoted=any(form == "quoted" for _, form in forms),
        joined=any(form == "joined" for _, form in forms),
        attribute=attributes.pop(),
    )
    frame = find_frame(probes, units, body.head)
    return lambda text, tools: read_sections(text, frame, body, tools)


PYTHON = Syntax(locate_python, learn_python)
