"""Reward of an answer: its value, its parts, and the registry.

To add one, write a file beside this one with a function like `RewardFunction`, and name it in REWARDS; from outside the
package call `REWARDS.register("name", function)` in a module that the run imports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kd.records.record import Record
from kd.registry import Registry
from kd.toolcalls.parsed import ParsedCalls


@dataclass(frozen=True)
class Reward:
    """Reward of one answer.

    Attributes:
        value: the reward, in [0, 1].
        parts: name -> number in [0, 1], for logs: they explain the value and need not add up to it.

    Raises:
        ValueError: a number outside [0, 1], or NaN.
    """

    value: float
    parts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, number in {"value": self.value, **self.parts}.items():
            if not 0 <= number <= 1:
                raise ValueError(f"a reward's {name} is {number}: it must be in [0, 1], so divide it by its largest")


class RewardFunction(Protocol):
    """Function from an answer to its reward; the same arguments always give the same reward."""

    def __call__(self, record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
        """Judge `text` as the student's answer in place of record.messages[turn]; `calls` are the calls in it."""
        ...


REWARDS: Registry[RewardFunction] = Registry("reward", {"exact_call": "kd.rewards.exact_call:exact_call"})
