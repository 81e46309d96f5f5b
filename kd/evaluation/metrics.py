"""Registry of the evaluation's metrics, and the summary of one split.

A metric is a function of all judged cases of a split. evaluation.json, the table and the report take every registered
metric, in the order of registration. To add one, write a function and register it; from outside the package, in a
module that the run imports:

    METRICS.register("short_answers", Metric("short answers", lambda cases: ...))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kd.registry import Registry

Cases = Sequence[dict[str, Any]]  # as `kd.evaluation.evaluate.evaluate_cases` returns them
KINDS = ("call", "no_tool", "integration")  # of a case (kd/evaluation/cases.py)


@dataclass(frozen=True)
class Metric:
    """Metric of judged cases; its name is the one it is registered under.

    Attributes:
        title: words for the report's column.
        measure: judged cases of one split -> fraction in [0, 1], or None where no case is of its kind.
        lower_is_better: the best student is the one with the least.
    """

    title: str
    measure: Callable[[Cases], float | None]
    lower_is_better: bool = False


def make_fraction(kind: str, verdict: str) -> Callable[[Cases], float | None]:
    """Make a measure: the part of the cases of `kind` whose outcome says yes to `verdict` (kd/evaluation/judge.py)."""

    def measure(cases: Cases) -> float | None:
        outcomes = [case["outcome"] for case in cases if case["kind"] == kind]
        return sum(outcome[verdict] for outcome in outcomes) / len(outcomes) if outcomes else None

    return measure


METRICS: Registry[Metric] = Registry("metric")
METRICS.register("tool_name_accuracy", Metric("tool name accuracy", make_fraction("call", "names")))
METRICS.register("exact_arguments", Metric("exact arguments", make_fraction("call", "exact")))
METRICS.register("json_validity", Metric("JSON validity", make_fraction("call", "json")))
METRICS.register("schema_validity", Metric("schema validity", make_fraction("call", "schema")))
METRICS.register("over_calling", Metric("over calling", make_fraction("no_tool", "over_called"), lower_is_better=True))
METRICS.register("integration", Metric("integration", make_fraction("integration", "integrated")))


def summarise(cases: Cases) -> dict[str, Any]:
    """Summarise judged cases: each registered metric, num_records, counts (turns by kind) and extra.

    `extra` holds what helps to understand the metrics and is not comparable across corpora. A fraction over no turns is
    None.
    """
    metrics: dict[str, Any] = {name: METRICS[name].measure(cases) for name in METRICS.names()}
    metrics["num_records"] = len({case["record"] for case in cases})
    metrics["counts"] = {f"{kind}_turns": sum(case["kind"] == kind for case in cases) for kind in KINDS}
    metrics["extra"] = {
        "repaired_json_validity": make_fraction("call", "repaired_json")(cases),
        "integration_f1": _integration_f1(cases),
        "unfinished": sum(not case["finished"] for case in cases) / len(cases) if cases else None,
        "mean_generated_tokens": sum(case["num_tokens"] for case in cases) / len(cases) if cases else None,
    }
    return metrics


def _integration_f1(cases: Cases) -> float | None:
    """Compute the F1 of recall found/expected and precision right/given, over the values of all turns together."""
    outcomes = [case["outcome"] for case in cases if case["kind"] == "integration"]
    expected, found, given, right = (
        sum(outcome[key] for outcome in outcomes) for key in ("expected", "found", "given", "right")
    )
    if not expected:
        return None
    recall, precision = found / expected, right / given if given else 0.0
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0
