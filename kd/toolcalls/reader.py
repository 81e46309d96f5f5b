"""Reader of the calls in a generated text, in the syntax that one chat template writes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.syntax.frame import Frame
from kd.toolcalls.syntax.json_object import ObjectBody
from kd.toolcalls.syntax.registry import Parse
from kd.toolcalls.syntax.sections import Tools, read_sections

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class CallReader:
    """Reader of calls in one syntax, with the words that one template puts around them.

    Attributes:
        syntax: name in kd.toolcalls.syntax.registry.SYNTAXES.
        read: (text, tools) -> its calls.
    """

    syntax: str
    read: Parse

    def parse(self, text: str, tools: Tools = ()) -> ParsedCalls:
        """Read every call of a generated text; it never raises.

        tools: declarations of the tools that were offered. They say which type a value has where the syntax does not
            show it (tags write "5" and 5 alike); without them such a value is JSON where it can be, else text.
        """
        return self.read(text, tools)


def _make_hermes() -> CallReader:
    opens, closes = (re.compile(rf"\s*{re.escape(tag)}") for tag in (CALL_OPEN, CALL_CLOSE))
    start, mark = re.compile(re.escape(CALL_OPEN)), re.compile(f"{CALL_CLOSE}|{CALL_OPEN}")
    frame = Frame(start, opens, None, closes, mark, CALL_OPEN, CALL_CLOSE, ends_turn=False)
    body = ObjectBody("name", "arguments")
    return CallReader("object", lambda text, tools: read_sections(text, frame, body, tools))


HERMES = _make_hermes()
"""Reader of Hermes' and Qwen's form, whose every call is <tool_call>{"name": ..., "arguments": {...}}</tool_call>.

A block is valid when it holds exactly one JSON object with a string "name" and an object "arguments", without duplicate
keys or NaN, and is closed by </tool_call>. A block that is not ends at the next tag or the end of the text.
"""
