"""A record rendered by the tokenizer's own chat template, tokenized once, with its span bits."""

from __future__ import annotations

from typing import NamedTuple

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
        DataError: the template rewrites earlier turns when later ones are added, so a turn's place is not defined.
    """
    messages, tools = record.messages, record.tools or None

    def written(count: int, prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(messages[:count], tools=tools, add_generation_prompt=prompt, tokenize=False)

    text = written(len(messages))
    turns = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = written(index, prompt=True)
        after = text if index + 1 == len(messages) else written(index + 1)
        if not text.startswith(before) or not text.startswith(after) or len(after) <= len(before):
            raise DataError(f"record {record.id}: messages[{index}]: the chat template does not write this turn where its generation "
                            "prompt ends, so its tokens cannot be located; use a template whose turns are appended unchanged")
        turns.append((index, len(before), len(after)))
    return text, turns


def encode(record: Record, tokenizer) -> Encoded:
    """Render, tokenize and locate. `tokenizer` is a fast tokenizer with a chat template.

    Raises:
        DataError: see `render` and `find_spans`; or nothing of the record is supervised.
    """
    text, turns = render(record, tokenizer)
    spans = find_spans(record, text, turns)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    bits = token_bits(tokens["offset_mapping"], spans)
    if not any(b & TRUTH for b in bits[1:]):
        raise DataError(f"record {record.id}: no supervised token")
    return Encoded(record.id, tokens["input_ids"], bits, 1.0 if record.quality is None else float(record.quality))


