"""Spans of a rendered conversation: the tokens that are supervised, and for what.

A span set is a bit mask per token:

    TRUTH        every token of an assistant turn, end-of-turn included
    TOOL         the name of a called function
    ARGS         the arguments of a call, as the template writes them (kd/toolcalls/locate.py), braces included
    INTEGRATION  words of an answer that carry a value out of a tool's result (kd/toolcalls/grounding.py)

Bits describe the token they stand on. The logits that predict token t are at position t - 1: `kd.batching.steps` makes
that shift, once, and nothing else does.

Spans are found in the rendered text as character ranges, then mapped through the tokenizer's offsets to the tokens *in
context*; nothing is ever tokenized on its own. A token belongs to a span when it carries at least one of its
characters; where it also carries a neighbour's, the span still has it (dropping it would leave the value's edge
untrained). A token that carries only neighbours' characters is never in a span. A token without characters (the mark
that SentencePiece puts before a text, a space whose offsets were trimmed) belongs to a span that has tokens, or the
turn's start, on both its sides.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.toolcalls.grounding import CarriedIndex
from kd.toolcalls.json_scan import TextCall
from kd.toolcalls.locate import locate_calls
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.registry import SYNTAXES
from kd.toolcalls.text.text_calls import read_text_calls

TRUTH, TOOL, ARGS, INTEGRATION = 1, 2, 4, 8
BIT_NAMES = {"truth": TRUTH, "tool": TOOL, "args": ARGS, "integration": INTEGRATION}


class Span(NamedTuple):
    """Characters [start, end) of the rendered text, and the bit they get."""

    bit: int
    start: int
    end: int


class Call(NamedTuple):
    """Call as understood: from the record's `tool_calls`, or from the text of an assistant that has none."""

    message: int
    name: str
    arguments: dict


class Found(NamedTuple):
    """Calls and spans of a rendered record. TOOL and ARGS spans stand in the order of the calls."""

    calls: list[Call]
    spans: list[Span]
    dropped: list[int]  # messages whose text beside calls is not in the turn


def find_spans(record: Record, text: str, turns: list[tuple[int, int, int]]) -> list[Span]:
    """Find the spans of a rendered record. `turns`: (index of the assistant message, start, end), characters of `text`.

    Raises:
        DataError: a call, or an answer, of the record is not in the text as the template should have written it.
    """
    return find(record, text, turns).spans


def find(record: Record, text: str, turns: list[tuple[int, int, int]]) -> Found:
    """Find the calls and the spans of a rendered record; arguments as for `find_spans`."""
    calls: list[Call] = []
    spans: list[Span] = []
    dropped: list[int] = []
    results, seen = CarriedIndex(), 0
    for index, start, end in turns:
        message = record.messages[index]
        where = f"record {record.id}: messages[{index}]"
        content = message["content"].strip()
        spans.append(Span(TRUTH, start, end))
        if message.get("tool_calls"):
            functions = [call["function"] for call in message["tool_calls"]]
            places, said = _locate_structured(text, start, end, functions, content, where)
            if content and content not in text[start:end]:
                dropped.append(index)
        else:
            written = read_text_calls(content, record.tools)
            said = _find_only(text, start, end, content)
            functions = [{"name": call.name, "arguments": call.arguments} for call in written]
            if written and said is None:
                raise DataError(f"{where}.content is not in the rendered turn; the chat template rewrites it")
            places = [_shift(call, said) for call in written] if said is not None else []
        for function, place in zip(functions, places):
            calls.append(Call(index, function["name"], function["arguments"]))
            spans += [Span(TOOL, *place.name), Span(ARGS, *place.arguments)]
        for result in record.messages[seen:index]:
            if result["role"] == "tool":
                results.add(result["content"])
        seen = index
        carried = list(results.find(content)) if content else []
        if carried and said is None and not message.get("tool_calls"):
            raise DataError(
                f"{where}.content is not in the rendered turn, or stands there more than once; the chat template "
                "rewrites it"
            )
        if said is not None:
            spans += [
                span
                for value in carried
                if not _overlaps(span := Span(INTEGRATION, said + value.start, said + value.end), places)
            ]
    return Found(calls, spans, dropped)


