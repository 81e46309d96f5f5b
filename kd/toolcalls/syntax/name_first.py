"""Calls as a name, something else, and the arguments as a JSON object: [TOOL_CALLS]f[ARGS]{...}.

ARGS is the object. The name must stand whole and once between the call before and the arguments.
"""

from __future__ import annotations

from kd.toolcalls.json_scan import find_braces, read_value
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place, find_whole_names
from kd.toolcalls.syntax.registry import Syntax


def locate_name_first(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first JSON object that equals the arguments, and the one place before it where the name stands."""
    for brace in find_braces(text, start, end):
        found = read_value(text, brace)
        if found is None or found[1] > end or not same_json(found[0], arguments):
            continue
        names = list(find_whole_names(text, start, brace, name))
        if len(names) > 1:
            return None  # one of them is the template's own word, and nothing says which
        if names:
            return Place((names[0], names[0] + len(name)), (brace, found[1]), found[1])
    return None


NAME_FIRST = Syntax(locate_name_first)
