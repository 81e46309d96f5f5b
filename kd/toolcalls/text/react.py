"""Calls of text in ReAct's form: a line `Action: f`, and after it `Action Input: {"city": "Paris"}`.

ARGS is the JSON object. A text that goes on with `Observation:` is not read: it holds a result, which no model writes.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from kd.toolcalls.json_scan import TextCall, read_value

_ACTION = re.compile(
    r"^[ \t]*Action[ \t]*:[ \t]*(?P<name>\S[^\n]*?)[ \t]*\n\s*Action Input[ \t]*:\s*(?=\{)", re.MULTILINE
)
_OBSERVATION = re.compile(r"^[ \t]*Observation[ \t]*:", re.MULTILINE)


def read_react(text: str, names: Collection[str]) -> list[TextCall]:
    """Read every action that is one of `names` and has an object as its input, left to right."""
    if _OBSERVATION.search(text):
        return []
    calls: list[TextCall] = []
    for action in _ACTION.finditer(text):
        value = read_value(text, action.end())
        if (not names or action["name"] in names) and value is not None and isinstance(value[0], dict):
            at = action.end(), value[1]
            calls.append(TextCall(action["name"], value[0], action.span("name"), at, value[1], action.start()))
    return calls