def _locate_structured(
    text: str, start: int, end: int, functions: list[dict], content: str, where: str
) -> tuple[list[Place], int | None]:
    """Locate a turn's calls, and the first character of its content; None where the template leaves that out.

    Content comes before the calls, or else after them. The assistant's own words are never searched for calls: they may
    quote one, and where they may as well be the call itself (its exact text, written twice) the record is refused.
    """
    first, last = text.find(content, start, end), text.rfind(content, start, end)
    places = None
    if content and first >= 0:
        after, before = (
            locate_calls(text, first + len(content), end, functions),
            locate_calls(text, start, last, functions),
        )
        if after and before and after != before:
            raise DataError(
                f"{where}.content repeats its tool_calls word for word, so which of the two is the call is not "
                "certain; remove it"
            )
        places = after or before
        first = first if after else last
    if places and content:
        return places, first if first == last or _stands_apart(text, start, end, content, places) else None
    if not content or not any(locate_calls(content, 0, len(content), [function]) for function in functions):
        places = locate_calls(text, start, end, functions)
        if places and any(_is_in(place.name, text, start, end, content) for place in places):
            places = None  # a name in the assistant's own words
    if not places:
        named = ", ".join(dict.fromkeys(function["name"] for function in functions))
        times = Counter(function["name"] for function in functions)
        beside = content if first >= 0 else ""
        absent = [name for name, n in times.items() if text.count(name, start, end) - beside.count(name) < n]
        if absent:
            raise DataError(
                f"{where}: the call of {', '.join(absent)} is not in the rendered turn: the chat template does not "
                f"write all of its {len(functions)} calls; use a template that writes parallel calls, or give each "
                "call a turn of its own"
                if len(functions) > 1
                else f"{where}: the call of {named} is not in the rendered turn: the chat template writes no calls, or "
                "none beside text; use a template with tool_calls, or take the text away; where the data hold calls as "
                "Hermes text, data.rewrite_calls: never trains them as they are written"
            )
        kept = [{**f, "arguments": {k: v for k, v in f["arguments"].items() if v is not None}} for f in functions]
        if kept != functions and locate_calls(text, start, end, kept):
            raise DataError(
                f"{where}: the chat template leaves out the arguments of {named} that are null; take them out of the "
                "record, for the student would never learn to write them"
            )
        raise DataError(
            f"{where}: the call of {named} is not in the rendered turn with these arguments, in order; this chat "
            "template leaves calls out, or writes them in a syntax that is not read (those that are: "
            f"{', '.join(SYNTAXES.names())}; see kd/toolcalls/locate.py); where the data hold calls as Hermes text, "
            "data.rewrite_calls: never trains them as they are written"
        )
    return places, None


def _is_in(place: tuple[int, int], text: str, start: int, end: int, content: str) -> bool:
    """Check that some occurrence of the content holds the whole place."""
    return (
        bool(content)
        and text.find(content, max(place[1] - len(content), start), min(place[0] + len(content), end)) >= 0
    )


def _stands_apart(text: str, start: int, end: int, content: str, places: list[Place]) -> bool:
    """Check that only the calls' own text repeats the content, so that its place beside them is certain."""
    inside = min(min(p.name[0], p.arguments[0]) for p in places), max(p.end for p in places)
    return text.count(content, start, inside[0]) + text.count(content, inside[1], end) == 1


def _find_only(text: str, start: int, end: int, content: str) -> int | None:
    at = text.find(content, start, end)
    return at if content and at >= 0 and text.find(content, at + 1, end) < 0 else None


def _shift(call: TextCall, by: int) -> Place:
    name, arguments = ((at[0] + by, at[1] + by) for at in (call.name_at, call.arguments_at))
    return Place(name, arguments, call.end + by)


def _overlaps(span: Span, places: list[Place]) -> bool:
    return any(
        span.start < end and start < span.end for place in places for start, end in (place.name, place.arguments)
    )


def find_token_ranges(offsets: list[tuple[int, int]], spans: list[Span]) -> list[tuple[int, int]]:
    """Map each span to its tokens [first, end), in the order of `spans`.

    offsets: the tokenizer's (start, end) of each token in characters, ascending.
    """
    ranges: list[tuple[int, int]] = [(0, 0)] * len(spans)
    first = 0
    for at in sorted(range(len(spans)), key=lambda i: spans[i].start):
        bit, start, end = spans[at]
        while first < len(offsets) and offsets[first][1] <= start:
            first += 1
        begin = past = last = first
        while past < len(offsets) and offsets[past][0] < end:
            past += 1
            if offsets[past - 1][1] > offsets[past - 1][0]:
                last = past
        if end <= start:
            last = begin
        if bit == TRUTH:
            while begin and offsets[begin - 1] == (start, start):
                begin -= 1
        ranges[at] = begin, last
    return ranges


def find_token_bits(offsets: list[tuple[int, int]], spans: list[Span]) -> list[int]:
    """Map spans to the bit mask of each token; as `find_token_ranges`."""
    bits = [0] * len(offsets)
    for span, (begin, end) in zip(spans, find_token_ranges(offsets, spans)):
        for token in range(begin, end):
            bits[token] |= span.bit
    return bits
