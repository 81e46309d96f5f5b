"""Scores of BFCL: measures of judged entries, by category, group and overall.

A group's score is a sum over categories of weight times mean. Its interval is that of a stratified sample: entries are
drawn within their categories (Cochran, Sampling Techniques, 1977, chapter 5). A category of few entries that are all
right, or all wrong, is no certain one: its variance is at least that of (right + 1) / (entries + 2) (Agresti and
Caffo, The American Statistician 54, 2000).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kd.evaluation.bfcl.categories import GROUPS, OFFERED, OVERALL, SCORED, Group, share_weight
from kd.evaluation.intervals import Parts

BFCL = "bfcl"  # kind of the outcome, and the split's name
Case = dict[str, Any]


@dataclass(frozen=True)
class CategoryMean:
    """Measure of a category or a group: the mean of BFCL's verdicts; None where no entry was asked."""

    group: str | Group

    def __call__(self, cases: Sequence[Case]) -> float | None:
        return self.by_record([cases]).value

    def by_record(self, records: Sequence[Sequence[Case]]) -> Parts:
        """Find the parts of each record, which move about the score as verdicts do about their category's mean.

        Of one category they are the verdicts themselves.
        """
        verdicts = [
            [(case["outcome"]["category"], case["outcome"]["bfcl"]) for case in cases if case["kind"] == BFCL]
            for cases in records
        ]
        counts = Counter(name for own in verdicts for name, _ in own)
        right = Counter(name for own in verdicts for name, verdict in own if verdict)
        weights = share_weight(self.group, counts)
        num = sum(counts[name] for name in weights)
        size = {name: weight * num / counts[name] for name, weight in weights.items()}
        score = sum(weight * right[name] / counts[name] for name, weight in weights.items())
        moved = {name: score - right[name] / counts[name] if len(weights) > 1 else 0.0 for name in weights}
        if len(weights) == 1 or not weights:
            most = None
        else:
            drawn = {name: (right[name] + 1) / (counts[name] + 2) if 0 < score < 1 else 0.5 for name in weights}
            spread = score * (1 - score) or 0.25
            most = spread / sum(w**2 * drawn[name] * (1 - drawn[name]) / counts[name] for name, w in weights.items())
        return Parts(
            [sum(size[name] * (verdict + moved[name]) for name, verdict in own if name in size) for own in verdicts],
            [sum(size[name] for name, _ in own if name in size) for own in verdicts],
            by_record=len(weights) == 1,
            most=most,
        )


def list_measures() -> Iterator[tuple[str, str, CategoryMean]]:
    """List the metrics of BFCL: (name, title, measure)."""
    yield "bfcl_v4_overall", "BFCL overall", CategoryMean(OVERALL)
    for (name, group), weight in zip(GROUPS.items(), OVERALL.weights):
        title = f"BFCL {name.replace('_', '-')}, {weight:g} % of the overall"
        yield f"bfcl_v4_overall_{name}", title, CategoryMean(group)
    for name in OFFERED:
        yield f"bfcl_v4_{name}", f"BFCL {name.replace('_', ' ')}", CategoryMean(name)


def summarise_run(cases: Sequence[Case]) -> dict[str, Any]:
    """Summarise a run of BFCL: judge, entries by category, categories not run, and entries of each category on which
    our own verdict differs from its checker's; {} where there is none.
    """
    own = [case["outcome"] for case in cases if case["kind"] == BFCL]
    if not own:
        return {}
    counts = Counter(outcome["category"] for outcome in own)
    return {
        "judge": own[0]["judge"],
        "entries": {name: counts[name] for name in OFFERED if counts[name]},
        "not_run": [name for name in SCORED if not counts[name]],
        "judges_differ": dict(Counter(one["category"] for one in own if one["bfcl"] != one["ours"])),
    }


def describe_run(metrics: dict[str, Any]) -> list[str]:
    """Describe a split's run of BFCL: what was not run, and where our own verdict differs; else nothing."""
    run = metrics.get(BFCL)
    if run is None:
        return []
    said = [f"{run['judge']}, {metrics['num_records']} entries"]
    if run["not_run"]:
        said.append(f"the overall is of what was run; not run: {', '.join(run['not_run'])}")
    if run["judges_differ"]:
        differing = ", ".join(f"{name} {number}" for name, number in run["judges_differ"].items())
        said.append(f"our own verdict differs on entries of: {differing}")
    return said
