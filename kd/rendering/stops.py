"""Stops: tokens that end an assistant's turn, as the chat template writes them, and that the exported student names.

They are found by rendering small conversations, one for each kind of turn:

    own stop   the last control token of the turn, of no use before a turn's end: <|im_end|>, </s>, <|eot_id|>
    marker     where a turn has no stop of its own: the control token that follows it at once, which opens the next
               role (GLM's <|user|> and <|observation|>), or closes a turn that is not the last (gpt-oss's <|end|>).
               It is trained as the end of the turn; after the last turn it is added to the text

Control tokens are those of kd/rendering/control_tokens.py. A template that ends turns in plain text has no stop: a
student of it could not be told to stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.control_tokens import compile_special_tokens, list_control_tokens
from kd.rendering.turns import render_sequences

Turns = list[tuple[int, int, int]]  # index of an assistant message, first character, end


class Stops(NamedTuple):
    """Stops of a chat template with its tokenizer."""

    tokens: dict[str, int]  # text of each stop -> its id
    inner: frozenset[int]  # ids of control tokens that stand inside turns, and so cannot be stops
    added: dict[str, str]  # kind of turn -> text to add after a last turn that has no stop: white space and a marker
    rendered: bool  # whether the template takes any of the small conversations

    def pattern(self) -> re.Pattern[str]:
        """Compile a pattern of the stops' texts after white space; it never matches where there is none."""
        return re.compile(rf"\s*({'|'.join(map(re.escape, self.tokens)) or '(?!)'})")


def find_stops(tokenizer) -> Stops:
    """Find the stops of a tokenizer and its chat template; kept once found."""
    return _find(tokenizer, str(tokenizer.chat_template))


def explain_no_stop(tokenizer) -> str | None:
    """Say why a student could not be taught to stop with this template, or return None."""
    found = find_stops(tokenizer)
    if found.tokens or not found.rendered and tokenizer.eos_token_id is not None:
        return None
    if not found.rendered:
        return (
            "its chat template takes none of the small conversations that show how a turn ends, and it has no "
            "eos_token, so a student could not be told to stop: set eos_token"
        )
    return (
        "its chat template ends an assistant's turn in plain text, and no control token follows, so a student could "
        "not be told to stop: end turns in a token of their own (tokenizer.add_special_tokens)"
    )


