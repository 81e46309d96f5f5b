"""Registry of the evaluation's metrics, and the summary of one split.

A metric is a function of all judged cases of a split. evaluation.json, the table and the report take every registered
metric, in the order of registration. `DETAILS` are in evaluation.json's `extra` and in the report's second table. To
add a metric, write a function and register it; from outside the package, in a module that the run imports:

    METRICS.register("short_answers", Metric("short answers", lambda cases: ...))

A `Ratio` is a function, too, whose interval costs nothing. Any other is computed up to 100 times more for its own.
`OPTIONAL` metrics are registered alike, and shown only where an evaluation measured them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kd.evaluation.bfcl.scores import BFCL, list_measures, summarise_run
from kd.evaluation.intervals import Parts, find_interval, leave_out
from kd.evaluation.pass_at_k import measure_pass
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
        fraction: False for one that is not in [0, 1].
    """

    title: str
    measure: Callable[[Cases], float | None]
    lower_is_better: bool = False
    fraction: bool = True


@dataclass(frozen=True)
class Ratio:
    """Measure that is one sum over the cases divided by another; `parts` gives a case's share of both.

    judges: kind of turn that is right or wrong as a whole, 1 or 0 of 1; "" of a measure that is no verdict on turns.
    """

    parts: Callable[[Case], tuple[float, float]]
    judges: str = ""

    def __call__(self, cases: Cases) -> float | None:
        return self.by_record([cases]).value

    def by_record(self, records: Sequence[Cases]) -> Parts:
        """Sum the parts of each record's cases."""
        pairs = [[self.parts(case) for case in cases] for cases in records]
        return Parts([sum(s for s, _ in own) for own in pairs], [sum(c for _, c in own) for own in pairs])


def make_fraction(kind: str, verdict: str) -> Ratio:
    """Make a measure: the part of the cases of `kind` whose outcome says yes to `verdict` (kd/evaluation/judge.py)."""
    return Ratio(lambda case: (case["outcome"][verdict], 1) if case["kind"] == kind else (0, 0), kind)


METRICS: Registry[Metric] = Registry("metric")
METRICS.register("tool_name_accuracy", Metric("tool name accuracy", make_fraction("call", "names")))
METRICS.register("exact_arguments", Metric("exact arguments", make_fraction("call", "exact")))
METRICS.register("json_validity", Metric("JSON validity", make_fraction("call", "json")))
METRICS.register("schema_validity", Metric("schema validity", make_fraction("call", "schema")))
METRICS.register("over_calling", Metric("over calling", make_fraction("no_tool", "over_called"), lower_is_better=True))
METRICS.register("integration", Metric("integration", make_fraction("integration", "integrated")))


def _count_conversations(right: str, total: str) -> Ratio:
    """Make a measure of whole conversations (kd/evaluation/conversations/judge.py)."""
    return Ratio(
        lambda case: (
            (case["outcome"][right], case["outcome"][total] if total else 1)
            if case["kind"] == "conversation"
            else (0, 0)
        )
    )


OPTIONAL: Registry[Metric] = Registry("metric")
OPTIONAL.register("conversations_right", Metric("conversations right throughout", _count_conversations("right", "")))
OPTIONAL.register(
    "calls_before_error", Metric("calls up to the first error", _count_conversations("calls_before_error", "num_calls"))
)
OPTIONAL.register(
    "turns_reached",
    Metric("turns up to the first error, that one too", _count_conversations("turns_reached", "num_turns")),
)


def _average(name: str) -> Ratio:
    """Make a measure: the mean of a number that some outcomes have, in [0, 1]."""
    return Ratio(lambda case: (case["outcome"][name], 1) if name in case["outcome"] else (0, 0))


OPTIONAL.register("caws_compliance", Metric("CAWS compliance", _average("caws_compliance")))
OPTIONAL.register("caws_structure", Metric("CAWS structure", _average("caws_structure")))
for _name, _title, _measure in list_measures():
    OPTIONAL.register(_name, Metric(_title, _measure))


def summarise(cases: Cases) -> dict[str, Any]:
    """Summarise judged cases, all samples of each: each registered metric and those of OPTIONAL that were measured,
    num_records, counts (turns by kind; entries by category of BFCL), extra, errors, intervals, records, of sampled
    answers num_samples and pass_at_k, and of BFCL's `bfcl` (kd.evaluation.bfcl.scores.summarise_run).

    `extra` holds DETAILS, what helps to understand the metrics. A fraction over no turns is None. `errors` counts the
    turns by BFCL's name of what is wrong. `intervals` has [low, high] at 95 %, or None, for each metric and detail.
    `records` is what a comparison with another model needs: ids, hashes of what was asked, the parts of each metric.
    `pass_at_k` is as `kd.evaluation.pass_at_k.measure_pass` says, for each verdict on call turns; the metrics
    themselves are means over the samples.
    """
    asked = [case for case in cases if not case.get("sample", 0)]
    own: dict[Any, list[Case]] = {}
    for case in cases:
        own.setdefault(case["record"], []).append(case)
    records = list(own.values())
    optional = {name: OPTIONAL[name] for name in OPTIONAL.names() if OPTIONAL[name].measure(cases) is not None}
    main = {name: METRICS[name] for name in METRICS.names()} | optional
    measured = {**main, **DETAILS}
    parts = {name: _find_parts(metric.measure, records) for name, metric in measured.items()}
    values = {name: metric.measure(cases) for name, metric in measured.items()}
    metrics: dict[str, Any] = {name: values[name] for name in main}
    metrics["num_records"] = len(records)
    metrics["counts"] = {f"{kind}_turns": sum(case["kind"] == kind for case in asked) for kind in KINDS}
    if run := summarise_run(cases):
        metrics["counts"], metrics[BFCL] = run.pop("entries"), run
    if num_conversations := sum(case["kind"] == "conversation" for case in cases):
        metrics["counts"]["conversations"] = num_conversations
    metrics["extra"] = {name: values[name] for name in DETAILS}
    errors = Counter(error for case in cases if (error := case["outcome"].get("error")))
    metrics["errors"] = dict(errors.most_common())
    metrics["intervals"] = {
        name: found and find_interval(found, fraction=measured[name].fraction) for name, found in parts.items()
    }
    metrics["records"] = {
        "ids": _list_ids(records),
        "asked": [_hash_asked(record) for record in records],
        "parts": {name: found and found._asdict() for name, found in parts.items()},
    }
    if len(cases) > len(asked):
        metrics["num_samples"] = num_samples = len(cases) // len(asked)
        metrics["pass_at_k"] = measure_pass(records, _list_verdicts(measured), num_samples)
    return metrics


