"""Calls as Python: f(city="Paris", days=3), alone, in a list, or as f.call(...).

Arguments are named, in any order. A value is a Python or JSON literal, True or true, or a string between quotes as it
is. ARGS is the list of arguments, parentheses included.
"""

from __future__ import annotations

import ast
import re

from kd.toolcalls.json_scan import read_value, skip_space
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.registry import Syntax

_OPENS = re.compile(r"(?:\.\w+)?\(")
_FOLLOWS = re.compile(r"\s*([,)])")
_PART = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[\[({]|[\])},]", re.DOTALL)


def locate_python(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first Python call in text[start:end] that is this one."""
    names = re.compile(rf"(?<![\w-]){re.escape(name)}{_OPENS.pattern}")
    for match in names.finditer(text, start, end):
        close = _arguments_end(text, match.end(), arguments)
        if close is not None and close <= end:
            return Place((match.start(), match.start() + len(name)), (match.end() - 1, close), close)
    return None


def _arguments_end(text: str, at: int, arguments: dict) -> int | None:
    """Find the end of the arguments that begin at `at`, past their parenthesis; None where they are not `arguments`."""
    left = dict(arguments)
    while left:
        at = skip_space(text, at)
        for key in left:
            sign = skip_space(text, at + len(key))
            if text.startswith(key, at) and text.startswith("=", sign):
                break
        else:
            return None
        follows = _value(text, skip_space(text, sign + 1), left.pop(key))
        if follows is None or (follows[1] == ",") != bool(left):
            return None
        at = follows.end()
        if not left:
            return at
    at = skip_space(text, at)
    return at + 1 if text.startswith(")", at) else None


def _value(text: str, at: int, value: object) -> re.Match | None:
    """Match the comma or parenthesis after the value at `at`; None where that value is not `value`."""
    found = read_value(text, at)
    if found and same_json(found[0], value) and (follows := _FOLLOWS.match(text, found[1])):
        return follows
    end = _literal_end(text, at)
    if end is not None and same_json(_literal(text[at:end]), value):
        return _FOLLOWS.match(text, end)
    if isinstance(value, str):
        for quoted in (f'"{value}"', f"'{value}'"):
            if text.startswith(quoted, at) and (follows := _FOLLOWS.match(text, at + len(quoted))):
                return follows
    return None


def _literal_end(text: str, at: int) -> int | None:
    """Find the end of the expression that begins at `at`: the comma or bracket that is not inside it, less space."""
    depth = 0
    for part in _PART.finditer(text, at):
        if part[0] in "[({":
            depth += 1
        elif depth and part[0] in "])}":
            depth -= 1
        elif not depth and part[0] in "])},":
            return at + len(text[at : part.start()].rstrip())
    return None


def _literal(text: str) -> object:
    try:
        return _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return NotImplemented  # equals no JSON value


def _plain(value: object) -> object:
    """Turn tuples into lists, and surrogate pairs that JSON escapes left behind into the characters they are."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value


PYTHON = Syntax(locate_python)
