"""Beginnings of a conversation: its first messages as rendered, with the generation prompt after them or without.

Each is rendered once. No conversation of no messages is rendered, for templates read messages[0]: where the assistant
speaks first, its prompt is the generation prompt as it stands after that message, put where the message begins.

Some templates write the next turn's header after every conversation, asked to or not (Command-A, ToolACE). It is no
part of the turn before it, and is cut from what a turn writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.chat_template import REFUSALS, apply_template, describe_refusal
from kd.rendering.control_tokens import compile_special_tokens
from kd.rendering.template_needs import TemplateKey, adapt_messages, adapt_tools, template_needs

_SAID = ("How long is the way?", "It is 41 km.", "Thank you.")
TAG = re.compile(r"<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]")  # a mark of a template whose marks are no tokens
_OPENED = re.compile(r"\s*<\w+>\s*$")  # a block that the generation prompt opens


class Headers(NamedTuple):
    """Headers that a template writes around turns."""

    next_turn: str  # after every conversation, asked for a generation prompt or not; "" where none is
    prompt: str  # that the generation prompt adds, without the block that it opens; "" where it adds nothing
    end: str  # mark that ends an answer, the last one and others alike; "" where they end differently


def find_headers(tokenizer) -> Headers:
    """Find a template's headers, by rendering a short chat; kept once found."""
    return _find_headers(TemplateKey(tokenizer, []))


@lru_cache(maxsize=64)
def _find_headers(rendering: TemplateKey) -> Headers:
    tokenizer = rendering.tokenizer
    tools = adapt_tools([], template_needs(tokenizer))
    chat = [{"role": role, "content": said} for role, said in zip(("user", "assistant", "user"), _SAID)]
    try:
        asked, bare, answered, followed = (
            apply_template(tokenizer, chat[:count], tools, prompt=prompt)
            for count, prompt in ((1, True), (1, False), (2, False), (3, False))
        )
    except REFUSALS:
        return Headers("", "", "")
    prompt = _OPENED.sub("", asked[len(bare) :]).strip() if asked.startswith(bare) else ""
    tail = answered.rpartition(_SAID[1])[2]
    mark = (compile_special_tokens(tokenizer) or TAG).search(tail) or TAG.search(tail)
    rest = tail[mark.end() :] if mark else ""
    between = followed.partition(_SAID[1])[2].partition(_SAID[2])[0][len(tail) - len(rest) :]
    is_header = between == rest or asked.endswith(rest) and not between.startswith(rest)
    end = mark[0] if mark and followed.partition(_SAID[1])[2].startswith(tail[: mark.end()]) else ""
    return Headers(rest if rest.strip() and is_header else "", prompt, end)


class Beginnings:
    """Beginnings of one record, rendered by one tokenizer's chat template.

    Attributes:
        record: as it was read.
        messages: as the template needs them (kd/rendering/template_needs.py).
        merged: 1 where the system prompt went into the first user message, so that messages are one fewer; else 0.
    """

    def __init__(self, record: Record, tokenizer):
        needs = template_needs(tokenizer)
        self.record, self.tokenizer = record, tokenizer
        self.messages = adapt_messages(record.messages, needs)
        self.merged = len(record.messages) - len(self.messages)
        self._tools = adapt_tools(record.tools, needs)
        self._found: dict[tuple[int, bool], str] = {}

    @property
    def turns(self) -> list[int]:
        """Indices of the assistant's messages in `messages`."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def text(self) -> str:
        """The whole conversation."""
        return self._render([len(self.messages)], False)[0]

    def through(self, counts: Iterable[int]) -> list[str]:
        """Render the first `counts` messages, each without the next turn's header; "" for none."""
        header = find_headers(self.tokenizer).next_turn
        return [text.removesuffix(header) for text in self._render(list(counts), False)]

    def prompts(self, indices: Iterable[int]) -> list[str]:
        """Render what the model sees before it writes messages[i], for each of `indices`."""
        indices = list(indices)
        found = self._render([index for index in indices if index], True)
        return [found.pop(0) if index else self._first_prompt() for index in indices]

    def render(self, conversations: list[list[dict]], *, prompt: bool = False, where: str = "") -> list[str]:
        """Render other conversations with the record's tools; `where` names the message in an error.

        Raises:
            DataError: the template refuses one of them.
        """
        try:
            return apply_template(self.tokenizer, conversations, self._tools, prompt=prompt)
        except REFUSALS as error:
            raise DataError(
                f"record {self.record.id}: {where}the chat template refuses it: {describe_refusal(error)}"
            ) from error

    def _render(self, counts: list[int], prompt: bool) -> list[str]:
        missing = sorted({count for count in counts if count and (count, prompt) not in self._found})
        if missing:
            where = f"messages[{missing[0] + self.merged}]: " if prompt and len(missing) == 1 else ""
            texts = self.render([self.messages[:count] for count in missing], prompt=prompt, where=where)
            self._found |= {(count, prompt): text for count, text in zip(missing, texts)}
        return [self._found[count, prompt] if count else "" for count in counts]

    def _first_prompt(self) -> str:
        (bare,), (asked,) = self._render([1], False), self._render([1], True)
        content = (self.messages[0]["content"] or "").strip()
        header = asked[len(bare) :] if asked.startswith(bare) else ""
        if header.strip() and header in bare:
            return bare[: bare.rfind(header) + len(header)]
        if content and content in bare:
            return bare[: bare.find(content)]
        raise DataError(
            f"record {self.record.id}: messages[0]: the assistant speaks first, and this chat template does not show "
            "where: begin with a user message"
        )
