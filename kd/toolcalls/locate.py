"""Places of a rendered turn's calls, in the first registered syntax that has them all.

A template may write a call in any syntax of kd/toolcalls/syntax/registry.py. A syntax accepts a place only where the
name is the call's, whole, and the arguments written there equal the call's; nothing is keyed to a template.

  object      a JSON object that holds the name and the arguments: {"name": "f", "arguments": {...}}, or {"f": {...}}
  name_first  the name, then something else, then the arguments as a JSON object: [TOOL_CALLS]f[ARGS]{...}
  tags        <function=f><parameter=k>v</parameter></function>, <invoke name="f"><parameter name="k">v</parameter>,
              <arg_key>k</arg_key><arg_value>v</arg_value>
  python      f(k=v, ...) with Python or JSON literals
  tokens      <|open|>call tool="f"<|sep|><|open|>argument key="k"<|sep|>v<|close|>argument<|sep|>
  bare_keys   call:f{k:<|"|>v<|"|>,n:3}

All calls of a turn must be found in one syntax, in order, each after the end of the one before. That is what makes a
wrong place impossible: the arguments of a call cannot hold a copy of the call itself, so where a copy inside a later
call's arguments is taken for the call, the last call is not found after it, and the syntax fails as a whole. Text that
the assistant says beside its calls could hold copies: the caller leaves it out of the text that is searched.
"""

from __future__ import annotations

from kd.toolcalls.place import Place
from kd.toolcalls.syntax.registry import SYNTAXES


def locate_calls(text: str, start: int, end: int, calls: list[dict]) -> list[Place] | None:
    """Locate each call ({"name", "arguments"}) in text[start:end], in order; None where no syntax has them all."""
    found = (locate_in(name, text, start, end, calls) for name in SYNTAXES.names())
    return next((places for places in found if places is not None), None)


def locate_in(syntax: str, text: str, start: int, end: int, calls: list[dict]) -> list[Place] | None:
    """Locate the calls in one syntax; as `locate_calls`."""
    found: list[Place] = []
    cursor = start
    for call in calls:
        place = SYNTAXES[syntax].locate(text, cursor, end, call["name"], call["arguments"])
        if place is None or place.end > end:
            return None
        found.append(place)
        cursor = place.end
    return found
