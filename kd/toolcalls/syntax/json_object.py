"""Calls as a JSON object that holds the name and the arguments.

{"name": "f", "arguments": {...}}, members in any order and under any key of kd/toolcalls/json_scan.py, inside
{"function": ...} or a list, arguments as an object or as a JSON string; or {"f": {...}}. ARGS is the arguments' value,
its braces (or quotes) included.
"""

from __future__ import annotations

from kd.toolcalls.json_scan import ARGUMENT_KEYS, NAME_KEYS, Member, find_braces, open_arguments, read_members
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.registry import Syntax


def locate_object(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first JSON object in text[start:end] that is this call."""
    for brace in find_braces(text, start, end):
        found, object_end = read_members(text, brace)
        if not found or object_end > end:
            continue
        named = next((m for m in found if m.key in NAME_KEYS and m.value == name), None)
        given = next((m for m in found if m.key in ARGUMENT_KEYS and _equals(m, arguments)), None)
        if named and given:
            return Place(
                (named.value_at[0] + 1, named.value_at[1] - 1),
                given.value_at,
                max(named.value_at[1], given.value_at[1]),
            )
        keyed = next((m for m in found if m.key == name and _equals(m, arguments)), None)
        if keyed:
            return Place((keyed.key_at[0] + 1, keyed.key_at[1] - 1), keyed.value_at, keyed.value_at[1])
    return None


def _equals(member: Member, arguments: dict) -> bool:
    value = open_arguments(member.value)
    return value is not None and same_json(value, arguments)


OBJECT = Syntax(locate_object)
