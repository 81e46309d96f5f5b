"""JSON objects inside a text that is not all JSON: places of their members, and the objects that are calls.

A call that a text-only assistant writes is an object with a name and arguments and nothing else but bookkeeping
(`BOOKKEEPING`): {"name": "f", "arguments": {...}}, under any of the keys below, in any order, at any depth
({"function": {...}}, a list of calls). The arguments are an object, or a JSON string that holds one. Where tools are
known the name must be one of theirs. Anything else with braces is prose: a JSON example, a definition of a tool, code,
a set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

NAME_KEYS = ("name", "function", "tool_name", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
BOOKKEEPING = frozenset({"id", "call_id", "tool_call_id", "type", "index"})
_SPACE = re.compile(r"\s*")
_BRACE = re.compile(r"\{")
_DECODER = json.JSONDecoder()


class Member(NamedTuple):
    """Member of an object, with [start, end) characters of its key, quotes included, and of its value."""

    key: str
    value: object
    key_at: tuple[int, int]
    value_at: tuple[int, int]


class TextCall(NamedTuple):
    """Call in a text, with [start, end) characters of its name, without quotes, and of its arguments as written."""

    name: str
    arguments: dict
    name_at: tuple[int, int]
    arguments_at: tuple[int, int]
    end: int  # of the object, or of what is written for the call
    start: int


def skip_space(text: str, at: int) -> int:
    """Return the first offset from `at` on that is not white space, or the end of the text."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def find_braces(text: str, start: int, end: int) -> Iterator[int]:
    """Yield the offset of each opening brace in text[start:end]."""
    return (match.start() for match in _BRACE.finditer(text, start, end))


def read_value(text: str, at: int) -> tuple[object, int] | None:
    """Read the JSON value that begins at `at`: (value, end); None where none does, or it nests too deep to be read."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def read_members(text: str, brace: int) -> tuple[list[Member], int]:
    """Read the object that opens at `brace`: (its members, its end); ([], -1) where no JSON object opens there."""
    found: list[Member] = []
    at = skip_space(text, brace + 1)
    if text[at : at + 1] == "}":
        return found, at + 1
    while text[at : at + 1] == '"':
        key = read_value(text, at)
        if key is None:
            break
        colon = skip_space(text, key[1])
        if text[colon : colon + 1] != ":":
            break
        start = skip_space(text, colon + 1)
        value = read_value(text, start)
        if value is None:
            break
        found.append(Member(str(key[0]), value[0], (at, key[1]), (start, value[1])))
        comma = skip_space(text, value[1])
        if text[comma : comma + 1] == "}":
            return found, comma + 1
        if text[comma : comma + 1] != ",":
            break
        at = skip_space(text, comma + 1)
    return [], -1


def open_arguments(value: object) -> dict | None:
    """Return a call's arguments from a member's value, an object or a JSON string that holds one; else None."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        opened = read_value(value, skip_space(value, 0))
        value = opened[0] if opened and not value[opened[1] :].strip() else None
    return value if isinstance(value, dict) else None


def find_text_calls(text: str, names: Collection[str]) -> list[TextCall]:
    """Find the calls in `text`, left to right; a call inside another's arguments is not one.

    names: of the tools; where there are none, any name is taken.
    """
    calls: list[TextCall] = []
    at = text.find("{")
    while at >= 0:
        call = read_text_call(text, at, names)
        if call is not None:
            calls.append(call)
        at = text.find("{", call.end if call else at + 1)
    return calls


def read_text_call(text: str, brace: int, names: Collection[str]) -> TextCall | None:
    """Read the object that opens at `brace`; None where it is no call. `names`: as for `find_text_calls`."""
    found, end = read_members(text, brace)
    by_key = {member.key: member for member in found}
    name = next((by_key[key] for key in NAME_KEYS if key in by_key), None)
    given = next((by_key[key] for key in ARGUMENT_KEYS if key in by_key), None)
    if (
        name is None
        or given is None
        or not isinstance(name.value, str)
        or not name.value
        or (names and name.value not in names)
    ):
        return None
    if len(by_key) < len(found) or by_key.keys() - BOOKKEEPING != {name.key, given.key}:
        return None
    arguments = open_arguments(given.value)
    if arguments is None:
        return None
    return TextCall(name.value, arguments, (name.value_at[0] + 1, name.value_at[1] - 1), given.value_at, end, brace)
