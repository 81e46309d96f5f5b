"""Calls as a JSON object that holds the name and the arguments.

{"name": "f", "arguments": {...}}, members in any order and under any key of kd/toolcalls/json_scan.py, inside
{"function": ...} or a list, arguments as an object or as a JSON string; or {"f": {...}}. ARGS is the arguments' value,
its braces (or quotes) included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kd.toolcalls.json_scan import (
    ARGUMENT_KEYS,
    NAME_KEYS,
    Member,
    find_braces,
    open_arguments,
    read_members,
    read_value,
    skip_space,
)
from kd.toolcalls.json_values import same_json, show_json
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.frame import Probe, find_frame, find_units
from kd.toolcalls.syntax.registry import Parse, Syntax
from kd.toolcalls.syntax.sections import Source, Unit, read_sections
from kd.toolcalls.syntax.strict_json import JsonProblem, explain, find_excess, read_json

_STRING = r'"(?:[^"\\]|\\.){0,200}"'


def locate_object(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first JSON object in text[start:end] that is this call."""
    found = _find_object(text, start, end, name, arguments)
    return found and found[1]


def _find_object(
    text: str, start: int, end: int, name: str, arguments: dict
) -> tuple[int, Place, Member | None, Member] | None:
    """Find a call's object: (its brace, its place, the member of its name or None where that is the key, the other)."""
    for brace in find_braces(text, start, end):
        found, object_end = read_members(text, brace)
        if not found or object_end > end:
            continue
        named = next((m for m in found if m.key in NAME_KEYS and m.value == name), None)
        given = next((m for m in found if m.key in ARGUMENT_KEYS and _equals(m, arguments)), None)
        if named and given:
            place = Place(
                (named.value_at[0] + 1, named.value_at[1] - 1),
                given.value_at,
                max(named.value_at[1], given.value_at[1]),
            )
            return brace, place, named, given
        keyed = next((m for m in found if m.key == name and _equals(m, arguments)), None)
        if keyed:
            place = Place((keyed.key_at[0] + 1, keyed.key_at[1] - 1), keyed.value_at, keyed.value_at[1])
            return brace, place, None, keyed
    return None


def _equals(member: Member, arguments: dict) -> bool:
    value = open_arguments(member.value)
    return value is not None and same_json(value, arguments)


@dataclass(frozen=True)
class ObjectBody:
    """Call as an object.

    Attributes:
        name_key, arguments_key: keys of the call's members; both None where it is {"f": {...}}.
        path: keys from the outermost object to the one that holds those members.
        as_text: the arguments are a JSON string that holds the object.
        head: see `kd.toolcalls.syntax.sections.Body`.
    """

    name_key: str | None
    arguments_key: str | None
    path: tuple[str, ...] = ()
    as_text: bool = False
    head: str = r"\{"
    noun: str = "JSON"

    def read(self, source: Source, at: int) -> Unit:
        """Read one object."""
        start = skip_space(source.text, at)
        try:
            value, end = read_json(source.text, start)
        except JsonProblem as problem:
            return Unit(None, at, explain(problem, at), whole=False)
        call = self._call(value)
        return Unit(None, end, call) if isinstance(call, str) else Unit(call, end)

    def mend(self, source: Source, start: int, end: int) -> dict | None:
        """Read a damaged object as json-repair understands it."""
        call = self._call(source.mender.mend(source.text[start:end]))
        return None if isinstance(call, str) else call

    def _call(self, value: object) -> dict | str:
        """Return the call that a value is, or what is wrong with it."""
        outer = value
        for key in self.path:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            return f"a call is one JSON object, not {show_json(outer)}"
        if self.name_key is None or self.arguments_key is None:
            if len(value) != 1:
                return "a call is an object of one member, the tool's name and its arguments"
            (name, arguments), key = next(iter(value.items())), "as the name's value"
        else:
            name, arguments, key = value.get(self.name_key), value.get(self.arguments_key), f'"{self.arguments_key}"'
        if not isinstance(name, str):
            return f'no string "{self.name_key}" in the call'
        if self.as_text:
            arguments = _open_text(arguments)
        if not isinstance(arguments, dict):
            return f"no object {key} in the call"
        return find_excess(outer) or {"name": name, "arguments": arguments}


def _open_text(value: object) -> object:
    try:
        opened, end = read_json(value, 0) if isinstance(value, str) else (None, 0)
    except JsonProblem:
        return None
    return opened if isinstance(value, str) and not value[end:].strip() else None


def learn_object(probes: Sequence[Probe]) -> Parse | None:
    """Learn the object's keys, and the frame around objects, from probes."""
    bodies: set[ObjectBody] = set()

    def find(probe: Probe, at: int, call: dict) -> tuple[int, int] | None:
        found = _find_object(probe.text, at, len(probe.text), call["name"], call["arguments"])
        if found is None:
            return None
        brace, _, named, given = found
        path: tuple[str, ...] = ()
        while (outer := _find_parent(probe.text, at, brace)) is not None:
            brace, path = outer[0], (outer[1], *path)
        value = read_value(probe.text, brace)
        keys = (named.key, given.key) if named else (None, None)
        bodies.add(ObjectBody(*keys, path, isinstance(given.value, str), _head(probe.text, brace, keys)))
        return value and (brace, value[1])

    units = find_units(probes, find)
    if units is None or len(bodies) != 1:
        return None
    body = bodies.pop()
    frame = find_frame(probes, units, body.head)
    return lambda text, tools: read_sections(text, frame, body, tools)


def _find_parent(text: str, start: int, brace: int) -> tuple[int, str] | None:
    """Find the object in text[start:] of which the object at `brace` is a member: (its brace, the member's key)."""
    for outer in find_braces(text, start, brace):
        for member in read_members(text, outer)[0]:
            if member.value_at[0] == brace:
                return outer, member.key
    return None


def _head(text: str, brace: int, keys: tuple[str | None, str | None]) -> str:
    """Make the pattern that begins a call: its first two keys, or the first one where the text begins with it."""
    members, _ = read_members(text, brace)
    first = rf"\{{\s*{re.escape(json.dumps(members[0].key))}\s*:" if keys[0] and members else r"\{\s*" + _STRING
    if keys[0] is None or len(members) < 2 or members[0].key != keys[0]:
        return first
    return rf"(?:\A\s*{first}|{first}\s*{_STRING}\s*,\s*{re.escape(json.dumps(members[1].key))}\s*:)"


OBJECT = Syntax(locate_object, learn_object)
