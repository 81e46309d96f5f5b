"""Where the assistant's turns stand in a rendered conversation, for templates that write each turn in its own way.

A turn begins where the generation prompt ends and runs to the end of what the template writes for the message, so the
end-of-turn token is in it and role headers are not. Both ends come from renderings of the conversation's beginnings:
messages[:i] with the generation prompt, and messages[:i + 1] without.

  - Most templates only ever append: then the whole text begins with the first of the two, and goes on with the rest of
  the
    second.
  - Some open the last turn with an empty block that earlier turns are without (Qwen3): the end of the turn that has all
  of
    its content and calls is what the text has.
  - Some open such a block in the generation prompt: the turn then begins where the prompt and the text part, at the end
  of
    the last line or tag that they share.
  - Some close the message before it in another way when one follows (Hermes, after a tool's result): the turn begins
  after
    what the prompt adds, as the text has it.
  - Some place the tools or the system prompt by what comes later (Mistral), or leave out of earlier turns what they
  were
    opened with (Qwen3.5): the turn then stands after the text of the message before it and what the template writes
    between the two, at the first such place after the turn before.
  - Some end the last turn in another control token than those before it (gpt-oss): an earlier turn ends before that
  token,
    which is not the one that the model writes.

Everything else is refused, for then what the model would see and write at this turn is not in the text.
"""

from __future__ import annotations

import os.path
import re
from functools import partial
from typing import NamedTuple

from jinja2 import TemplateError

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.chat_template import apply_template
from kd.rendering.template_needs import in_form, template_form, tools_in_form
from kd.rendering.tokens import special_pattern

_BOUNDARY = re.compile(r"[\n>\]]")  # the end of a line or of a tag


def render(record: Record, tokenizer) -> tuple[str, list[tuple[int, int, int]]]:
    """The rendered text and, for each assistant message, (message index, first character, end) of what the model
    writes.

    Raises:
        DataError: the template refuses the record, leaves a system prompt out, or does not write a turn where its
            generation prompt ends, so that its place is not defined.
    """
    form = template_form(tokenizer)
    messages = in_form(record.messages, form)
    written = partial(_written, record, tokenizer, form, messages)
    merged = len(record.messages) - len(messages)  # 1 where the system prompt went into the first user message

    indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    text, *after = written([len(messages), *(index + 1 for index in indices if index + 1 < len(messages))], False)
    for index, message in enumerate(record.messages):
        if message["role"] == "system" and message["content"].strip() not in text:
            raise DataError(
                f"record {record.id}: messages[{index}]: the chat template leaves this system prompt out of the "
                "conversation; "
                "write it into the first user message"
            )
    turns: list[tuple[int, int, int]] = []
    cursor = 0
    for index, before, through in zip(indices, written(indices, True), [*after, text]):
        needed = _needed(messages[index])
        place = _appended(text, before, through, needed)
        if place is None:
            around = _Around(
                text,
                text[slice(*turns[-1][1:])] if turns else "",
                cursor,
                written([index], False)[0],
                before,
                through,
                messages,
                index,
            )
            place = (
                _parted(around, len(around.bare), needed)
                or _bridged(around, needed)
                or _ended_otherwise(text, before, through, needed, special_pattern(tokenizer))
                or _moved(around, needed)
            )
        if place is None or place[0] < cursor:  # or the turn before was found where this one is
            raise DataError(
                f"record {record.id}: messages[{index + merged}]: the chat template does not write this turn where "
                "its generation "
                "prompt ends, so its tokens cannot be located; use a template whose turns are appended unchanged"
            )
        turns.append((index + merged, *place))
        cursor = place[1]
    return text, turns


def whole(record: Record, tokenizer) -> str:
    """The rendered text alone; as `render`."""
    form = template_form(tokenizer)
    messages = in_form(record.messages, form)
    return _written(record, tokenizer, form, messages, [len(messages)], False)[0]


def _written(
    record: Record, tokenizer, form: tuple[str, ...], messages: list[dict], counts: list[int], prompt: bool
) -> list[str]:
    """The renderings of the first `counts` messages; together, for the tools are then prepared once."""
    try:
        return apply_template(
            tokenizer, [messages[:n] for n in counts], tools_in_form(record.tools, form), prompt=prompt
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"record {record.id}: the chat template refuses it: {error}") from error


def _needed(message: dict) -> list[str]:
    """What a turn has to hold."""
    return [(message["content"] or "").strip(), *(call["function"]["name"] for call in message.get("tool_calls", ()))]


