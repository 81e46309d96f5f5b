"""Comparison of made calls with wanted ones, as multisets: the order of parallel calls is free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from kd.toolcalls.json_values import same_json


class ArgumentCounts(NamedTuple):
    """Arguments of made calls against wanted ones: `right` are given as wanted, in calls paired by name."""

    right: int
    given: int
    wanted: int


def same_names(calls: list[dict], wanted: list[dict]) -> bool:
    """Check that calls ({"name", "arguments"}) name the wanted tools, each as often."""
    return count_same_names(calls, wanted) == len(calls) == len(wanted)


def same_calls(calls: list[dict], wanted: list[dict]) -> bool:
    """Check that calls equal the wanted ones, names and arguments as JSON values."""
    return count_same_calls(calls, wanted) == len(calls) == len(wanted)


def same_calls_in_order(calls: list[dict], wanted: list[dict]) -> bool:
    """Check that calls equal the wanted ones, one by one."""
    return len(calls) == len(wanted) and all(map(same_json, calls, wanted))


def count_same_names(calls: list[dict], wanted: list[dict]) -> int:
    """Count the calls whose names are wanted, each wanted one once."""
    return (Counter(call["name"] for call in calls) & Counter(call["name"] for call in wanted)).total()


def count_same_calls(calls: list[dict], wanted: list[dict]) -> int:
    """Count the calls that equal a wanted one, each wanted one once."""
    left = list(wanted)
    for call in calls:
        match = next((at for at, other in enumerate(left) if same_json(call, other)), None)
        if match is not None:
            del left[match]
    return len(wanted) - len(left)


def count_arguments(
    calls: list[dict], wanted: list[dict], same: Callable[[object, object], bool] = same_json
) -> ArgumentCounts:
    """Count right, given and wanted arguments; each call is paired with one of its name, those most alike first.

    same: compares a given value with the wanted one of its name.
    """
    pairs = [
        (sum(key in call["arguments"] and same(call["arguments"][key], value) for key, value in other), i, j)
        for i, call in enumerate(calls)
        for j, (name, other) in enumerate((one["name"], one["arguments"].items()) for one in wanted)
        if call["name"] == name
    ]
    right, made, met = 0, set(), set()
    for num_same, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if i not in made and j not in met:
            right += num_same
            made.add(i)
            met.add(j)
    given, total = (sum(len(call["arguments"]) for call in one) for one in (calls, wanted))
    return ArgumentCounts(right, given, total)
