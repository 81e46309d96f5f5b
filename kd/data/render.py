"""A record rendered by the tokenizer's own chat template, tokenized once, with its span bits."""

from __future__ import annotations

from typing import NamedTuple

from jinja2 import TemplateError

from kd.data.records import DataError, Record
from kd.data.spans import TRUTH, find_spans, token_bits


class Encoded(NamedTuple):
    """One record as tokens. `bits[t]` is the span mask of token t (kd/data/spans.py)."""

    record_id: str
    input_ids: list[int]
    bits: list[int]
    weight: float  # of the record in every loss term; 1 where the record names no quality


def render(record: Record, tokenizer) -> tuple[str, list[tuple[int, int, int]]]:
    """The rendered text and, for each assistant message, (message index, first character, end) of what the model writes.

    A turn begins where the generation prompt ends and runs to the end of what the template writes for the message, so the
    end-of-turn token is in it and role headers are not.

    Raises:
        DataError: the template refuses the record, or does not write a turn where its generation prompt ends, so that its
            place is not defined.
    """
    messages = record.messages

    def written(counts: list[int], prompt: bool) -> list[str]:  # together, for the tools are then prepared once
        try:
            return tokenizer.apply_chat_template([messages[:n] for n in counts], tools=record.tools or None,
                                                 add_generation_prompt=prompt, tokenize=False)
        except (TemplateError, TypeError) as error:
            raise DataError(f"record {record.id}: the chat template refuses it: {error}") from error

    indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    text, *after = written([len(messages), *(index + 1 for index in indices if index + 1 < len(messages))], False)
    turns = []
    for index, before, through in zip(indices, written(indices, True), [*after, text]):
        turn = ""
        if text.startswith(before) and through.startswith(before):
            turn = _as_in(text, len(before), through[len(before):], messages[index]["content"].strip())
        if not turn:
            raise DataError(f"record {record.id}: messages[{index}]: the chat template does not write this turn where its generation "
                            "prompt ends, so its tokens cannot be located; use a template whose turns are appended unchanged")
        turns.append((index, len(before), len(before) + len(turn)))
    return text, turns


def _as_in(text: str, start: int, turn: str, content: str) -> str:
    """`turn`, the last one when it was rendered, as it stands at `start` of the whole text; "" where it does not.

    Some templates (Qwen3's) open the last turn with an empty block that earlier turns are without: the end of the turn, with
    all of its content, is then what the text has.
    """
    if text.startswith(turn, start):
        return turn
    return next((rest for rest in (turn[skip:] for skip in range(1, len(turn))) if text.startswith(rest, start) and content in rest), "")


def encode(record: Record, tokenizer) -> Encoded:
    """Render, tokenize and locate. `tokenizer` is a fast tokenizer with a chat template.

    Raises:
        DataError: see `render` and `find_spans`; or the text is no Unicode, or nothing of the record is supervised.
    """
    text, turns = render(record, tokenizer)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"record {record.id}: half a surrogate pair ({text[error.start]!r}) near {text[max(error.start - 20, 0):error.start]!r}; "
                        "write the whole character, or remove it") from None
    spans = find_spans(record, text, turns)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    bits = token_bits(tokens["offset_mapping"], spans)
    if not any(b & TRUTH for b in bits[1:]):
        raise DataError(f"record {record.id}: no supervised token")
    return Encoded(record.id, tokens["input_ids"], bits, 1.0 if record.quality is None else float(record.quality))