class _Around(NamedTuple):
    """One turn and what is rendered around it."""

    text: str
    last: str  # the turn before in `text`, which ends at `cursor`
    cursor: int
    bare: str  # the messages before it
    before: str  # these and the generation prompt
    through: str  # these and the turn
    messages: list[dict]
    index: int


def _appended(text: str, before: str, through: str, needed: list[str]) -> tuple[int, int] | None:
    if not (text.startswith(before) and through.startswith(before)):
        return None
    return _as_in(text, len(before), through[len(before) :], needed)


def _parted(around: _Around, at: int, needed: list[str]) -> tuple[int, int] | None:
    """`at`: in the text, where what `bare` holds ends."""
    text, _, _, bare, before, through, *_ = around
    if not (before.startswith(bare) and through.startswith(bare) and (at != len(bare) or text.startswith(bare))):
        return None
    shared = os.path.commonprefix([before[len(bare) :], text[at : at + len(before) - len(bare)]])
    opened = max((match.end() for match in _BOUNDARY.finditer(shared)), default=0)
    if not opened or not through.startswith(text[at : at + opened], len(bare)):
        return None
    return _as_in(text, at + opened, through[len(bare) + opened :], needed)


def _bridged(around: _Around, needed: list[str]) -> tuple[int, int] | None:
    text, _, _, bare, before, through, *_ = around
    prompt = before[len(bare) :] if before.startswith(bare) else ""
    if not (prompt.strip() and text.startswith(through)):
        return None
    shared = len(os.path.commonprefix([bare, through]))
    start = through.find(prompt, max(shared - len(prompt) + 1, 0)) + len(
        prompt
    )  # they may share the first of its characters
    whole_turn = all(part in through[start:] for part in needed if part in through[shared:])
    return (start, len(through)) if start > shared and whole_turn else None


def _moved(around: _Around, needed: list[str]) -> tuple[int, int] | None:
    text, last, cursor, bare, before, through, messages, index = around
    place = None
    if last and last in bare:  # what follows the turn before is the same in the text
        link = bare[bare.rfind(last) + len(last) :]
        place = _parted(around, cursor + len(link), needed) if text.startswith(link, cursor) else None
    said = (messages[index - 1]["content"] or "").strip() if index else ""
    if place is None and said and said in before and said in bare:
        place = _after(around, said, needed)
    if place is not None and any(
        text[slice(*place)].strip() in other["content"] for other in messages if other["role"] != "assistant"
    ):
        return None  # where another message quotes the turn, chance could be this place
    return place


def _after(around: _Around, said: str, needed: list[str]) -> tuple[int, int] | None:
    """The turn after the first place where the text has what the message before `said` and words of the template's."""
    text, _, cursor, bare, before, through, *_ = around
    link = before[before.rfind(said) :]
    turn = through[len(before) :] if through.startswith(before) else ""
    if not turn and link in through:
        turn = through[through.rfind(link) + len(link) :]
        turn = turn if all(part in turn for part in needed) else ""
    if turn.strip() and len(link) > len(said) and (at := text.find(link + turn, cursor)) >= 0:
        return at + len(link), at + len(link) + len(turn)
    link = bare[bare.rfind(said) :]
    at = text.find(link, cursor)
    return _parted(around, at + len(link), needed) if len(link) > len(said) and at >= 0 else None


def _ended_otherwise(
    text: str, before: str, through: str, needed: list[str], special: re.Pattern[str] | None
) -> tuple[int, int] | None:
    if special is None or not (text.startswith(before) and through.startswith(before)):
        return None
    last = max(
        (match.start() for match in special.finditer(through, len(before)) if match.end() == len(through)), default=0
    )
    turn = through[len(before) : last]
    end = len(before) + len(turn)
    if not turn.strip() or not text.startswith(turn, len(before)) or not special.match(text, end):
        return None
    return (len(before), end) if all(part in turn for part in needed) else None


def _as_in(text: str, start: int, turn: str, needed: list[str]) -> tuple[int, int] | None:
    """Characters in `text` of `turn`, the last one when it was rendered, which begins at `start`; None where it does
    not.

    Where `turn` opens with what the text has not, the longest end of it counts that has all that is `needed`.
    """
    if turn and text.startswith(turn, start):
        return start, start + len(turn)
    opens = text[start : start + 1]
    skip = turn.find(opens, 1) if opens else -1
    while skip >= 0:
        if text.startswith(turn[skip : skip + 16], start) and text.startswith(
            turn[skip:], start
        ):  # a long turn is copied when it may be it
            rest = turn[skip:]
            return (start, start + len(rest)) if all(part in rest for part in needed) else None
        skip = turn.find(opens, skip + 1)
    return None
