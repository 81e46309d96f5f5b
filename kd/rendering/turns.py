"""Places of the assistant's turns in a rendered conversation.

A turn begins where the generation prompt ends and runs to the end of what the template writes for the message, so the
end-of-turn token is in it and role headers are not. Both ends come from renderings of the conversation's beginnings:
messages[:i] with the generation prompt, and messages[:i + 1] without.

Most templates only ever append: the text of the whole conversation begins with the first of the two, and continues with
the rest of the second. Then one sequence trains every turn in the context that the model sees at inference, and the
conversation is *exact*. Others rewrite earlier turns: there each turn is rendered as the last one, after its own prompt
(`render_turn`), or the turns are looked for in the whole text all the same (kd/rendering/placing.py).

Rendering every beginning of a long conversation takes time in the square of its length. Where the first turns and the
last two are exact, the turns between are found by rendering each with the few messages before it, as long as all of
that is in the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.beginnings import TAG, Beginnings, find_headers
from kd.rendering.control_tokens import compile_special_tokens
from kd.rendering.placing import Around, place_rewritten

_REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of a message that templates read a thought from
_THOUGHT = "\ue002thought\ue002"
_PARTS = re.compile(rf"{TAG.pattern}|\n")
_CLOSING = re.compile(r"\s*(?:</|\[/)")
_OPENED_BLOCK = re.compile(r"\s*<(\w+)>\s*")
_CLOSED_BLOCK = re.compile(rf"\s*(?:(?:{TAG.pattern})\s*\w*\s*(?!<\w+>)(?:{TAG.pattern})|</\w+>)?\s*")
LONG_TURNS = 8  # conversations of more turns are rendered in windows
_FIRST, _LAST = 3, 2  # turns of a long one that are held against the whole beginning before them

Turn = tuple[int, int, int]  # index of an assistant message, first character, end


class Rendered(NamedTuple):
    """Conversation as text."""

    text: str
    turns: list[Turn]  # what the model writes
    exact: bool  # each turn stands after its generation prompt, as it is written where it is the last


def render(record: Record, tokenizer) -> tuple[str, list[Turn]]:
    """Render a record whole: (text, turns); as `render_whole`."""
    return render_whole(Beginnings(record, tokenizer))[:2]


def render_whole(beginnings: Beginnings) -> Rendered:
    """Render a record to one text.

    Raises:
        DataError: the template refuses the record, or does not write a turn where its
            generation prompt ends, so that its place is not defined.
    """
    text, indices, merged = beginnings.text, beginnings.turns, beginnings.merged
    places = _place_long(beginnings, text) if len(indices) > LONG_TURNS else None
    if places is None:
        prompts, throughs = beginnings.prompts(indices), beginnings.through(index + 1 for index in indices)
        places = [_place_exact(beginnings, text, *pair) for pair in zip(prompts, throughs)]
    exact = None not in places
    if not exact:
        places = _place_rewritten(beginnings, text)
    turns = [(index + merged, *place) for index, place in zip(indices, places) if place is not None]
    for turn in turns:
        _check_one_message(beginnings, text, turn)
    return Rendered(text, turns, exact)


def render_turn(beginnings: Beginnings, index: int) -> tuple[str, int]:
    """Render one turn as the model writes it: (text that ends with the turn, the turn's first character).

    index: of the assistant message in `beginnings.messages`. Where the generation prompt opens a block that the
    template writes only around a thought, the turn begins with the block's end: the thought is empty.

    Raises:
        DataError: the template refuses it, or does not write the turn after its generation prompt.
    """
    (before,), (through,) = beginnings.prompts([index]), beginnings.through([index + 1])
    if not through.startswith(before):
        written = _write_after_prompt(beginnings, index, before, through)
        if written is None:
            raise DataError(
                f"record {beginnings.record.id}: messages[{index + beginnings.merged}]: the chat template does not "
                f"write this turn where its generation prompt ends ({before[-40:]!r}): give the variable that closes "
                "the block (tokenizer.template_variables, as enable_thinking: false), or set data.turns: whole"
            )
        through = written
    turn = index + beginnings.merged, len(before), len(through)
    if not through[len(before) :].strip():
        raise DataError(
            f"record {beginnings.record.id}: messages[{turn[0]}]: the chat template writes nothing for this turn"
        )
    _check_one_message(beginnings, through, turn)
    return through, len(before)


def render_text(record: Record, tokenizer) -> str:
    """Render a record's text alone; as `render`."""
    return Beginnings(record, tokenizer).text


def render_sequences(record: Record, tokenizer) -> list[tuple[str, Turn]]:
    """Render each turn: (text that it stands in, turn); the text is the whole conversation's where that has a place.

    Raises:
        DataError: as `render_turn`.
    """
    beginnings = Beginnings(record, tokenizer)
    try:
        whole = render_whole(beginnings)
        return [(whole.text, turn) for turn in whole.turns]
    except DataError:
        each = [(index, *render_turn(beginnings, index)) for index in beginnings.turns]
        return [(text, (index + beginnings.merged, start, len(text))) for index, text, start in each]


def _write_after_prompt(beginnings: Beginnings, index: int, before: str, through: str) -> str | None:
    """Write a turn after a generation prompt that the template does not write before it; None where that is not clear.

    A block that the prompt opens is closed as the template closes it around a thought, or by the tag that the
    template's source has for it. What the prompt has more than that, such as a block with nothing in it, stays.
    """
    history, message = beginnings.messages[:index], beginnings.messages[index]
    headers = find_headers(beginnings.tokenizer)
    parted = _part(beginnings, index, before, through)
    for words in dict.fromkeys(("", parted[0].lstrip() if parted else "")):
        for field in _REASONING:
            (thought,) = beginnings.render([[*history, {**message, field: words + _THOUGHT}]])
            if thought.startswith(before + _THOUGHT):
                return thought.replace(_THOUGHT, "", 1).removesuffix(headers.next_turn)
    if parted is None:
        return None
    words, turn = parted
    words = words.replace(headers.prompt, "", 1) if headers.prompt else words
    opened = _OPENED_BLOCK.fullmatch(words)
    if opened and f"</{opened[1]}>" in str(beginnings.tokenizer.chat_template):
        return f"{before}\n</{opened[1]}>\n\n{turn}"
    (answer,) = beginnings.render([[*history, {"role": "assistant", "content": _THOUGHT}]])
    return before + turn if _CLOSED_BLOCK.fullmatch(words) or answer.startswith(before + _THOUGHT) else None


def _part(beginnings: Beginnings, index: int, before: str, through: str) -> tuple[str, str] | None:
    """Part a turn from what the template writes before it: (end of the prompt that is not written there, turn)."""
    (bare,) = beginnings.through([index])
    said = (beginnings.messages[index - 1]["content"] or "").strip() if index else ""
    if before.startswith(bare) and through.startswith(bare):
        link, least, starts = before[len(bare) :], 0, [len(bare)]
    elif said and said in before:  # the message alters what is written before it, as tools that stand by the last user
        link, least = before[before.rfind(said) :], len(said)
        starts = [match.start() for match in re.finditer(re.escape(said), through)][::-1]
    else:
        return None
    loose = re.compile(
        "".join(rf"\s*{re.escape(word)}" for word in link.split()) or "(?!)"
    )  # the space in it may differ
    cuts = {least, len(link), *(at for part in _PARTS.finditer(link, least) for at in part.span())}
    for start in starts:
        cut = max(cut for cut in cuts if through.startswith(link[:cut], start))
        ends = [end for end in sorted(cuts) if end >= cut and link[end:].strip()]
        # the message before it is closed otherwise, and the end of the prompt is written all the same
        rest = through[start + cut :].lstrip()
        end = next((end for end in ends if rest.startswith(link[end:])), None)
        words, turn = ("", rest[len(link) - end :]) if end is not None else (link[cut:], through[start + cut :])
        if words and (match := loose.match(through, start)):
            words, turn = "", through[match.end() :].lstrip()
        needed = (part in turn for part in _list_needed(beginnings.messages[index]) if part in through)
        if turn.strip() and all(needed) and not (words.strip() and _CLOSING.match(turn)):
            return words, turn
    return None


def _check_one_message(beginnings: Beginnings, text: str, turn: Turn) -> None:
    """Refuse a turn that the template writes as two messages: no single generation is both."""
    header = find_headers(beginnings.tokenizer).prompt
    if header and text.find(header, turn[1], turn[2]) >= 0:
        raise DataError(
            f"record {beginnings.record.id}: messages[{turn[0]}]: the chat template writes this turn as two messages "
            f"(it has {header!r} inside), as for text beside a call, and the model would stop after the first: take "
            "the text away, or use a template that writes one message"
        )


def _place_exact(beginnings: Beginnings, text: str, before: str, through: str) -> tuple[int, int] | None:
    if not (through.startswith(before) and text.startswith(before)):
        return None
    return _match_turn(beginnings, text, len(before), through[len(before) :])


def _match_turn(beginnings: Beginnings, text: str, start: int, turn: str) -> tuple[int, int] | None:
    """Match a turn, as it is written where it is the last, at `start` in the text; None where another stands there.

    What some templates write only at the end of the text, behind the mark that ends every answer (Phi's eos), is no
    part of an earlier turn.
    """
    if turn and text.startswith(turn, start):
        return start, start + len(turn)
    end, special = find_headers(beginnings.tokenizer).end, compile_special_tokens(beginnings.tokenizer)
    head, _, tail = turn.rpartition(end) if end else ("", "", "")
    more = tail.lstrip()
    turn = turn[: len(turn) - len(more)]
    if head.strip() and more and special and not special.sub("", more).strip() and text.startswith(turn, start):
        return start, start + len(turn)
    return None


def _place_rewritten(beginnings: Beginnings, text: str) -> list[tuple[int, int] | None]:
    """Place the turns of a template that does not only append."""
    places: list[tuple[int, int] | None] = []
    indices, messages = beginnings.turns, beginnings.messages
    special = compile_special_tokens(beginnings.tokenizer)
    cursor, last = 0, ""
    parts = beginnings.prompts(indices), beginnings.through(i + 1 for i in indices), beginnings.through(indices)
    for index, before, through, bare in zip(indices, *parts):
        needed = _list_needed(messages[index])
        place = place_rewritten(Around(text, last, cursor, bare, before, through, messages, index), needed, special)
        if place is None or place[0] < cursor:  # or the turn before was found where this one is
            raise DataError(
                f"record {beginnings.record.id}: messages[{index + beginnings.merged}]: the chat template does not "
                "write this turn where its generation prompt ends, so its tokens cannot be located; use a template "
                "whose turns are appended unchanged"
            )
        places.append(place)
        cursor, last = place[1], text[slice(*place)]
    return places


def _list_needed(message: dict) -> list[str]:
    """List the parts that a turn has to hold: its content and the names of its calls."""
    return [(message["content"] or "").strip(), *(call["function"]["name"] for call in message.get("tool_calls", ()))]


def _place_long(beginnings: Beginnings, text: str) -> list[tuple[int, int] | None] | None:
    """Place the turns of a long conversation by windows of it; None where that does not show that it is exact."""
    indices, messages = beginnings.turns, beginnings.messages
    head = next((at + 1 for at, message in enumerate(messages) if message["role"] == "user"), len(messages))
    sure = [at for at in range(len(indices)) if at < _FIRST or at >= len(indices) - _LAST or indices[at - 2] < head]
    whole = [indices[at] for at in sure]
    pairs = zip(beginnings.prompts(whole), beginnings.through(index + 1 for index in whole))
    places = {at: _place_exact(beginnings, text, *pair) for at, pair in zip(sure, pairs)}
    if None in places.values():
        return None
    rest = [at for at in range(len(indices)) if at not in places]
    windows = [[*messages[:head], *messages[indices[at - 2] : indices[at] + 1]] for at in rest]
    header = find_headers(beginnings.tokenizer).next_turn
    try:
        prompts = beginnings.render([window[:-1] for window in windows], prompt=True)
        throughs = [through.removesuffix(header) for through in beginnings.render(windows)]
    except DataError:
        return None
    for at, before, through in zip(rest, prompts, throughs):
        previous = places[at - 1]
        assert previous is not None, "each turn before this one was placed"
        found = before.rfind(text[slice(*previous)])
        link = before[found + previous[1] - previous[0] :]
        if found < 0 or not through.startswith(before) or not text.startswith(link, previous[1]):
            return None
        places[at] = _match_turn(beginnings, text, previous[1] + len(link), through[len(before) :])
        if places[at] is None:
            return None
    placed = [places[at] for at in range(len(indices))]
    return placed if all(one and two and one[1] <= two[0] for one, two in zip(placed, placed[1:])) else None
