"""Prompts of a stage: assistant turns of its records, each with the history before it, in an order of their own.

The order depends on the seed and the records alone. Where the configuration asks for a part of prompts that offer tools
of which none is due, these and the others are drawn from two orders of their own.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.encode import encode_prompt
from kd.sources.source import Source

_ANY, _NO_TOOL, _DUE = "any", "no_tool", "due"


class Asked(NamedTuple):
    """Prompt of a stage: `number` counts them, `record` is a position in the source, `turn` an index of its
    messages."""

    number: int
    record: int
    turn: int
    ids: tuple[int, ...]  # what the model sees


def is_no_tool(record: Record, turn: int) -> bool:
    """Tell whether tools are offered, none was used since the user spoke, and the record answers without one."""
    if not record.tools or record.messages[turn].get("tool_calls"):
        return False
    before = [message["role"] for message in record.messages[:turn]]
    asked = max((at for at, role in enumerate(before) if role == "user"), default=-1)
    return asked >= 0 and "tool" not in before[asked:]


class PromptOrder:
    """Endless prompts of a stage.

    Args:
        most_tokens: a longer prompt is left out.
        no_tool: part of the prompts that are `is_no_tool`; None for as many as the records have.

    Raises:
        DataError: no record of the stage has a prompt that is short enough.
    """

    def __init__(self, source: Source, tokenizer, seed: str, most_tokens: int, no_tool: float | None = None):
        self._source, self._tokenizer, self._seed, self._most = source, tokenizer, seed, most_tokens
        self._no_tool = no_tool
        self._number = 0
        self._at: dict[str, list[int]] = {}  # kind -> epoch, place in it
        self._orders: dict[tuple[str, int], list[int]] = {}
        self.num_left_out = 0  # prompts that were too long, or could not be rendered

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the order as plain values."""
        return {"number": self._number, "at": {kind: list(at) for kind, at in self._at.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a place in the order."""
        self._number, self._at = state["number"], {kind: list(at) for kind, at in state["at"].items()}

    def take(self) -> Asked:
        """Return the next prompt."""
        number, part = self._number, self._no_tool
        self._number += 1
        kind = _ANY if part is None else _NO_TOOL if int((number + 1) * part) > int(number * part) else _DUE
        found = self._find(kind, number) or self._find(_ANY, number)
        if found is None:
            raise DataError(
                f"no record gives a prompt, words before an assistant's turn, of at most {self._most} tokens "
                "(max_length less rollouts.max_new_tokens): give records with such turns, raise max_length, or lower "
                "max_new_tokens"
            )
        return found

    def _find(self, kind: str, number: int) -> Asked | None:
        """Find the next prompt of a kind; None where a whole epoch has none."""
        at = self._at.setdefault(kind, [0, 0])
        for _ in range(len(self._source) + 1):
            if at[1] == len(self._source):
                at[:] = at[0] + 1, 0
            index = self._order(kind, at[0])[at[1]]
            place, at[1] = tuple(at), at[1] + 1
            found = self._choose(kind, index, number, place)
            if found is not None:
                return found
        return None

    def _choose(self, kind: str, index: int, number: int, place: tuple[int, ...]) -> Asked | None:
        try:
            record = self._source[index]
        except DataError:
            return None
        turns = [turn for turn, message in enumerate(record.messages) if turn and message["role"] == "assistant"]
        if kind != _ANY:
            turns = [turn for turn in turns if is_no_tool(record, turn) == (kind == _NO_TOOL)]
        if not turns:
            return None
        turn = random.Random(f"{self._seed}:{kind}:{place}").choice(turns)
        try:
            ids = encode_prompt(record, turn, self._tokenizer)[1]
        except DataError:
            self.num_left_out += 1
            return None
        if len(ids) > self._most:
            self.num_left_out += 1
            return None
        return Asked(number, index, turn, tuple(ids))

    def _order(self, kind: str, epoch: int) -> list[int]:
        if (kind, epoch) not in self._orders:
            order = list(range(len(self._source)))
            random.Random(f"{self._seed}:{kind}:prompts:{epoch}").shuffle(order)
            self._orders = {key: kept for key, kept in self._orders.items() if key[0] != kind} | {(kind, epoch): order}
        return self._orders[kind, epoch]
