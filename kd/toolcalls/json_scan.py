"""JSON objects inside a text that is not all JSON: where each member is, and which objects are calls.

A call, where a text-only assistant writes one, is an object with a name and arguments and nothing else but bookkeeping
(`BOOKKEEPING`): {"name": "f", "arguments": {...}}, under any of the keys below, in any order, at any depth
({"function": {...}}, a list of calls). The arguments are an object, or a JSON string that holds one. Where tools are
known the name must be one of theirs. What else has braces is prose: a JSON example, a definition of a tool, code, a
set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import NamedTuple

NAME_KEYS = ("name", "function", "tool_name", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
BOOKKEEPING = frozenset({"id", "call_id", "tool_call_id", "type", "index"})
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


class Member(NamedTuple):
    """One member of an object: characters of its key, quotes included, and of its value."""

    key: str
    value: object
    key_at: tuple[int, int]
    value_at: tuple[int, int]


class TextCall(NamedTuple):
    """A call in a text: characters of its name, without quotes, and of its arguments as written."""

    name: str
    arguments: dict
    name_at: tuple[int, int]
    arguments_at: tuple[int, int]
    end: int  # of the object


def skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def value_at(text: str, at: int) -> tuple[object, int] | None:
    """The JSON value that begins at `at`, with its end; None where none does, or it nests too deep to be read."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def members(text: str, brace: int) -> tuple[list[Member], int]:
    """The members of the object that opens at `brace`, and its end; ([], -1) where what opens there is no JSON
    object.
    """
    found: list[Member] = []
    at = skip_space(text, brace + 1)
    if text[at : at + 1] == "}":
        return found, at + 1
    while text[at : at + 1] == '"':
        key = value_at(text, at)
        if key is None:
            break
        colon = skip_space(text, key[1])
        if text[colon : colon + 1] != ":":
            break
        start = skip_space(text, colon + 1)
        value = value_at(text, start)
        if value is None:
            break
        found.append(Member(key[0], value[0], (at, key[1]), (start, value[1])))
        comma = skip_space(text, value[1])
        if text[comma : comma + 1] == "}":
            return found, comma + 1
        if text[comma : comma + 1] != ",":
            break
        at = skip_space(text, comma + 1)
    return [], -1


def arguments_of(value: object) -> dict | None:
    """A call's arguments from a member's value: an object, or a JSON string that holds one."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        opened = value_at(value, skip_space(value, 0))
        value = opened[0] if opened and not value[opened[1] :].strip() else None
    return value if isinstance(value, dict) else None


def text_calls(text: str, names: Collection[str]) -> list[TextCall]:
    """The calls in `text`, left to right; `names` are the tools' (none: any name is taken). One inside another's
    arguments is not one.
    """
    calls: list[TextCall] = []
    at = text.find("{")
    while at >= 0:
        call = _call_at(text, at, names)
        if call is not None:
            calls.append(call)
        at = text.find("{", call.end if call else at + 1)
    return calls


def _call_at(text: str, brace: int, names: Collection[str]) -> TextCall | None:
    found, end = members(text, brace)
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
    arguments = arguments_of(given.value)
    if arguments is None:
        return None
    return TextCall(name.value, arguments, (name.value_at[0] + 1, name.value_at[1] - 1), given.value_at, end)
