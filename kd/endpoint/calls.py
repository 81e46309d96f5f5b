"""Calls of a server's answer: its own, or those that its text has.

Where it returns none of its own they are read as written: in <tool_call> tags, else in any of the forms of
kd/toolcalls/text/text_calls.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd.endpoint.chat import Chat, fit_names
from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.reader import HERMES
from kd.toolcalls.syntax.strict_json import JsonProblem, Mender, explain, find_excess, read_json
from kd.toolcalls.text.text_calls import find_mentions, read_text_calls


def read_calls(chat: Chat, tools: Sequence[dict[str, Any]]) -> ParsedCalls:
    """Read the calls of an answer, by the names of `tools` as a record has them."""
    if not chat.calls:
        return _read_in_text(chat.text, tools)
    names = {sent: name for name, sent in fit_names(tools).items()}
    return _read_native([(names.get(name, name), arguments) for name, arguments in chat.calls], chat.text)


def _read_native(calls: Sequence[tuple[str, str]], text: str) -> ParsedCalls:
    """Read calls whose arguments are JSON texts; each counts as a block at the text's beginning."""
    right, problems, repaired, mender = [], [], [], Mender()
    for number, (name, arguments) in enumerate(calls, 1):
        try:
            value, end = read_json(arguments.strip() or "{}", 0)
            problem = "text after the arguments" if end < len(arguments.strip()) else find_excess(value)
        except JsonProblem as error:
            value, problem = None, explain(error, 0)
        if not problem and not isinstance(value, dict):
            problem = "the arguments are no object"
        if not problem and not name:
            problem = "the call names no function"
        if not problem:
            right.append({"name": name, "arguments": value})
            repaired.append(right[-1])
            continue
        problems.append(f"call {number}: {problem}")
        mended = mender.mend(arguments)
        if name and isinstance(mended, dict):
            repaired.append({"name": name, "arguments": mended})
    return ParsedCalls(right, problems, [(0, 0)] * len(calls), text.strip(), repaired)


def _read_in_text(text: str, tools: Sequence[dict[str, Any]]) -> ParsedCalls:
    parsed = HERMES.parse(text, tools)
    if parsed.spans or not tools:
        return parsed
    found = read_text_calls(text, tools)
    calls = [{"name": call.name, "arguments": call.arguments} for call in found]
    broken = find_mentions(text, tools, found)
    problems = [f"a call that is not read: {text[one.start : one.end][:80]!r}" for one in broken]
    spans = sorted([(call.start, call.end) for call in found] + [(one.start, one.end) for one in broken])
    outside = "".join(
        text[end:start] for end, start in zip([0, *(e for _, e in spans)], [*(s for s, _ in spans), None])
    )
    return ParsedCalls(calls, problems, spans, outside.strip(), calls)
