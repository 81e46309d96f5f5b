"""Places of turns that a template writes otherwise in the whole conversation than as the last message.

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
    token, and kd/rendering/stops.py ends it at the one that follows.

None of these turns stands after exactly what the model sees at inference: with data.turns: auto each becomes a sequence
of its own, and nothing here is asked.
"""

from __future__ import annotations

import os.path
import re
from typing import NamedTuple

_BOUNDARY = re.compile(r"[\n>\]]")  # the end of a line or of a tag


class Around(NamedTuple):
    """Turn with the text rendered around it."""

    text: str
    last: str  # the turn before in `text`, which ends at `cursor`
    cursor: int
    bare: str  # the messages before it
    before: str  # these and the generation prompt
    through: str  # these and the turn
    messages: list[dict]
    index: int


def place_rewritten(around: Around, needed: list[str], special: re.Pattern[str] | None) -> tuple[int, int] | None:
    """Place a turn in a conversation whose template does not only append; None where its place is not certain.

    needed: parts that the turn has to hold; special: the tokenizer's control tokens.
    """
    text, before, through = around.text, around.before, around.through
    appended = text.startswith(before) and through.startswith(before)
    return (
        (_find_turn(text, len(before), through[len(before) :], needed) if appended else None)
        or _place_parted(around, len(around.bare), needed)
        or _place_bridged(around, needed)
        or _place_ended_otherwise(text, before, through, needed, special)
        or _place_moved(around, needed)
    )


def _place_parted(around: Around, at: int, needed: list[str]) -> tuple[int, int] | None:
    """Place a turn whose generation prompt opens a block that the text lacks; `at`: end of `bare` in the text."""
    text, _, _, bare, before, through, *_ = around
    if not (before.startswith(bare) and through.startswith(bare) and (at != len(bare) or text.startswith(bare))):
        return None
    shared = os.path.commonprefix([before[len(bare) :], text[at : at + len(before) - len(bare)]])
    opened = max((match.end() for match in _BOUNDARY.finditer(shared)), default=0)
    if not opened or not through.startswith(text[at : at + opened], len(bare)):
        return None
    return _find_turn(text, at + opened, through[len(bare) + opened :], needed)


def _place_bridged(around: Around, needed: list[str]) -> tuple[int, int] | None:
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


def _place_moved(around: Around, needed: list[str]) -> tuple[int, int] | None:
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


def _place_after(around: Around, said: str, needed: list[str]) -> tuple[int, int] | None:
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
