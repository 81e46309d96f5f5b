"""Tokens of a record with their span bits: rendered by the tokenizer's own chat template, tokenized once."""

from __future__ import annotations

from typing import NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.spans import BIT_NAMES, TRUTH, Call, find, find_token_ranges
from kd.rendering.stops import check_stop, close_turns
from kd.rendering.tokens import check_special_tokens, tokenize
from kd.rendering.turns import render, render_text

_KINDS = {bit: name for name, bit in BIT_NAMES.items()}


class Encoded(NamedTuple):
    """Record as tokens. `bits[t]` is the span mask of token t (kd/rendering/spans.py)."""

    record_id: str
    input_ids: list[int]
    bits: list[int]
    weight: float  # of the record in every loss term; 1 where the record names no quality


class TokenSpan(NamedTuple):
    """Tokens [start, end) of a record; `kind` is one of BIT_NAMES."""

    kind: str
    start: int
    end: int


class Annotated(NamedTuple):
    """Record as a person checks it. Spans of tool and args stand in the order of `calls`."""

    encoded: Encoded
    text: str  # as rendered
    calls: list[Call]
    spans: list[TokenSpan]


def annotate(record: Record, tokenizer) -> Annotated:
    """Render a record, tokenize it, and locate its spans. `tokenizer` is a fast one with a chat template.

    Raises:
        DataError: see `check_special_tokens`, `render`, `close_turns`, `find_spans`, `tokenize` and `check_stop`; or
            the text is no Unicode, or nothing of the record is supervised.
    """
    check_special_tokens(record, tokenizer)
    text, turns = render(record, tokenizer)
    turns, added = close_turns(record, text, turns, tokenizer)
    text += added
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"record {record.id}: half a surrogate pair ({text[error.start]!r}) near "
            f"{text[max(error.start - 20, 0) : error.start]!r}; "
            "write the whole character, or remove it"
        ) from None
    calls, spans = find(record, text, turns)
    input_ids, offsets = tokenize(record, text, tokenizer, lambda other: render_text(other, tokenizer) + added)
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
    return Annotated(encoded, text, calls, [TokenSpan(_KINDS[span.bit], *at) for span, at in zip(spans, ranges)])


def encode(record: Record, tokenizer) -> Encoded:
    """Encode a record to tokens and their bits; as `annotate`."""
    return annotate(record, tokenizer).encoded
