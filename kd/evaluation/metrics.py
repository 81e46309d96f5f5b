"""Registry of the evaluation's metrics, and the summary of one split.

A metric is a function of all judged cases of a split. evaluation.json and the report take every registered metric, in
the order of registration; the printed table takes all but the details. To add one, write a function and register it;
from outside the package, in a module that the run imports:

    METRICS.register("short_answers", Metric("short answers", lambda cases: ...))

A `Ratio` is a function, too, whose interval costs nothing. Any other is computed up to 100 times more for its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kd.evaluation.intervals import Parts, find_interval, leave_out
from kd.hashing import hash_text
from kd.registry import Registry

Case = dict[str, Any]  # as `kd.evaluation.evaluate.evaluate_cases` returns it
Cases = Sequence[Case]
KINDS = ("call", "no_tool", "integration")  # of a case (kd/evaluation/cases.py)


@dataclass(frozen=True)
class Metric:
    """Metric of judged cases; its name is the one it is registered under.

    Attributes:
        title: words for the report's column.
        measure: judged cases of one split -> fraction in [0, 1], or None where no case is of its kind.
        lower_is_better: the best student is the one with the least.
        detail: shown in the report's second table, not in the printed one.
        fraction: False for one that is not in [0, 1].
    """

    title: str
    measure: Callable[[Cases], float | None]
    lower_is_better: bool = False
    detail: bool = False
    fraction: bool = True


@dataclass(frozen=True)
class Ratio:
    """Measure that is one sum over the cases divided by another; `parts` gives a case's share of both."""

    parts: Callable[[Case], tuple[float, float]]

    def __call__(self, cases: Cases) -> float | None:
        return self.by_record([cases]).value

    def by_record(self, records: Sequence[Cases]) -> Parts:
        """Sum the parts of each record's cases."""
        pairs = [[self.parts(case) for case in cases] for cases in records]
        return Parts([sum(s for s, _ in own) for own in pairs], [sum(c for _, c in own) for own in pairs])


def make_fraction(kind: str, verdict: str) -> Ratio:
    """Make a measure: the part of the cases of `kind` whose outcome says yes to `verdict` (kd/evaluation/judge.py)."""
    return Ratio(lambda case: (case["outcome"][verdict], 1) if case["kind"] == kind else (0, 0))


METRICS: Registry[Metric] = Registry("metric")
METRICS.register("tool_name_accuracy", Metric("tool name accuracy", make_fraction("call", "names")))
METRICS.register("exact_arguments", Metric("exact arguments", make_fraction("call", "exact")))
METRICS.register("json_validity", Metric("JSON validity", make_fraction("call", "json")))
METRICS.register("schema_validity", Metric("schema validity", make_fraction("call", "schema")))
METRICS.register("over_calling", Metric("over calling", make_fraction("no_tool", "over_called"), lower_is_better=True))
METRICS.register("integration", Metric("integration", make_fraction("integration", "integrated")))


def summarise(cases: Cases) -> dict[str, Any]:
    """Summarise judged cases: each registered metric, num_records, counts (turns by kind), extra, intervals, records.

    `extra` holds what helps to understand the metrics and is not comparable across corpora. A fraction over no turns is
    None. `intervals` has [low, high] at 95 %, or None, for each metric and number of extra. `records` is what a
    comparison with another model needs: ids, hashes of what was asked, and the parts of each metric.
    """
    own: dict[Any, list[Case]] = {}
    for case in cases:
        own.setdefault(case["record"], []).append(case)
    records = list(own.values())
    measured = {**{name: METRICS[name] for name in METRICS.names()}, **_EXTRA}
    parts = {name: _find_parts(metric.measure, records) for name, metric in measured.items()}
    values = {name: metric.measure(cases) for name, metric in measured.items()}
    metrics: dict[str, Any] = {name: values[name] for name in METRICS.names()}
    metrics["num_records"] = len(records)
    metrics["counts"] = {f"{kind}_turns": sum(case["kind"] == kind for case in cases) for kind in KINDS}
    metrics["extra"] = {name: values[name] for name in _EXTRA}
    metrics["intervals"] = {
        name: found and find_interval(found, fraction=measured[name].fraction) for name, found in parts.items()
    }
    metrics["records"] = {
        "ids": _list_ids(records),
        "asked": [_hash_asked(record) for record in records],
        "parts": {name: found and found._asdict() for name, found in parts.items()},
    }
    return metrics


def is_fraction(name: str) -> bool:
    """Check that a metric or a number of `extra` lies in [0, 1]; one that nobody registered here does."""
    return _EXTRA[name].fraction if name in _EXTRA else name not in METRICS or METRICS[name].fraction


def _find_parts(measure: Callable[[Cases], float | None], records: list[list[Case]]) -> Parts | None:
    return measure.by_record(records) if isinstance(measure, Ratio) else leave_out(measure, records)


def _list_ids(records: list[list[Case]]) -> list[str]:
    """List the records' ids; of those with one id, the later ones have a number."""
    seen: dict[str, int] = {}
    ids = []
    for record in records:
        name = str(record[0].get("record_id", record[0]["record"]))
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return ids


def _hash_asked(record: list[Case]) -> str:
    """Hash what a record asks and wants, whatever template wrote its prompt."""
    asked = [[case.get(key) for key in ("turn", "kind", "prompt", "gold")] for case in record]
    return hash_text(json.dumps(asked, sort_keys=True))[:8]


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


_EXTRA = {
    "repaired_json_validity": Metric("repaired JSON validity", make_fraction("call", "repaired_json")),
    "integration_f1": Metric("integration F1", _integration_f1),
    "unfinished": Metric("unfinished", Ratio(lambda case: (not case["finished"], 1)), lower_is_better=True),
    "mean_generated_tokens": Metric(
        "tokens an answer", Ratio(lambda case: (case["num_tokens"], 1)), lower_is_better=True, fraction=False
    ),
}
