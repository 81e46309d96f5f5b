"""Calls of text in Python, alone in it: [f(city="Paris"), g()], or one of them without the brackets.

Arguments are named, values are Python literals, or JSON's true, false and null. A name is any of the tools' own, spaces
and dots included. ARGS is the list of arguments, parentheses included.
"""

from __future__ import annotations

from collections.abc import Collection

from kd.toolcalls.json_scan import TextCall, skip_space
from kd.toolcalls.syntax.python_call import PythonBody
from kd.toolcalls.syntax.sections import Source

_MAX_LENGTH = 100_000  # characters


def read_python_list(text: str, names: Collection[str]) -> list[TextCall]:
    """Read a text that is a list of calls of `names`, or one such call; [] where it is anything else."""
    end = len(text.rstrip())
    at = skip_space(text, 0)
    listed = text.startswith("[", at)
    at = skip_space(text, at + 1) if listed else at
    calls: list[TextCall] = []
    while len(text) <= _MAX_LENGTH:
        call = _read_call(text, at, names)
        if call is None:
            return []
        calls.append(call)
        at = skip_space(text, call.end)
        if listed and text.startswith(",", at):
            at = skip_space(text, at + 1)
        else:
            return calls if (text[at:end] == "]" if listed else at >= end) else []
    return []


def _read_call(text: str, at: int, names: Collection[str]) -> TextCall | None:
    name = max((name for name in names if text.startswith(name, at)), key=len, default="")
    opens = at + len(name)
    if not name or not text.startswith("(", opens):
        return None
    unit = PythonBody().read(Source("f" + text[opens:], ()), 0)  # under a name that Python has
    if unit.call is None:
        return None
    end = opens + unit.end - 1
    return TextCall(name, unit.call["arguments"], (at, opens), (opens, end), end, at)
