"""Where a rendered turn writes its calls: structural readers, tried in a written order, each checked against the call itself.

A template may write a call in any of four forms. A reader accepts a place only where the name is the call's, whole, and the
arguments written there equal the call's; nothing is keyed to a template.

  1. object      a JSON object that holds the name and the arguments: {"name": "f", "arguments": {...}}, members in any order
                 and under any key of kd/data/json_scan.py, inside {"function": ...} or a list, arguments as an object or
                 as a JSON string; or {"f": {...}}. ARGS is the arguments' value, its braces (or quotes) included.
  2. name first  the name, then something else, then the arguments as a JSON object: [TOOL_CALLS]f[ARGS]{...}. ARGS is the
                 object. The name must stand whole and once between the call before and the arguments.
  3. tags        <function=f><parameter=k>v</parameter></function>, <invoke name="f"><parameter name="k">v</parameter>,
                 <arg_key>k</arg_key><arg_value>v</arg_value> (kd/data/located_tags.py). ARGS runs from the first
                 parameter's tag to the end of the last one's; without arguments it is empty, where they would begin.
  4. python      f(k=v, ...) with Python or JSON literals (kd/data/located_python.py). ARGS is the list, parentheses included.

All calls of a turn must be found by one reader, in order, each after the end of the one before. That is what makes a wrong
place impossible: the arguments of a call cannot hold a copy of the call itself, so where a reader takes a copy inside a
later call's arguments for the call, the last one is not found after it, and the reader fails as a whole. What the assistant
says beside its calls could hold copies: the caller leaves it out of the text that is searched.
"""

from __future__ import annotations

import re
from typing import Iterator

from kd.calls import same_json
from kd.data.json_scan import ARGUMENT_KEYS, NAME_KEYS, Member, arguments_of, members, value_at
from kd.data.located_python import read_python
from kd.data.located_tags import read_tags
from kd.data.places import Place, whole_names


def locate_calls(text: str, start: int, end: int, calls: list[dict]) -> list[Place] | None:
    """The place of each call ({"name", "arguments"}) in text[start:end], in order, or None where no reader finds them all."""
    for reader in (read_object, read_name_first, read_tags, read_python):
        found: list[Place] = []
        cursor = start
        for call in calls:
            place = reader(text, cursor, end, call["name"], call["arguments"])
            if place is None or place.end > end:
                break
            found.append(place)
            cursor = place.end
        else:
            return found
    return None


def read_object(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Form 1: the first JSON object of text[start:end] that is this call."""
    for brace in _braces(text, start, end):
        found, object_end = members(text, brace)
        if not found or object_end > end:
            continue
        named = next((m for m in found if m.key in NAME_KEYS and m.value == name), None)
        given = next((m for m in found if m.key in ARGUMENT_KEYS and _equals(m, arguments)), None)
        if named and given:
            return Place((named.value_at[0] + 1, named.value_at[1] - 1), given.value_at, max(named.value_at[1], given.value_at[1]))
        keyed = next((m for m in found if m.key == name and _equals(m, arguments)), None)
        if keyed:
            return Place((keyed.key_at[0] + 1, keyed.key_at[1] - 1), keyed.value_at, keyed.value_at[1])
    return None


def read_name_first(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Form 2: the first JSON object that equals the arguments, and the one place before it where the name stands."""
    for brace in _braces(text, start, end):
        found = value_at(text, brace)
        if found is None or found[1] > end or not same_json(found[0], arguments):
            continue
        names = list(whole_names(text, start, brace, name))
        if len(names) > 1:
            return None  # one of them is the template's own word, and nothing says which
        if names:
            return Place((names[0], names[0] + len(name)), (brace, found[1]), found[1])
    return None


def _equals(member: Member, arguments: dict) -> bool:
    value = arguments_of(member.value)
    return value is not None and same_json(value, arguments)


def _braces(text: str, start: int, end: int) -> Iterator[int]:
    return (match.start() for match in re.compile(r"\{").finditer(text, start, end))
