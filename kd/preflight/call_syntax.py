"""Check of a chat template: the calls that it writes are read back as evaluation reads an answer's."""

from __future__ import annotations

from typing import Any

from kd.preflight.run import run_check
from kd.rendering.call_syntax import find_syntax


def check_call_syntax(tokenizer) -> dict[str, Any]:
    """Check the template; returns {"name", "ok", "detail"} as `kd.preflight.run.run_check` does."""
    return run_check(
        "the template's own calls are read back", lambda: f"in the syntax `{find_syntax(tokenizer).syntax}`"
    )
