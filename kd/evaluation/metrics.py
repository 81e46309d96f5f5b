"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

METRICS = ("tool_name_accuracy", "exact_arguments", "json_validity", "schema_validity", "over_calling", "integration")


_OUTCOMES = dict(zip(METRICS, ("names", "exact", "json", "schema", "over_called", "integrated")))


_KINDS = {"over_calling": "no_tool", "integration": "integration"}  # the others are over call turns


def summarise(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of judged cases: fractions in [0, 1], or None where no turn of the kind was asked."""
    by_kind: dict[str, list[dict]] = {"call": [], "no_tool": [], "integration": []}
    for case in cases:
        by_kind[case["kind"]].append(case["outcome"])
    metrics: dict[str, Any] = {}
    for metric, verdict in _OUTCOMES.items():
        metrics[metric] = _fraction(by_kind[_KINDS.get(metric, "call")], verdict)
    metrics["num_records"] = len({case["record"] for case in cases})
    metrics["counts"] = {f"{kind}_turns": len(outcomes) for kind, outcomes in by_kind.items()}
    carried = [
        sum(outcome[key] for outcome in by_kind["integration"]) for key in ("expected", "found", "given", "right")
    ]
    metrics["extra"] = {
        "repaired_json_validity": _fraction(by_kind["call"], "repaired_json"),
        "integration_f1": _f1(*carried),
        "unfinished": sum(not case["finished"] for case in cases) / len(cases) if cases else None,
        "mean_generated_tokens": sum(case["num_tokens"] for case in cases) / len(cases) if cases else None,
    }
    return metrics


def _fraction(outcomes: list[dict], verdict: str) -> float | None:
    return sum(outcome[verdict] for outcome in outcomes) / len(outcomes) if outcomes else None


def _f1(expected: int, found: int, given: int, right: int) -> float | None:
    """Harmonic mean of recall found/expected and precision right/given, over the values of all turns together."""
    if not expected:
        return None
    recall, precision = found / expected, right / given if given else 0.0
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0
