"""Reward for an answer that speaks of the record's CAWS spec: its id, its criteria, its invariants."""

from __future__ import annotations

import re

from kd.records.caws.context import read_context
from kd.records.record import Record
from kd.rewards.reward import Reward
from kd.toolcalls.grounding import occurs
from kd.toolcalls.parsed import ParsedCalls

_WORD = re.compile(r"\w+")
_LEAST = 4  # letters of a word that counts


def caws_structure(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward an answer, its text and the texts in its calls, by the mean of these parts:

        spec        1 where the spec's id is named
        acceptance  part of the criteria whose id is named
        invariants  part of the invariants whose every word of 4 letters or more is there, in any case and order

    A part of which the spec has none is left out. A record without `caws` has no structure to show: 1.

    Raises:
        CawsError: the record's `caws` is no context.
    """
    if record.caws is None:
        return Reward(1.0)
    context = read_context(record.caws, f"record {record.id}")
    said = "\n".join([text, *(value for call in calls.calls for value in list_texts(call["arguments"]))])
    words = set(_WORD.findall(said.casefold()))
    parts = {"spec": float(occurs(context.id, said))}
    if context.acceptance:
        parts["acceptance"] = sum(occurs(one.id, said) for one in context.acceptance) / len(context.acceptance)
    if wanted := [one for one in map(_content, context.invariants) if one]:
        parts["invariants"] = sum(one <= words for one in wanted) / len(wanted)
    return Reward(sum(parts.values()) / len(parts), parts)


def _content(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if len(word) >= _LEAST}


def list_texts(value: object) -> list[str]:
    """List the texts in a JSON value, keys aside."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in list_texts(one)]
