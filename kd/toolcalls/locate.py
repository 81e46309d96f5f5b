"""Where a rendered turn writes its calls: structural readers, tried in a written order, each checked against the call
itself.

A template may write a call in any of four forms. A reader accepts a place only where the name is the call's, whole, and
the arguments written there equal the call's; nothing is keyed to a template.

  1. object      a JSON object that holds the name and the arguments: {"name": "f", "arguments": {...}}, members in any
                 order and under any key of kd/toolcalls/json_scan.py, inside {"function": ...} or a list, arguments as
                 an object or as a JSON string; or {"f": {...}}. ARGS is the arguments' value, its braces (or quotes)
                 included.
  2. name first  the name, then something else, then the arguments as a JSON object: [TOOL_CALLS]f[ARGS]{...}. ARGS is
                 the object. The name must stand whole and once between the call before and the arguments.
  3. tags        <function=f><parameter=k>v</parameter></function>, <invoke name="f"><parameter name="k">v</parameter>,
                 <arg_key>k</arg_key><arg_value>v</arg_value> (kd/toolcalls/syntax/tags.py). ARGS runs from the first
                 parameter's tag to the end of the last one's; without arguments it is empty, where they would begin.
  4. python      f(k=v, ...) with Python or JSON literals (kd/toolcalls/syntax/python_call.py). ARGS is the list,
                 parentheses included.

All calls of a turn must be found by one reader, in order, each after the end of the one before. That is what makes a
wrong place impossible: the arguments of a call cannot hold a copy of the call itself, so where a reader takes a copy
inside a later call's arguments for the call, the last one is not found after it, and the reader fails as a whole. What
the assistant says beside its calls could hold copies: the caller leaves it out of the text that is searched.
"""

from __future__ import annotations

from kd.toolcalls.place import Place
from kd.toolcalls.syntax.json_object import read_object
from kd.toolcalls.syntax.name_first import read_name_first
from kd.toolcalls.syntax.python_call import read_python
from kd.toolcalls.syntax.tags import read_tags


def locate_calls(text: str, start: int, end: int, calls: list[dict]) -> list[Place] | None:
    """The place of each call ({"name", "arguments"}) in text[start:end], in order, or None where no reader finds them
    all.
    """
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