def join_stop_ids(tokenizer, *sources: Any) -> list[int]:
    """Join the ids at which an answer ends: the template's stops, then what `sources` and the tokenizer name.

    Args:
        sources: values of eos_token_id, as model and generation configurations have them: an id, a list, or None.

    Returns:
        Ids without repetition. One that stands inside turns is left out: it would end a turn before its end. So is a
        token of plain text, which a configuration names that was written for another tokenizer, or by default
        (LlamaConfig's 2).
    """
    found, controls = find_stops(tokenizer), {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    named = [
        number
        for source in (*sources, tokenizer.eos_token_id)
        for number in (source if isinstance(source, (list, tuple)) else [source])
        if number is not None and (number in controls or number >= len(tokenizer))
    ]
    return list(dict.fromkeys([*found.tokens.values(), *(number for number in named if number not in found.inner)]))


def close_turns(record: Record, text: str, turns: Turns, tokenizer) -> tuple[Turns, str]:
    """End each turn at a stop.

    Returns:
        The turns, each with the marker that follows it where it has no stop of its own, and the text to add to `text`.

    Raises:
        DataError: a turn has no stop, and none follows.
    """
    found = find_stops(tokenizer)
    if not found.tokens:
        return turns, ""
    controls, pattern = _control_pattern(tokenizer), found.pattern()
    closed, added = [], ""
    for index, start, end in turns:
        if not found.tokens.keys() & set(_last_controls(text[start:end], controls)):
            follows = pattern.match(text, end)
            if follows is not None:
                end = follows.end()
            elif not text[end:].strip() and (marker := found.added.get(_kind(record.messages[index]))):
                added = marker.lstrip() if text[-1:].isspace() else marker
                end = len(text) + len(added)
            else:
                raise DataError(
                    f"record {record.id}: messages[{index}]: the chat template ends this turn in "
                    f"{text[start:end][-20:]!r}, which is no stop of its other turns ({', '.join(found.tokens)}), and "
                    "none follows: the student would not learn to stop; remove the record, or mend the template"
                )
        closed.append((index, start, end))
    return closed, added


def check_stop(record: Record, index: int, ids: list[int], texts: list[str], tokenizer) -> None:
    """Check that a turn ends at its first stop.

    Args:
        index: of the turn's message.
        ids: tokens of the turn, as trained.
        texts: characters of each.

    Raises:
        DataError: none of the tokens is a stop, or the turn goes on after it.
    """
    found = find_stops(tokenizer)
    stops = frozenset(found.tokens.values())
    first = next((at for at, token in enumerate(ids) if token in stops), None)
    if first is None:
        problem = f"ends in no stop ({', '.join(found.tokens)})"
    elif _control_pattern(tokenizer).sub("", "".join(texts[first + 1 :])).strip():
        problem = f"goes on after {texts[first]!r}, where a student stops"
    else:
        return
    if stops:
        raise DataError(
            f"record {record.id}: messages[{index}]: the turn, as the chat template writes it, {problem}: remove the "
            "record, or mend the template"
        )


@lru_cache(maxsize=8)
def _find(tokenizer, template: str) -> Stops:
    controls = _control_pattern(tokenizer)
    rendered: list[tuple[Record, str, Turns]] = []
    for opening in ([], [{"role": "system", "content": "Be brief."}]):  # some templates demand a system prompt
        for record in [] if rendered or not template else _conversations(opening):
            try:
                rendered += [(record, text, [turn]) for text, turn in render_sequences(record, tokenizer)]
            except DataError:  # the template takes no such turn
                continue
    texts = [text[start:end] for _, text, turns in rendered for _, start, end in turns]
    inner = {found[0] for text in texts for found in controls.finditer(text)}
    inner = {
        token for token in inner if any(token in text[: len(text) - len(_last_run(text, controls))] for text in texts)
    }
    stops: dict[str, None] = {}
    added: dict[str, str] = {}
    for record, text, turns in rendered:
        for index, start, end in turns:
            own = [token for token in _last_controls(text[start:end], controls)[-1:] if token not in inner]
            follows = re.compile(rf"\s*({controls.pattern})").match(text, end) if not own else None
            if follows is not None and follows[1] not in inner:
                own = [follows[1]]
                added.setdefault(_kind(record.messages[index]), follows[0])
            stops |= dict.fromkeys(own)
    ids = list_control_tokens(tokenizer)
    return Stops({token: ids[token] for token in stops}, frozenset(map(ids.__getitem__, inner)), added, bool(rendered))


def _control_pattern(tokenizer) -> re.Pattern[str]:
    return compile_special_tokens(tokenizer) or re.compile("(?!)")


def _last_run(turn: str, controls: re.Pattern[str]) -> str:
    """Return the end of a turn that is control tokens and white space alone."""
    end = len(turn)
    for match in reversed(list(controls.finditer(turn))):
        if turn[match.end() : end].strip():
            break
        end = match.start()
    return turn[end:]


def _last_controls(turn: str, controls: re.Pattern[str]) -> list[str]:
    return controls.findall(_last_run(turn, controls))


def _kind(message: dict[str, Any]) -> str:
    return "call" if message.get("tool_calls") else "answer"


def _conversations(opening: list[dict[str, Any]]) -> Iterable[Record]:
    """Yield the small conversations, which have every kind of turn in the middle and at the end.

    opening: messages before each.
    """
    function = {"name": "find_place", "description": "Find a place", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]

    def call(*identities: str, content: str = "") -> dict[str, Any]:
        calls = [
            {"id": one, "type": "function", "function": {"name": "find_place", "arguments": {}}} for one in identities
        ]
        return {"role": "assistant", "content": content, "tool_calls": calls}

    ask, answer = {"role": "user", "content": "How far?"}, {"role": "assistant", "content": "It is 41 km"}
    results = [{"role": "tool", "tool_call_id": f"call0000{n}", "name": "find_place", "content": "41"} for n in (1, 2)]
    one, two = call("call00001"), call("call00001", "call00002")
    said = call("call00001", content="Let me look")
    for offered, messages in (
        ([], [ask, answer]),
        ([], [ask, answer, ask, answer]),
        (tools, [ask, one, results[0], answer, ask, answer]),
        (tools, [ask, one]),
        (tools, [ask, two, *results, answer]),
        (tools, [ask, said, results[0], answer]),
    ):
        yield Record("a small conversation", [*opening, *messages], offered)
