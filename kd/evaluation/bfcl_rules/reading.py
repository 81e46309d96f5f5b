"""Calls of a text as BFCL's readers take them: a block that is no JSON is dropped, and a key twice is read as its last.

The project's own reading (kd/toolcalls/reader.py) refuses both, and fails the turn.
"""

from __future__ import annotations

import json
from typing import Any

from kd.toolcalls.parsed import ParsedCalls


def read_as_bfcl(text: str, parsed: ParsedCalls) -> list[dict[str, Any]]:
    """Return the calls ({"name", "arguments"}) of a text that was read as `parsed`; it never raises.

    Blocks that hold a call as one JSON object are read anew; in other syntaxes a block with a problem is dropped.
    """
    if not parsed.problems:
        return parsed.calls
    calls = [_read_block(text[start:end]) for start, end in parsed.spans]
    if sum(call is not None for call in calls) < len(parsed.calls):
        return parsed.calls
    return [call for call in calls if call is not None]


def _read_block(block: str) -> dict[str, Any] | None:
    opens, closes = block.find("{"), block.rfind("}")
    try:
        value = json.loads(block[opens : closes + 1]) if 0 <= opens < closes else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None
