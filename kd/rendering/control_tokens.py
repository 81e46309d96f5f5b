"""Control tokens of a tokenizer: its special tokens, and the marks among its added tokens that its template writes.

A tokenizer need not flag them (DeepSeek's role marks, Qwen's `<tool_call>` are added tokens with special = false), and
still turns their text into the token wherever it stands. An added token counts where the template's source, or the
probe of kd/rendering/template_needs.py as rendered, has it. Added words and runs of spaces are no marks.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from kd.rendering.template_needs import render_probe

_MARK = re.compile(r"[^\w\s].*[^\w\s]", re.DOTALL)  # <|user|>, [INST]; no word, no run of spaces


def compile_special_tokens(tokenizer) -> re.Pattern[str] | None:
    """Compile a pattern of the texts that this tokenizer turns into control tokens; None where it has none."""
    return _compile(tokenizer, json.dumps(tokenizer.chat_template, sort_keys=True))


@lru_cache(maxsize=16)
def _compile(tokenizer, template: str) -> re.Pattern[str] | None:
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    marks = {token.content for token in added if len(token.content) > 2 and _MARK.fullmatch(token.content)} - special
    if marks:
        written = _source(tokenizer.chat_template) + render_probe(tokenizer)
        special |= {content for content in marks if content in written}
    strings = sorted(filter(None, special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, strings))) if strings else None


def _source(template: Any) -> str:
    return "".join(template.values()) if isinstance(template, dict) else template or ""


@lru_cache(maxsize=16)
def _ids(tokenizer, special: re.Pattern[str] | None) -> frozenset[int]:
    vocabulary = tokenizer.get_vocab()
    return frozenset(i for token, i in vocabulary.items() if special is not None and special.fullmatch(token))


def control_ids(tokenizer) -> frozenset[int]:
    """Return the ids of the control tokens."""
    return _ids(tokenizer, compile_special_tokens(tokenizer))


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
