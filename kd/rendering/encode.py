"""Tokens of a record with their span bits: rendered by the tokenizer's own chat template.

A record is one sequence where the template only appends, so that each turn stands, token for token, after the
generation prompt that the model sees; else one for each assistant turn, rendered as at inference (data.turns).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.beginnings import Beginnings
from kd.rendering.control_tokens import control_ids
from kd.rendering.spans import BIT_NAMES, TRUTH, Call, find, find_token_ranges
from kd.rendering.stops import check_stop, close_turns
from kd.rendering.tokens import Tokens, check_special_tokens, tokenize, tokenize_after
from kd.rendering.turns import Turn, render_text, render_turn, render_whole
from kd.rendering.written import check_prompt, check_sequence, check_turn
from kd.sources.source import Source

_KINDS = {bit: name for name, bit in BIT_NAMES.items()}


UNSEEN = (
    "the chat template shows none of the offered tools, so the model is asked to call what it does not see: use a "
    "template that writes tools, or declare them in the system prompt, there and where the model is served"
)


class Encoded(NamedTuple):
    """Sequence of tokens of a record. `bits[t]` is the span mask of token t (kd/rendering/spans.py)."""

    record_id: str  # of one of several sequences of a record: its id, # and the index of the assistant message
    input_ids: list[int]
    bits: list[int]
    weight: float  # of the record in every loss term; 1 where the record names no quality


class TokenSpan(NamedTuple):
    """Tokens [start, end) of a record; `kind` is one of BIT_NAMES."""

    kind: str
    start: int
    end: int


class Annotated(NamedTuple):
    """Sequence as a person checks it. Spans of tool and args stand in the order of `calls`."""

    encoded: Encoded
    text: str  # as rendered
    calls: list[Call]
    spans: list[TokenSpan]
    offsets: list[tuple[int, int]]  # characters of each token
    dropped: tuple[int, ...] = ()  # messages whose text beside calls the template leaves out
    are_unseen: bool = False  # tools are offered, and the prompt shows none of them


TurnsChoice = Literal["auto", "whole", "each"]


def annotate(record: Record, tokenizer) -> Annotated:
    """Render a record whole, tokenize it, and locate its spans. `tokenizer` is a fast one with a chat template.

    Raises:
        DataError: see `check_special_tokens`, `render_whole`, `close_turns`, `find_spans`, `tokenize`, `check_stop` and
            `check_sequence`; or the text is no Unicode, or nothing of the record is supervised.
    """
    return annotate_sequences(record, tokenizer, "whole")[0]


def encode(record: Record, tokenizer) -> Encoded:
    """Encode a record to the tokens of one sequence and their bits; as `annotate`."""
    return annotate(record, tokenizer).encoded


def annotate_sequences(
    record: Record, tokenizer, turns: TurnsChoice = "auto", *, only: int | None = None
) -> list[Annotated]:
    """Make the sequences of a record, in the order of its turns; `turns` is data.turns.

    only: number of the one sequence to make; None for all. A record that has one past the first is not rendered whole.

    Raises:
        DataError: as `annotate`, and as `render_turn`.
    """
    check_special_tokens(record, tokenizer)
    beginnings = Beginnings(record, tokenizer)
    if turns != "each" and not only:
        try:
            whole = render_whole(beginnings)
        except DataError:
            if turns == "whole":
                raise
            whole = None
        if whole is not None and (whole.exact or turns == "whole"):
            places, added = close_turns(record, whole.text, whole.turns, tokenizer)
            text = _check_unicode(record, whole.text + added)
            tokens = tokenize(record, text, tokenizer, lambda other: render_text(other, tokenizer) + added)
            if turns == "whole" or all(_follows_prompt(text, start, tokens, tokenizer) for _, start, _ in places):
                found = _annotate(record, text, places, tokens, tokenizer)
                return [found._replace(are_unseen=check_sequence(beginnings, text, places))]
    indices = beginnings.turns
    wanted = indices if only is None else indices[only : only + 1]
    return [_annotate_turn(beginnings, index, is_only=len(indices) == 1) for index in wanted]


def encode_sequences(
    record: Record, tokenizer, turns: TurnsChoice = "auto", *, only: int | None = None
) -> list[Encoded]:
    """Encode a record to its sequences; as `annotate_sequences`."""
    return [found.encoded for found in annotate_sequences(record, tokenizer, turns, only=only)]


def encode_at(
    source: Source, index: int, tokenizer, turns: TurnsChoice = "auto", *, only: int | None = None
) -> list[Encoded]:
    """Encode a record of a source to its sequences; as `annotate_sequences`.

    Raises:
        DataError: as `annotate_sequences`, its message after the record's file and line, as verify has it.
    """
    record = source[index]
    try:
        return encode_sequences(record, tokenizer, turns, only=only)
    except DataError as error:
        raise type(error)(f"{source.place(index)}: {error}") from None


def encode_prompt(record: Record, index: int, tokenizer) -> tuple[str, list[int]]:
    """Encode what the model sees before it writes messages[index], as `encode_sequences` does: (text, token ids).

    Raises:
        DataError: the template refuses it, or leaves a part of it out (`check_prompt`).
    """
    beginnings = Beginnings(record, tokenizer)
    (text,) = beginnings.prompts([index - beginnings.merged])
    check_prompt(beginnings, index, text)
    return text, _tokenize_prompt(beginnings, index - beginnings.merged, text)[0]


def may_split(tokenizer, turns: TurnsChoice) -> bool:
    """Tell whether records may become several sequences: under auto, where one of two short conversations does."""
    return _splits(tokenizer, json.dumps(tokenizer.chat_template)) if turns == "auto" else turns == "each"


@lru_cache(maxsize=16)
def _splits(tokenizer, template: str) -> bool:
    call = {"id": "call00001", "type": "function", "function": {"name": "find_place", "arguments": {"days": 3}}}
    tool = {"name": "find_place", "description": "", "parameters": {"type": "object", "properties": {}}}
    asked = {"role": "user", "content": "How long? (find_place)"}  # named, for templates that leave tools out
    said = {"role": "assistant", "content": "It is 41 km."}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call00001", "name": "find_place", "content": "41 km"}
    chat = Record("probe", [asked, said] * 3)
    calls = Record("probe", [asked, called, result, said] * 2, [{"type": "function", "function": tool}])
    try:
        if len(annotate_sequences(chat, tokenizer)) > 1:
            return True
    except DataError:
        return True
    try:
        return len(annotate_sequences(calls, tokenizer)) > 1
    except DataError:  # a template without calls
        return False


def _annotate_turn(beginnings: Beginnings, index: int, *, is_only: bool) -> Annotated:
    tokenizer, number = beginnings.tokenizer, index + beginnings.merged
    text, start = render_turn(beginnings, index)
    record = replace(beginnings.record, messages=beginnings.record.messages[: number + 1])
    places, added = close_turns(record, text, [(number, start, len(text))], tokenizer)
    text = _check_unicode(record, text + added)

    def rendered(other: Record) -> str:
        return render_turn(Beginnings(other, tokenizer), index)[0] + added

    tokens = tokenize(record, text, tokenizer, rendered)
    if not _follows_prompt(text, start, tokens, tokenizer):
        tokens = tokenize_after(_tokenize_prompt(beginnings, index, text[:start]), text, start, tokenizer)
    found = _annotate(record, text, places, tokens, tokenizer)
    found = found._replace(are_unseen=check_turn(beginnings, text, places[0]))
    named = found.encoded.record_id if is_only else f"{found.encoded.record_id}#{number}"
    return found._replace(encoded=found.encoded._replace(record_id=named))


def _tokenize_prompt(beginnings: Beginnings, index: int, text: str) -> Tokens:
    record = beginnings.record
    history = replace(record, messages=record.messages[: index + beginnings.merged])
    return tokenize(
        history, text, beginnings.tokenizer, lambda other: Beginnings(other, beginnings.tokenizer).prompts([index])[0]
    )


def _follows_prompt(text: str, start: int, tokens: Tokens, tokenizer) -> bool:
    """Tell whether the tokens before `start`, where a turn begins, are those of the prompt that ends there.

    A tokenizer cuts a text at control tokens first, so those from the last one on decide.
    """
    ids, offsets = tokens
    first = bisect_left(offsets, start, key=lambda at: at[0])
    if first and offsets[first - 1][1] > start:
        return False
    control = control_ids(tokenizer)
    begin = next((at for at in range(first - 1, -1, -1) if ids[at] in control), 0)
    if begin == first - 1 and ids[begin] in control and offsets[begin][1] == start:
        return True
    return _ids_of(tokenizer, text[offsets[begin][0] if begin else 0 : start]) == tuple(ids[begin:first])


@lru_cache(maxsize=4096)
def _ids_of(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _check_unicode(record: Record, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"record {record.id}: half a surrogate pair ({text[error.start]!r}) near "
            f"{text[max(error.start - 20, 0) : error.start]!r}; "
            "write the whole character, or remove it"
        ) from None
    return text


def _annotate(record: Record, text: str, turns: list[Turn], tokens: Tokens, tokenizer) -> Annotated:
    calls, spans, dropped = find(record, text, turns)
    input_ids, offsets = tokens
    ranges = find_token_ranges(offsets, spans)
    bits = [0] * len(input_ids)
    for span, (start, end) in zip(spans, ranges):
        for token in range(start, end):
            bits[token] |= span.bit
    trained = (at for span, at in zip(spans, ranges) if span.bit == TRUTH)
    for (index, *_), (start, end) in zip(turns, trained):
        texts = [text[slice(*place)] for place in offsets[start:end]]
        check_stop(record, index, input_ids[start:end], texts, tokenizer)
    if not any(b & TRUTH for b in bits[1:]):
        raise DataError(f"record {record.id}: no supervised token; remove the record")
    encoded = Encoded(record.id, input_ids, bits, 1.0 if record.quality is None else float(record.quality))
    located = [TokenSpan(_KINDS[span.bit], *at) for span, at in zip(spans, ranges)]
    return Annotated(encoded, text, calls, located, offsets, tuple(dropped))