def _list_verdicts(measured: dict[str, Metric]) -> dict[str, Callable[[Case], float]]:
    """List the metrics that call a call turn right or wrong, each as a function of one case."""
    ratios = {name: one.measure for name, one in measured.items() if not one.lower_is_better}
    return {
        name: lambda case, ratio=ratio: ratio.parts(case)[0]
        for name, ratio in ratios.items()
        if isinstance(ratio, Ratio) and ratio.judges == "call"
    }


def find_metric(name: str) -> Metric | None:
    """Find a metric or a detail by name; None where nobody registered it here."""
    for registry in (METRICS, OPTIONAL):
        if name in registry:
            return registry[name]
    return DETAILS.get(name)


def list_shown(splits: Iterable[dict[str, Any]]) -> list[str]:
    """List the metrics to show of splits of evaluation.json: METRICS, and of OPTIONAL those that one of them measured.

    METRICS are left out where no split measured one of them, and one did of OPTIONAL.
    """
    splits = list(splits)
    optional = [name for name in OPTIONAL.names() if any(split.get(name) is not None for split in splits)]
    is_alone = optional and not any(split.get(name) is not None for split in splits for name in METRICS.names())
    return [*(() if is_alone else METRICS.names()), *optional]


def read_value(metrics: dict[str, Any], name: str) -> float | None:
    """Read a metric or a detail from a split of evaluation.json; None, too, in a file older than the metric."""
    return metrics.get("extra", {}).get(name) if name in DETAILS else metrics.get(name)


def _find_parts(measure: Callable[[Cases], float | None], records: list[list[Case]]) -> Parts | None:
    by_record = getattr(measure, "by_record", None)
    return by_record(records) if by_record is not None else leave_out(measure, records)


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
    keys = ("turn", "kind", "prompt", "gold")
    turns = [case for case in record if case["kind"] in KINDS] or record  # a conversation asks the same again
    asked = [[case.get(key) for key in keys] for case in turns if not case.get("sample", 0)]
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


def _count_arguments(total: Callable[[dict[str, int]], float], right: int = 1) -> Ratio:
    """Make a measure of the arguments of call turns: right ones, `right` times each, in `total` of the counts."""

    def parts(case: Case) -> tuple[float, float]:
        counts = case["outcome"].get("arguments") if case["kind"] == "call" else None
        return (right * counts["right"], total(counts)) if counts else (0, 0)

    return Ratio(parts)


def _judge_by_bfcl(kind: str, verdict: str = "bfcl") -> Ratio:
    def parts(case: Case) -> tuple[float, float]:
        judged = case["kind"] == kind and verdict in case["outcome"]
        return (case["outcome"][verdict], 1) if judged else (0, 0)

    return Ratio(parts, kind)


def _of_turns(count: Callable[[Case], float]) -> Ratio:
    """Make a measure of every turn that is asked by itself."""
    return Ratio(lambda case: (count(case), 1) if case["kind"] in KINDS else (0, 0))


DETAILS = {
    "allowed_arguments": Metric("arguments in allowed values", _judge_by_bfcl("call", "allowed")),
    "bfcl_accuracy": Metric("calls right by BFCL", _judge_by_bfcl("call")),
    "bfcl_irrelevance": Metric("irrelevance by BFCL", _judge_by_bfcl("no_tool")),
    "missed_calls": Metric("missed calls", _judge_by_bfcl("call", "missed"), lower_is_better=True),
    "argument_precision": Metric("argument precision", _count_arguments(lambda counts: counts["given"])),
    "argument_recall": Metric("argument recall", _count_arguments(lambda counts: counts["wanted"])),
    "argument_f1": Metric("argument F1", _count_arguments(lambda counts: counts["given"] + counts["wanted"], 2)),
    "repaired_json_validity": Metric("repaired JSON validity", make_fraction("call", "repaired_json")),
    "integration_f1": Metric("integration F1", _integration_f1),
    "unfinished": Metric("unfinished", _of_turns(lambda case: not case["finished"]), lower_is_better=True),
    "mean_generated_tokens": Metric(
        "tokens an answer", _of_turns(lambda case: case["num_tokens"]), lower_is_better=True, fraction=False
    ),
}
