"""Calls of text in Glaive's form: <functioncall> {"name": "f", "arguments": '{"city": "Paris"}'}.

The arguments are an object, or one as JSON text between single quotes, in which a single quote is escaped. ARGS is the
arguments' value, its braces or quotes included.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from kd.toolcalls.json_scan import TextCall, open_arguments, read_text_call

_QUOTED = re.compile(
    r"\{\s*\"name\"\s*:\s*\"(?P<name>[^\"\\]+)\"\s*,\s*\"arguments\"\s*:\s*(?P<value>'(?:[^'\\]|\\.)*')\s*\}", re.DOTALL
)
_OPENS = re.compile(r"<functioncall>\s*(?=\{)")


def read_functioncall(text: str, names: Collection[str]) -> list[TextCall]:
    """Read every <functioncall> that names one of `names`, left to right."""
    calls: list[TextCall] = []
    for opened in _OPENS.finditer(text):
        quoted = _QUOTED.match(text, opened.end())
        if quoted is None:
            call = read_text_call(text, opened.end(), names)
            calls += [] if call is None else [call._replace(start=opened.start())]
            continue
        arguments = open_arguments(quoted["value"][1:-1].replace("\\'", "'"))
        if (not names or quoted["name"] in names) and arguments is not None:
            calls.append(
                TextCall(
                    quoted["name"], arguments, quoted.span("name"), quoted.span("value"), quoted.end(), opened.start()
                )
            )
    return calls
