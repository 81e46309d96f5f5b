"""Places of the assistant's turns in a rendered conversation, for templates that write each turn in its own way.

A turn begins where the generation prompt ends and runs to the end of what the template writes for the message, so the
end-of-turn token is in it and role headers are not. Both ends come from renderings of the conversation's beginnings:
messages[:i] with the generation prompt, and messages[:i + 1] without.

  - Most templates only ever append: then the whole text begins with the first of the two, and continues with the rest
    of the second.
  - Some open the last turn with an empty block that earlier turns are without (Qwen3): the text has the end of the
    turn, with all of its content and calls.
  - Some open such a block in the generation prompt: the turn then begins where the prompt and the text part, at the end
    of the last line or tag that they share.
  - Some close the message before it in another way when one follows (Hermes, after a tool's result): the turn begins
    after the text that the prompt adds, as the text has it.
  - Some place the tools or the system prompt by messages that come later (Mistral), or leave out of earlier turns the
    block that opened them (Qwen3.5): the turn then stands after the text of the message before it and the template's
    words between the two, at the first such place after the turn before.
  - Some end the last turn in another control token than those before it (gpt-oss): an earlier turn ends before that
    token, which is not the one that the model writes.

Everything else is refused, for then the text lacks what the model would see and write at this turn.
"""

from __future__ import annotations

import os.path
import re
from functools import partial
from typing import NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.chat_template import REFUSALS, apply_template
from kd.rendering.template_needs import adapt_messages, adapt_tools, template_needs
from kd.rendering.tokens import compile_special_tokens

_BOUNDARY = re.compile(r"[\n>\]]")  # the end of a line or of a tag


def render(record: Record, tokenizer) -> tuple[str, list[tuple[int, int, int]]]:
    """Render a record: (text, [(index of an assistant message, first character, end) of what the model writes]).

    Raises:
        DataError: the template refuses the record, leaves a system prompt out, or does not write a turn where its
            generation prompt ends, so that its place is not defined.
    """
    needs = template_needs(tokenizer)
    messages = adapt_messages(record.messages, needs)
    written = partial(_render_beginnings, record, tokenizer, needs, messages)
    merged = len(record.messages) - len(messages)  # 1 where the system prompt went into the first user message

    indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    text, *after = written([len(messages), *(index + 1 for index in indices if index + 1 < len(messages))], False)
    for index, message in enumerate(record.messages):
        if message["role"] == "system" and message["content"].strip() not in text:
            raise DataError(
                f"record {record.id}: messages[{index}]: the chat template leaves this system prompt out of the "
                "conversation; write it into the first user message"
            )
    turns: list[tuple[int, int, int]] = []
    cursor = 0
    for index, before, through in zip(indices, written(indices, True), [*after, text]):
        needed = _list_needed(messages[index])
        place = _place_appended(text, before, through, needed)
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
                _place_parted(around, len(around.bare), needed)
                or _place_bridged(around, needed)
                or _place_ended_otherwise(text, before, through, needed, compile_special_tokens(tokenizer))
                or _place_moved(around, needed)
            )
        if place is None or place[0] < cursor:  # or the turn before was found where this one is
            raise DataError(
                f"record {record.id}: messages[{index + merged}]: the chat template does not write this turn where "
                "its generation prompt ends, so its tokens cannot be located; use a template whose turns are appended "
                "unchanged"
            )
        turns.append((index + merged, *place))
        cursor = place[1]
    return text, turns


def render_text(record: Record, tokenizer) -> str:
    """Render a record's text alone; as `render`."""
    needs = template_needs(tokenizer)
    messages = adapt_messages(record.messages, needs)
    return _render_beginnings(record, tokenizer, needs, messages, [len(messages)], False)[0]


def render_prompt(record: Record, index: int, tokenizer) -> str:
    """Render what the model sees before it writes messages[index]: the messages before it and the generation prompt.

    Raises:
        DataError: the template refuses it.
    """
    needs = template_needs(tokenizer)
    history = adapt_messages(record.messages[:index], needs)
    try:
        return apply_template(tokenizer, history, adapt_tools(record.tools, needs), prompt=True)
    except REFUSALS as error:
        raise DataError(f"record {record.id}: messages[{index}]: the chat template refuses it: {error}") from error


def _render_beginnings(
    record: Record, tokenizer, needs: tuple[str, ...], messages: list[dict], counts: list[int], prompt: bool
) -> list[str]:
    """Render the first `counts` messages, each beginning to its own text."""
    try:
        return apply_template(
            tokenizer, [messages[:n] for n in counts], adapt_tools(record.tools, needs), prompt=prompt
        )
    except REFUSALS as error:
        raise DataError(f"record {record.id}: the chat template refuses it: {error}") from error


