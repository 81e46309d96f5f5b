"""TODO docstring."""

from __future__ import annotations

from kd.toolcalls.json_scan import value_at
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place, whole_names
from kd.toolcalls.syntax.json_object import _braces


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
