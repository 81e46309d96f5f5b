"""Calls that a generated text makes, read with a JSON scanner.

A call is written <tool_call>{"name": ..., "arguments": {...}}</tool_call>; a text may hold several. The scanner reads
the JSON itself, so braces, quotes and even tags inside strings stay characters of a string. Calls that are valid as
written and calls that json-repair mends are kept apart: a mended call never counts as a valid one.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import json_repair

from kd.toolcalls.json_scan import skip_space
from kd.toolcalls.json_values import MAX_DEPTH, show_json

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"


class ParsedCalls(NamedTuple):
    """Calls of one text. A block that does not parse as written is in `problems`, never in `calls`."""

    calls: list[dict]  # {"name": str, "arguments": dict} of each block that is valid as written, in order
    problems: list[str]  # one for each block that is not
    spans: list[tuple[int, int]]  # character span of every block, tags included
    text_outside: str  # the text less its blocks, stripped
    repaired_calls: list[dict]  # as `calls`, with the blocks that json-repair could mend, in order

    @property
    def valid(self) -> bool:
        """At least one block, and every block valid as written."""
        return bool(self.spans) and not self.problems

    @property
    def valid_after_repair(self) -> bool:
        """At least one block, and every block valid as written or mended by json-repair."""
        return bool(self.spans) and len(self.repaired_calls) == len(self.spans)


def parse_tool_calls(text: str) -> ParsedCalls:
    """Read every <tool_call> block of a generated text.

    A block is valid when it holds exactly one JSON object with a string "name" and an object "arguments", without
    duplicate keys or NaN, and is closed by </tool_call>. A block that is not ends at the next tag or the end of the
    text.
    """
    calls, problems, spans, repaired, outside = [], [], [], [], []
    done = 0
    while (start := text.find(CALL_OPEN, done)) >= 0:
        outside.append(text[done:start])
        body = start + len(CALL_OPEN)
        call, end, problem = _scan_block(text, body)
        if problem:
            problems.append(f"call {len(spans) + 1}: {problem}")
            mended = _repair(text[body:end])
            if mended is not None:
                repaired.append(mended)
            if text.startswith(CALL_CLOSE, end):
                end += len(CALL_CLOSE)
        else:
            calls.append(call)
            repaired.append(call)
        spans.append((start, end))
        done = end
    outside.append(text[done:])
    return ParsedCalls(calls, problems, spans, "".join(outside).strip(), repaired)


def _scan_block(text: str, body: int) -> tuple[dict, int, str]:
    """Read a block: (call, end past the closing tag, ""), or ({}, end of its body, problem)."""
    start = skip_space(text, body)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        end = _next_tag(text, body)
        closed = "" if text.startswith(CALL_CLOSE, end) else f", and the block is not closed by {CALL_CLOSE}"
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return {}, end, f"not valid JSON: {reason} (character {getattr(error, 'pos', start) - body}){closed}"
    rest = skip_space(text, end)
    if not text.startswith(CALL_CLOSE, rest):
        tag = _next_tag(text, end)
        closed = text.startswith(CALL_CLOSE, tag)
        return (
            {},
            tag,
            f"text after the JSON: {show_json(text[end:tag].strip())}"
            if closed
            else f"the block is not closed by {CALL_CLOSE}",
        )
    problem = _call_problem(value)
    return (value, rest, problem) if problem else (_bare(value), rest + len(CALL_CLOSE), "")


def _next_tag(text: str, start: int) -> int:
    found = [at for at in (text.find(CALL_CLOSE, start), text.find(CALL_OPEN, start)) if at >= 0]
    return min(found, default=len(text))


def _call_problem(value: object) -> str:
    if not isinstance(value, dict):
        return f"a call is one JSON object, not {show_json(value)}"
    if not isinstance(value.get("name"), str):
        return 'no string "name" in the call'
    if not isinstance(value.get("arguments"), dict):
        return 'no object "arguments" in the call'
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level if isinstance(outer, (dict, list)) for inner in _children(outer)]
    return f"nested deeper than {MAX_DEPTH} levels" if level else ""


def _children(value: dict | list) -> list:
    return list(value.values()) if isinstance(value, dict) else value


def _bare(value: dict) -> dict:
    return {"name": value["name"], "arguments": value["arguments"]}


def _repair(body: str) -> dict | None:
    try:
        value = json_repair.loads(body)
        if not isinstance(value, dict) or _call_problem(value):
            return None
        json.dumps(value, allow_nan=False)  # json-repair lets NaN through
    except (ValueError, RecursionError):  # past mending
        return None
    return _bare(value)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object names a key twice")  # parsers disagree on which one counts
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