def _list_needed(message: dict) -> list[str]:
    """List the parts that a turn has to hold: its content and the names of its calls."""
    return [(message["content"] or "").strip(), *(call["function"]["name"] for call in message.get("tool_calls", ()))]


class _Around(NamedTuple):
    """Turn with the text rendered around it."""

    text: str
    last: str  # the turn before in `text`, which ends at `cursor`
    cursor: int
    bare: str  # the messages before it
    before: str  # these and the generation prompt
    through: str  # these and the turn
    messages: list[dict]
    index: int


def _place_appended(text: str, before: str, through: str, needed: list[str]) -> tuple[int, int] | None:
    """Place the turn of a template that only appends."""
    if not (text.startswith(before) and through.startswith(before)):
        return None
    return _find_turn(text, len(before), through[len(before) :], needed)


def _place_parted(around: _Around, at: int, needed: list[str]) -> tuple[int, int] | None:
    """Place a turn whose generation prompt opens a block that the text lacks; `at`: end of `bare` in the text."""
    text, _, _, bare, before, through, *_ = around
    if not (before.startswith(bare) and through.startswith(bare) and (at != len(bare) or text.startswith(bare))):
        return None
    shared = os.path.commonprefix([before[len(bare) :], text[at : at + len(before) - len(bare)]])
    opened = max((match.end() for match in _BOUNDARY.finditer(shared)), default=0)
    if not opened or not through.startswith(text[at : at + opened], len(bare)):
        return None
    return _find_turn(text, at + opened, through[len(bare) + opened :], needed)


def _place_bridged(around: _Around, needed: list[str]) -> tuple[int, int] | None:
    """Place a turn before which the template closes a message otherwise than where that is the last one."""
    text, _, _, bare, before, through, *_ = around
    prompt = before[len(bare) :] if before.startswith(bare) else ""
    if not (prompt.strip() and text.startswith(through)):
        return None
    shared = len(os.path.commonprefix([bare, through]))
    # the two may share the first characters of the prompt
    start = through.find(prompt, max(shared - len(prompt) + 1, 0)) + len(prompt)
    whole_turn = all(part in through[start:] for part in needed if part in through[shared:])
    return (start, len(through)) if start > shared and whole_turn else None


def _place_moved(around: _Around, needed: list[str]) -> tuple[int, int] | None:
    """Place a turn before which the text differs from the rendering that ends with it."""
    text, last, cursor, bare, before, through, messages, index = around
    place = None
    if last and last in bare:  # what follows the turn before is the same in the text
        link = bare[bare.rfind(last) + len(last) :]
        place = _place_parted(around, cursor + len(link), needed) if text.startswith(link, cursor) else None
    said = (messages[index - 1]["content"] or "").strip() if index else ""
    if place is None and said and said in before and said in bare:
        place = _place_after(around, said, needed)
    if place is not None and any(
        text[slice(*place)].strip() in other["content"] for other in messages if other["role"] != "assistant"
    ):
        return None  # where another message quotes the turn, chance could be this place
    return place


def _place_after(around: _Around, said: str, needed: list[str]) -> tuple[int, int] | None:
    """Place a turn after the first place where the text has the message before (`said`) and the template's words."""
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
    return _place_parted(around, at + len(link), needed) if len(link) > len(said) and at >= 0 else None


def _place_ended_otherwise(
    text: str, before: str, through: str, needed: list[str], special: re.Pattern[str] | None
) -> tuple[int, int] | None:
    """Place a turn that ends in another control token where it is the last one."""
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


def _find_turn(text: str, start: int, turn: str, needed: list[str]) -> tuple[int, int] | None:
    """Find [start, end) of `turn`, rendered as the last one, at `start` in `text`; None where it is not there.

    Where `turn` opens with a block that the text lacks, its longest end that has all that is `needed` counts.
    """
    if turn and text.startswith(turn, start):
        return start, start + len(turn)
    opens = text[start : start + 1]
    skip = turn.find(opens, 1) if opens else -1
    while skip >= 0:
        # sixteen characters first, so that a long turn is copied only where it may match
        if text.startswith(turn[skip : skip + 16], start) and text.startswith(turn[skip:], start):
            rest = turn[skip:]
            return (start, start + len(rest)) if all(part in rest for part in needed) else None
        skip = turn.find(opens, skip + 1)
    return None
