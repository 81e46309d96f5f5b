"""Control tokens of a tokenizer: its special tokens, and the marks among its added tokens that its template writes.

A tokenizer need not flag them (DeepSeek's role marks, Qwen's `<tool_call>` are added tokens with special = false), and
still turns their text into the token wherever it stands. An added token counts where the template's source, or the
probe of kd/rendering/template_needs.py as rendered, has it. Added words and runs of spaces are no marks.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from kd.rendering.template_needs import render_probe

_MARK = re.compile(r"[^\w\s].*[^\w\s]", re.DOTALL)  # <|user|>, [INST]; no word, no run of spaces


class _Controls(NamedTuple):
    ids: dict[str, int]  # of each text, the longest first
    numbers: frozenset[int]
    pattern: re.Pattern[str] | None


def list_control_tokens(tokenizer) -> dict[str, int]:
    """List the texts that this tokenizer turns into control tokens, the longest first, with their ids."""
    return _find(tokenizer, _key(tokenizer)).ids


def compile_special_tokens(tokenizer) -> re.Pattern[str] | None:
    """Compile a pattern of the texts that this tokenizer turns into control tokens; None where it has none."""
    return _find(tokenizer, _key(tokenizer)).pattern


def control_ids(tokenizer) -> frozenset[int]:
    """Return the ids of the control tokens."""
    return _find(tokenizer, _key(tokenizer)).numbers


def _key(tokenizer) -> str:
    template = tokenizer.chat_template
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


@lru_cache(maxsize=16)
def _find(tokenizer, template: str) -> _Controls:
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    marks = {token.content for token in added if len(token.content) > 2 and _MARK.fullmatch(token.content)} - special
    if marks:
        written = _source(tokenizer.chat_template) + render_probe(tokenizer)
        special |= {content for content in marks if content in written}
    texts = sorted(filter(None, special), key=len, reverse=True)
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in texts}
    pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
    return _Controls(ids, frozenset(ids.values()), pattern)


def _source(template: Any) -> str:
    return "".join(template.values()) if isinstance(template, dict) else template or ""


def read_as_text(tokenizer) -> Tokenizer:
    """Make the tokenizer's backend without its control tokens: their text is characters to it, and no id changes."""
    return _as_text(tokenizer, compile_special_tokens(tokenizer))


@lru_cache(maxsize=4)
def _as_text(tokenizer, special: re.Pattern[str] | None) -> Tokenizer:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        if special is not None and special.fullmatch(token["content"]):
            token["content"] = f"\ue001{token['id']}\ue001"  # in no text; taken out, later ones would move up
    return Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))
