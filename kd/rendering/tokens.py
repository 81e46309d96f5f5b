"""Tokens of a rendered conversation, in which the control tokens are the template's and nobody else's.

A tokenizer turns the text "<|im_end|>" into the token that ends a turn wherever it stands. Where a record holds such a
text:

    content of system, user and tool   it is tokenized as plain characters; else it would forge a turn
    assistant: content, tool calls     the record is refused: it would be trained, and end the answer or the arguments
                                       early; rewritten, something would be trained that nobody wrote
    declarations of tools, all else    the record is refused: these are the author's own words, and can be written
                                       another way
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from kd.records.checks import DataError, SpecialTokenError
from kd.records.record import Record

_MASK = "\ue000"  # one for each character, so that places stay; of no other use in a text
_NEUTRAL = ("system", "user", "tool")  # roles whose content may hold the text of a special token

Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and the characters of each


@lru_cache(maxsize=8)
def compile_special_tokens(tokenizer) -> re.Pattern[str] | None:
    """Compile a pattern of the strings that this tokenizer turns into control tokens; None where it has none."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    strings = sorted(filter(None, added | set(tokenizer.all_special_tokens)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, strings))) if strings else None


def check_special_tokens(record: Record, tokenizer) -> None:
    """Refuse a record in which the text of a special token stands where it cannot stay text (the rule: above).

    Raises:
        SpecialTokenError: names the record, the field and the token.
    """
    special = compile_special_tokens(tokenizer)
    stack: list[tuple[str, Any]] = [("tools", record.tools)]
    for index, message in enumerate(record.messages):
        own = ("role", "content") if message["role"] in _NEUTRAL else ("role",)
        stack.append((f"messages[{index}]", {key: value for key, value in message.items() if key not in own}))
    while special is not None and stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((f"{where}.{key}", inner) for key, inner in value.items())
            value = "\n".join(key for key in value if isinstance(key, str))
        elif isinstance(value, list):
            stack.extend((f"{where}[{index}]", inner) for index, inner in enumerate(value))
        if isinstance(value, str) and (found := special.search(value)):
            raise SpecialTokenError(
                f"record {record.id}: {where}: holds {found[0]!r}, a special token of this tokenizer; write it "
                "another way, or remove the record"
            )


def tokenize(record: Record, text: str, tokenizer, rendered: Callable[[Record], str]) -> Tokens:
    """Tokenize `text`, the rendering of `record`, to ids and offsets; `rendered` renders another record alike.

    Raises:
        DataError: a special token's text in a message cannot be told from the template's own, or kept apart from it.
    """
    special = compile_special_tokens(tokenizer)
    if special is None:
        return _plain(text, tokenizer)
    quotes = {
        index: found[0]
        for index, message in enumerate(record.messages)
        if message["role"] in _NEUTRAL and (found := special.search(message["content"]))
    }
    if not quotes:
        return _plain(text, tokenizer)
    messages = list(record.messages)
    for index in quotes:
        messages[index] = {
            **messages[index],
            "content": special.sub(lambda match: _MASK * len(match[0]), messages[index]["content"]),
        }
    masked = rendered(replace(record, messages=messages))
    if len(masked) == len(text) and all(a == b or b == _MASK for a, b in zip(text, masked)):
        cuts = [match.span() for match in special.finditer(masked)]
        # this tokenizer must give the pieces the tokens that the whole text has
        if _in_pieces(masked, cuts, tokenizer) == _plain(masked, tokenizer):
            return _in_pieces(text, cuts, tokenizer)
    index, found = next(iter(quotes.items()))
    raise DataError(
        f"record {record.id}: messages[{index}].content holds {found!r}, a special token of this tokenizer, which "
        "cannot be kept apart from the template's own; write it another way, or remove the record"
    )


def _plain(text: str, tokenizer, **options) -> Tokens:
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
    return tokens["input_ids"], tokens["offset_mapping"]


def _in_pieces(text: str, cuts: list[tuple[int, int]], tokenizer) -> Tokens:
    """Tokenize the special tokens at `cuts`, and the text between them as plain characters."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    done = 0
    for start, end in [*cuts, (len(text), len(text))]:
        for begin, piece, options in (
            (done, text[done:start], {"split_special_tokens": True}),
            (start, text[start:end], {}),
        ):
            if piece:
                new, places = _plain(piece, tokenizer, **options)
                ids += new
                offsets += [(begin + a, begin + b) for a, b in places]
        done = end
    return ids, offsets
