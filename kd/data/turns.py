"""Where the assistant's turns stand in a rendered conversation, for templates that write each turn in its own way.

A turn begins where the generation prompt ends and runs to the end of what the template writes for the message, so the
end-of-turn token is in it and role headers are not. Both ends come from renderings of the conversation's beginnings:
messages[:i] with the generation prompt, and messages[:i + 1] without.

  - Most templates only ever append: then the whole text begins with the first of the two, and goes on with the rest of the
    second.
  - Some open the last turn with an empty block that earlier turns are without (Qwen3): the end of the turn that has all of
    its content and calls is what the text has.
  - Some open such a block in the generation prompt: the turn then begins where the prompt and the text part, at the end of
    the last line or tag that they share.
  - Some place the tools or the system prompt by what comes later (Mistral): the turn then stands after the text of the
    message before it and what the template writes between the two, at the first such place after the turn before.

Everything else is refused, for then what the model would see and write at this turn is not in the text.
"""

from __future__ import annotations

import os.path
import re
from functools import partial

from jinja2 import TemplateError

from kd.data.forms import in_form, template_form
from kd.data.records import DataError, Record

_BOUNDARY = re.compile(r"[\n>\]]")  # the end of a line or of a tag


def render(record: Record, tokenizer) -> tuple[str, list[tuple[int, int, int]]]:
    """The rendered text and, for each assistant message, (message index, first character, end) of what the model writes.

    Raises:
        DataError: the template refuses the record, leaves a system prompt out, or does not write a turn where its generation
            prompt ends, so that its place is not defined.
    """
    messages = in_form(record.messages, template_form(tokenizer))
    written = partial(_written, record, tokenizer, messages)
    merged = len(record.messages) - len(messages)  # 1 where the system prompt went into the first user message

    indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    text, *after = written([len(messages), *(index + 1 for index in indices if index + 1 < len(messages))], False)
    for index, message in enumerate(record.messages):
        if message["role"] == "system" and message["content"].strip() not in text:
            raise DataError(f"record {record.id}: messages[{index}]: the chat template leaves this system prompt out of the conversation; "
                            "write it into the first user message")
    turns: list[tuple[int, int, int]] = []
    cursor = 0
    for index, before, through in zip(indices, written(indices, True), [*after, text]):
        place = _appended(text, before, through, _needed(messages[index]))
        if place is None:
            bare = written([index], False)[0]
            place = _parted(text, bare, before, through, _needed(messages[index])) or _moved(text, cursor, before, through, messages, index)
        if place is None:
            raise DataError(f"record {record.id}: messages[{index + merged}]: the chat template does not write this turn where its generation "
                            "prompt ends, so its tokens cannot be located; use a template whose turns are appended unchanged")
        turns.append((index + merged, *place))
        cursor = place[1]
    return text, turns


def whole(record: Record, tokenizer) -> str:
    """The rendered text alone; as `render`."""
    messages = in_form(record.messages, template_form(tokenizer))
    return _written(record, tokenizer, messages, [len(messages)], False)[0]


def _written(record: Record, tokenizer, messages: list[dict], counts: list[int], prompt: bool) -> list[str]:
    """The renderings of the first `counts` messages; together, for the tools are then prepared once."""
    try:
        return tokenizer.apply_chat_template([messages[:n] for n in counts], tools=record.tools or None,
                                             add_generation_prompt=prompt, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"record {record.id}: the chat template refuses it: {error}") from error


def _needed(message: dict) -> list[str]:
    """What a turn has to hold."""
    return [(message["content"] or "").strip(), *(call["function"]["name"] for call in message.get("tool_calls", ()))]


def _appended(text: str, before: str, through: str, needed: list[str]) -> tuple[int, int] | None:
    if not (text.startswith(before) and through.startswith(before)):
        return None
    return _as_in(text, len(before), through[len(before):], needed)


def _parted(text: str, bare: str, before: str, through: str, needed: list[str]) -> tuple[int, int] | None:
    """`bare`: as `before`, without the generation prompt."""
    if not all(other.startswith(bare) for other in (text, before, through)):
        return None
    shared = os.path.commonprefix([before[len(bare):], text[len(bare):len(before)]])
    start = len(bare) + max((match.end() for match in _BOUNDARY.finditer(shared)), default=0)
    if start == len(bare) or not through.startswith(text[len(bare):start], len(bare)):
        return None
    return _as_in(text, start, through[start:], needed)


def _moved(text: str, cursor: int, before: str, through: str, messages: list[dict], index: int) -> tuple[int, int] | None:
    said = (messages[index - 1]["content"] or "").strip() if index else ""
    link = before[before.rfind(said):] if said else ""
    turn = through[len(before):] if through.startswith(before) else ""
    if not turn.strip() or len(link) == len(said) or any(turn.strip() in other["content"] for other in messages if other["role"] != "assistant"):
        return None  # without words of the template between the two, or where another message quotes the turn, chance could be this place
    at = text.find(link + turn, cursor)
    return (at + len(link), at + len(link) + len(turn)) if at >= 0 else None


def _as_in(text: str, start: int, turn: str, needed: list[str]) -> tuple[int, int] | None:
    """Characters in `text` of `turn`, the last one when it was rendered, which begins at `start`; None where it does not.

    Where `turn` opens with what the text has not, the longest end of it counts that has all that is `needed`.
    """
    if turn and text.startswith(turn, start):
        return start, start + len(turn)
    opens = text[start:start + 1]
    skip = turn.find(opens, 1) if opens else -1
    while skip >= 0:
        if text.startswith(turn[skip:skip + 16], start) and text.startswith(turn[skip:], start):  # a long turn is copied when it may be it
            rest = turn[skip:]
            return (start, start + len(rest)) if all(part in rest for part in needed) else None
        skip = turn.find(opens, skip + 1)
    return None
