"""TODO docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kd.toolcalls.json_scan import ARGUMENT_KEYS, NAME_KEYS, Member, arguments_of, members
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place


def read_object(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Form 1: the first JSON object of text[start:end] that is this call."""
    for brace in _braces(text, start, end):
        found, object_end = members(text, brace)
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
    value = arguments_of(member.value)
    return value is not None and same_json(value, arguments)


def _braces(text: str, start: int, end: int) -> Iterator[int]:
    return (match.start() for match in re.compile(r"\{").finditer(text, start, end))
