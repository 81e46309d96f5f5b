"""Comparison of made calls with wanted ones, as multisets: the order of parallel calls is free."""

from __future__ import annotations

from collections import Counter

from kd.toolcalls.json_values import same_json


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
