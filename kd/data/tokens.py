"""Tokens of a rendered conversation, in which the control tokens are the template's and nobody else's.

A tokenizer turns the text "<|im_end|>" into the token that ends a turn wherever it stands. Where a user's message or a
tool's result holds such a text, it would forge a turn: there it is tokenized as the plain characters that it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Callable

from kd.data.records import DataError, Record, special_tokens

_MASK = "\ue000"  # one for each character, so that places stay; of no other use in a text
_special = lru_cache(maxsize=8)(special_tokens)

Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and the characters of each


def tokenize(record: Record, text: str, tokenizer, rendered: Callable[[Record], str]) -> Tokens:
    """Ids and offsets of `text`, the rendering of `record`; `rendered` renders another one alike.

    Raises:
        DataError: a special token's text in a message cannot be told from the template's own, or kept apart from it.
    """
    special = _special(tokenizer)
    quoting = [i for i, m in enumerate(record.messages) if special and m["role"] in ("user", "tool") and special.search(m["content"])]
    if not quoting:
        return _plain(text, tokenizer)
    messages = list(record.messages)
    for index in quoting:
        messages[index] = {**messages[index], "content": special.sub(lambda match: _MASK * len(match[0]), messages[index]["content"])}
    masked = rendered(replace(record, messages=messages))
    if len(masked) == len(text) and all(a == b or b == _MASK for a, b in zip(text, masked)):
        cuts = [match.span() for match in special.finditer(masked)]
        if _in_pieces(masked, cuts, tokenizer) == _plain(masked, tokenizer):  # pieces are what the whole is, for this tokenizer
            return _in_pieces(text, cuts, tokenizer)
    found = special.search(record.messages[quoting[0]]["content"])[0]
    raise DataError(f"record {record.id}: messages[{quoting[0]}].content holds {found!r}, a special token of this tokenizer, which cannot be "
                    "kept apart from the template's own; write it another way, or remove the record")


def _plain(text: str, tokenizer, **options) -> Tokens:
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
    return tokens["input_ids"], tokens["offset_mapping"]


def _in_pieces(text: str, cuts: list[tuple[int, int]], tokenizer) -> Tokens:
    """The special tokens at `cuts`, and what stands between them without any."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    done = 0
    for start, end in [*cuts, (len(text), len(text))]:
        for begin, piece, options in ((done, text[done:start], {"split_special_tokens": True}), (start, text[start:end], {})):
            if piece:
                new, places = _plain(piece, tokenizer, **options)
                ids += new
                offsets += [(begin + a, begin + b) for a, b in places]
        done = end
    return ids, offsets
