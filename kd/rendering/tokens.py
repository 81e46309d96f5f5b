"""Tokens of a rendered conversation, in which the control tokens are the template's and nobody else's.

A tokenizer turns the text "<|im_end|>" into the token that ends a turn wherever it stands. Where a record holds such a
text (kd/rendering/control_tokens.py lists them):

    content of system, user and tool   it is tokenized as plain characters; else it would forge a turn
    assistant: content, tool calls     the record is refused: it would be trained, and end the answer or the arguments
                                       early; rewritten, something would be trained that nobody wrote
    declarations of tools, all else    the record is refused: these are the author's own words, and can be written
                                       another way
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kd.records.checks import DataError, SpecialTokenError
from kd.records.record import Record
from kd.rendering.control_tokens import compile_special_tokens, control_ids, read_as_text

_MASK = "\ue000"  # one for each character, so that places stay; of no other use in a text
_NEUTRAL = ("system", "user", "tool")  # roles whose content may hold the text of a special token

Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and the characters of each


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
        apart, control = _plain(masked, tokenizer), control_ids(tokenizer)
        if _in_pieces(masked, cuts, tokenizer) == apart:
            tokens = _in_pieces(text, cuts, tokenizer)
            if sum(i in control for i in tokens[0]) == sum(i in control for i in apart[0]):
                return tokens
    index, found = next(iter(quotes.items()))
    raise DataError(
        f"record {record.id}: messages[{index}].content holds {found!r}, a special token of this tokenizer, which "
        "cannot be kept apart from the template's own; write it another way, or remove the record"
    )


def tokenize_after(prompt: Tokens, text: str, start: int, tokenizer) -> Tokens:
    """Tokenize text[start:] as what follows the tokens of `prompt`, those of text[:start], merged with none of them.

    It is tokenized behind a control token, so that no tokenizer takes it for the beginning of a text.
    """
    anchor = next((token for token in tokenizer.all_special_tokens if token), "")
    (head, _), (ids, offsets) = _plain(anchor, tokenizer), _plain(anchor + text[start:], tokenizer)
    if ids[: len(head)] != head:
        raise AssertionError(f"{anchor!r} is a special token, and stays one before any text")
    by = start - len(anchor)
    turn = [(a + by, b + by) for a, b in offsets[len(head) :]]
    return prompt[0] + ids[len(head) :], prompt[1] + turn


def _plain(text: str, tokenizer) -> Tokens:
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tokens["input_ids"], tokens["offset_mapping"]


def _in_pieces(text: str, cuts: list[tuple[int, int]], tokenizer) -> Tokens:
    """Tokenize the special tokens at `cuts`, and the text between them as plain characters."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    done, as_text = 0, read_as_text(tokenizer)
    for start, end in [*cuts, (len(text), len(text))]:
        if done < start:
            piece = as_text.encode(text[done:start], add_special_tokens=False)
            ids += piece.ids
            offsets += [(done + a, done + b) for a, b in piece.offsets]
        if start < end:
            control, places = _plain(text[start:end], tokenizer)
            ids += control
            offsets += [(start + a, start + b) for a, b in places]
        done = end
    return ids, offsets
