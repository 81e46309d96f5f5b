"""Which tokens of a rendered conversation are supervised, and for what.

A span set is a bit mask per token:

    TRUTH        every token of an assistant turn, end-of-turn included
    TOOL         the name of a called function
    ARGS         the arguments object of a call, braces included
    INTEGRATION  words of an answer that carry a value out of a tool's result (kd/carried.py)

Bits describe the token they stand on. The logits that predict token t are at position t - 1: `kd.data.batches` makes that
shift, once, and nothing else does.

Spans are found in the rendered text as character ranges, then mapped through the tokenizer's offsets to the tokens *in
context*; nothing is ever tokenized on its own. A token belongs to a span when it carries at least one of its characters;
where it also carries a neighbour's, the span still has it (dropping it would leave the value's edge untrained).
"""

from __future__ import annotations

import json
import re
from typing import Iterator, NamedTuple

from kd.calls import same_json
from kd.carried import carried_values
from kd.data.records import DataError, Record

TRUTH, TOOL, ARGS, INTEGRATION = 1, 2, 4, 8
BIT_NAMES = {"truth": TRUTH, "tool": TOOL, "args": ARGS, "integration": INTEGRATION}
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


class Span(NamedTuple):
    """Characters [start, end) of the rendered text, and the bit they get."""

    bit: int
    start: int
    end: int


def find_spans(record: Record, text: str, turns: list[tuple[int, int, int]]) -> list[Span]:
    """The spans of a rendered record. `turns`: (index of the assistant message, start, end) in characters of `text`.

    Raises:
        DataError: a call, or an answer, of the record is not in the text as the template should have written it.
    """
    spans = []
    for index, start, end in turns:
        spans.append(Span(TRUTH, start, end))
        message = record.messages[index]
        cursor = start
        for call in message.get("tool_calls", ()):
            name, arguments = _locate_call(text, cursor, end, call["function"], record.id, index)
            spans += [Span(TOOL, *name), Span(ARGS, *arguments)]
            cursor = arguments[1]
        results = [m["content"] for m in record.messages[:index] if m["role"] == "tool"]
        content = message["content"].strip()
        if results and content:
            at = text.find(content, start, end)
            if at < 0:
                raise DataError(f"record {record.id}: messages[{index}].content is not in the rendered turn; the chat template rewrites it")
            spans += [Span(INTEGRATION, at + c.start, at + c.end) for c in carried_values(content, results)]
    return spans


def _locate_call(text: str, start: int, end: int, function: dict, record_id: str, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Character ranges of the name and of the arguments of the next JSON object in text[start:end] that is this call."""
    brace = text.find("{", start, end)
    while brace >= 0:
        members = dict(_members(text, brace))
        name, arguments = members.get("name"), members.get("arguments") or members.get("parameters")
        if name and arguments and name[0] == function["name"] and same_json(arguments[0], function["arguments"]) and arguments[2] <= end:
            return (name[1] + 1, name[2] - 1), arguments[1:]
        brace = text.find("{", brace + 1, end)
    raise DataError(f"record {record_id}: messages[{index}]: the call of {function['name']} is not in the rendered turn as a JSON object "
                    "with name and arguments; this chat template writes calls in a form that is not supported")


def _members(text: str, brace: int) -> Iterator[tuple[str, tuple[object, int, int]]]:
    """(key, (value, start, end)) of the object that opens at `brace`; stops at the first thing that is not JSON."""
    at = brace + 1
    try:
        while True:
            key_at = _SPACE.match(text, at).end()
            key, at = _DECODER.raw_decode(text, key_at)
            colon = _SPACE.match(text, at).end()
            if not isinstance(key, str) or text[colon:colon + 1] != ":":
                return
            start = _SPACE.match(text, colon + 1).end()
            value, at = _DECODER.raw_decode(text, start)
            yield key, (value, start, at)
            comma = _SPACE.match(text, at).end()
            if text[comma:comma + 1] != ",":
                return
            at = comma + 1
    except (ValueError, RecursionError):  # not JSON from here on, which is an answer and no error: prose may hold braces
        return


def token_bits(offsets: list[tuple[int, int]], spans: list[Span]) -> list[int]:
    """The bit mask of each token; `offsets` are the tokenizer's (start, end) in characters, ascending."""
    bits = [0] * len(offsets)
    first = 0
    for span in sorted(spans, key=lambda s: s.start):
        while first < len(offsets) and offsets[first][1] <= span.start:
            first += 1
        token = first
        while token < len(offsets) and offsets[token][0] < span.end:
            if offsets[token][1] > offsets[token][0]:
                bits[token] |= span.bit
            token += 1
    return bits
