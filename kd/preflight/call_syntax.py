"""Check of a chat template: the calls that it writes are read back as evaluation reads an answer's."""

from __future__ import annotations

from typing import Any

from kd.rendering.call_syntax import CallSyntaxError, find_syntax


def check_call_syntax(tokenizer) -> dict[str, Any]:
    """Check the template; returns {"name", "ok", "detail"} as `kd.preflight.run.check_run` does."""
    name = "the template's own calls are read back"
    try:
        return {"name": name, "ok": True, "detail": f"in the syntax `{find_syntax(tokenizer).syntax}`"}
    except CallSyntaxError as error:
        return {"name": name, "ok": False, "detail": str(error)}
