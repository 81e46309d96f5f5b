"""Reward of an answer: its value, its parts, and the mixture of several that a stage weighs.

To add one, write a file beside this one with a function like `RewardFunction`, and name it in
kd.config.registries.REWARDS; from outside the package call `REWARDS.register("name", function)` in a module that the
run imports, or name the function itself, as module:function.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from kd.config.registries import REWARDS
from kd.errors import SpanwiseError, text_of
from kd.records.record import Record
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


class RewardError(SpanwiseError, ValueError):
    """Reward that cannot be found, or that gave no reward; the message names it."""


def find_reward(name: str) -> RewardFunction:
    """Find a reward by its registered name, or import a function by module:function.

    Raises:
        RewardError: there is none of that name, or the module cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in REWARDS:
            raise RewardError(
                f"no reward {name!r}: choose one of {', '.join(REWARDS.names())}, or write module:function"
            )
        return REWARDS[name]
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module is the user's: whatever it raises is told, with its name
        raise RewardError(
            f"reward {name}: {type(error).__name__}: {error}; write module:function of a module in PYTHONPATH"
        ) from error
    if not callable(function):
        raise RewardError(f"reward {name}: it is {type(function).__name__}, no function of (record, turn, text, calls)")
    return cast(RewardFunction, function)


class Mixture:
    """Weighted mean of several rewards.

    Args:
        weights: name (as `find_reward` takes it) -> weight, of which at least one is above 0.

    Raises:
        RewardError: a reward cannot be found.
    """

    def __init__(self, weights: Mapping[str, float]):
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self._functions = {name: find_reward(name) for name in self.weights}
        self._total = sum(self.weights.values())

    def __call__(self, record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
        """Judge an answer; the parts are the values of the single rewards.

        Raises:
            RewardError: one of them raised, or returned no Reward.
        """
        answer = pickle.dumps((record, turn, text, calls))  # each judges a copy, which it may change
        values = {name: self._value(name, record.id, *pickle.loads(answer)) for name in self.weights}
        total = sum(self.weights[name] * value for name, value in values.items())
        return Reward(min(total / self._total, 1.0), values)

    def _value(self, name: str, record_id: str, *answer: Any) -> float:
        try:
            found = self._functions[name](*answer)
            if isinstance(found, Reward):
                return Reward(float(found.value)).value  # one of a subclass, or changed since, is checked again
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an exit too, which would end the run with its code; told with the record
            what = f"{type(error).__name__}: {text_of(error)}"
            raise RewardError(f"reward {name}, record {record_id}: {what}: mend the function") from error
        raise RewardError(f"reward {name} returned {type(found).__name__}: return kd.rewards.reward.Reward(value)")


def list_wanted(record: Record, turn: int) -> list[dict[str, Any]]:
    """List the calls ({"name", "arguments"}) that record.messages[turn] makes."""
    return [call["function"] for call in record.messages[turn].get("tool_calls") or ()]


def share_of(part: float, whole: float) -> float:
    """Divide a part by its whole; 1 of nothing."""
    return part / whole if whole else 1.0
