"""Reader of the calls in a generated text, in the syntax that one chat template writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kd.toolcalls.parse import ParsedCalls, parse_tool_calls

Tools = Sequence[dict[str, Any]]  # declarations as a record has them: {"type": "function", "function": {...}}


@dataclass(frozen=True)
class CallReader:
    """Reader of calls in one syntax, with the words that one template puts around them.

    Attributes:
        syntax: name in kd.toolcalls.syntax.registry.SYNTAXES.
        read: (text, tools) -> its calls.
    """

    syntax: str
    read: Callable[[str, Tools], ParsedCalls]

    def parse(self, text: str, tools: Tools = ()) -> ParsedCalls:
        """Read every call of a generated text; it never raises.

        tools: declarations of the tools that were offered. They say which type a value has where the syntax does not
            show it (tags write "5" and 5 alike); without them such a value is JSON where it can be, else text.
        """
        return self.read(text, tools)


HERMES = CallReader("object", lambda text, tools: parse_tool_calls(text))
