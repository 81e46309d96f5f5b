"""Files of an evaluation, evaluation.json and cases.jsonl, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kd.atomic_files import publish
from kd.evaluation.bfcl.scores import describe_run
from kd.evaluation.comparison import Evaluation, compare_models, find_ties
from kd.evaluation.intervals import Difference
from kd.evaluation.metrics import METRICS, find_metric, list_shown
from kd.outputs import Output, read_object
from kd.toolcalls.json_values import encode_json

EVALUATION, CASES = "evaluation.json", "cases.jsonl"


def list_outputs(name: str, folder: Path) -> list[Output]:
    """List the files of an evaluation in `folder`, which the option or key `name` gives."""
    return [
        Output(name, folder / EVALUATION, "an evaluation", _is_evaluation),
        Output(name, folder / CASES, "cases of an evaluation", _is_cases),
    ]


def write_evaluation(path: str | Path, evaluation: Evaluation) -> None:
    """Write evaluation.json (model -> split -> metrics), whole or not at all.

    Each model's metrics have `comparisons` with the models before it: model -> metric ->
    kd.evaluation.intervals.Difference, the other's less this one's.

    Raises:
        ValueError: a metric is not finite.
    """
    written = {
        model: {split: {**metrics, "comparisons": {}} for split, metrics in splits.items()}
        for model, splits in evaluation.items()
    }
    for split, pairs in compare_models(evaluation).items():
        for (one, two), pair in pairs.items():
            written[two][split]["comparisons"][one] = {name: found._asdict() for name, found in pair.items()}
    _write(path, (_dump(written, 3) + "\n").encode())


def write_cases(path: str | Path, cases: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Write cases.jsonl from model -> split -> outcomes: a line a case, with each model's answer under `models`.
    Where answers are sampled, the first one's `samples` has the others.

    Any generated text can be written (kd.toolcalls.json_values.encode_json).
    """
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    shared = ("record_id", "turn", "kind", "prompt", "gold")
    own = ("output", "calls", "problems", "correct", "num_tokens", "finished", "outcome")
    for model, splits in cases.items():
        for split, outcomes in splits.items():
            for outcome in outcomes:
                line = {"split": split, **{key: outcome[key] for key in shared}, "models": {}}
                line = lines.setdefault((split, outcome["case"]), line)
                answer = {key: outcome[key] for key in (*own, "own_calls") if key in outcome}
                if outcome.get("sample", 0):
                    line["models"][model].setdefault("samples", []).append(answer)
                else:
                    line["models"][model] = answer
    _write(path, b"".join(encode_json(line) + b"\n" for line in lines.values()))


def format_table(evaluation: Evaluation) -> str:
    """Format evaluation.json as lines for a terminal: fractions in percent, "-" where nothing was measured.

    Below a model's metrics are their intervals, with "~" where the best model of the split is within noise. A split of
    OPTIONAL metrics alone has a line a metric.
    """
    wide, tall = _sort_splits(evaluation)
    lines = _format_wide(evaluation, wide) if wide else []
    for split in tall:
        lines += [""] * bool(lines) + _format_tall(evaluation, split)
    if any("intervals" in metrics for splits in evaluation.values() for metrics in splits.values()):
        place = "below each model" if wide else "beside each figure"
        lines.append(f"{place}: intervals of 95 % over records; ~: not told apart from the best of its split")
    lines += _format_pass(evaluation)
    return "\n".join(lines)


def _sort_splits(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """Sort the splits into those shown with a column a metric, and those with a line a metric."""
    wide, tall = [], []
    for split in list_splits(evaluation):
        (wide if set(_list_metrics(evaluation, [split])) & {*METRICS.names()} else tall).append(split)
    return wide, tall


def _list_metrics(evaluation: Evaluation, chosen: Sequence[str]) -> list[str]:
    return list_shown(splits[split] for splits in evaluation.values() for split in chosen if split in splits)


def _format_wide(evaluation: Evaluation, chosen: Sequence[str]) -> list[str]:
    names = _list_metrics(evaluation, chosen)
    lines = [f"{'model':<16}{'split':<16}" + "".join(f"{name:>20}" for name in names) + f"{'records':>9}"]
    ties = {(split, name): find_ties(evaluation, split, name) for split in chosen for name in names}
    for model, splits in evaluation.items():
        for split, metrics in splits.items():
            if split not in chosen:
                continue
            cells = (show_percent(metrics.get(name)) for name in names)
            lines.append(
                f"{model:<16}{split:<16}" + "".join(f"{cell:>20}" for cell in cells) + f"{metrics['num_records']:>9}"
            )
            if "intervals" in metrics:
                cells = (
                    f"{'~ ' if model in ties[split, name] else ''}{show_interval(metrics['intervals'].get(name))}"
                    for name in names
                )
                lines.append(" " * 32 + "".join(f"{cell:>20}" for cell in cells))
    return lines


def _format_tall(evaluation: Evaluation, split: str) -> list[str]:
    scores = {model: splits[split] for model, splits in evaluation.items() if split in splits}
    lines = [f"{split:<44}" + "".join(f"{model:>32}" for model in scores)]
    for name in _list_metrics(evaluation, [split]):
        ties = find_ties(evaluation, split, name)
        cells = (_show_score(metrics, name, model in ties) for model, metrics in scores.items())
        lines.append(f"{_find_title(name):<44}" + "".join(f"{cell:>32}" for cell in cells))
    for model, metrics in scores.items():
        lines += [f"{model}: {words}" for words in describe_run(metrics)]
    return lines


def describe_split(metrics: dict[str, Any]) -> list[str]:
    """Describe how the figures of a model on a split came about: what BFCL's run left out, sampled answers, pass@k."""
    lines = describe_run(metrics)
    if num_samples := metrics.get("num_samples"):
        lines.append(f"{num_samples} sampled answers a turn: metrics are means over them, errors are of all of them")
    return [*lines, *(f"{name} {cells}" for name, cells in _list_pass(metrics))]


def _list_pass(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """List pass@k with intervals: (metric, each k)."""
    for name, by_k in metrics.get("pass_at_k", {}).items():
        if name in METRICS:
            cells = (
                f"@{k} {show_percent(found['value'])} ({show_interval(found['interval'])})" for k, found in by_k.items()
            )
            yield name, f"pass{'  '.join(cells)}"


def _find_title(name: str) -> str:
    metric = find_metric(name)
    return name if metric is None else metric.title


def _show_score(metrics: dict[str, Any], name: str, tied: bool) -> str:
    interval = show_interval(metrics["intervals"].get(name))
    return f"{'~ ' if tied else ''}{show_percent(metrics.get(name))} ({interval})"


def _format_pass(evaluation: Evaluation) -> list[str]:
    """Format pass@k of the models whose answers were sampled, with intervals."""
    return [
        f"{model:<16}{split:<16}{name:<20} {cells}"
        for model, splits in evaluation.items()
        for split, metrics in splits.items()
        for name, cells in _list_pass(metrics)
    ]


def format_comparison(evaluation: Evaluation) -> str:
    """Format models side by side as Markdown: metrics with their intervals, then each pair's differences.

    Raises:
        ComparisonError: two models were asked different records.
    """
    pairs = compare_models(evaluation)
    _, tall = _sort_splits(evaluation)
    lines = []
    for split in list_splits(evaluation):
        names = _list_metrics(evaluation, [split])
        ties = {name: find_ties(evaluation, split, name) for name in names}
        scores = {model: splits[split] for model, splits in evaluation.items() if split in splits}
        rows = [
            [model, *(_show_score(metrics, name, model in ties[name]) for name in names), str(metrics["num_records"])]
            for model, metrics in scores.items()
        ]
        lines += [f"## {split}", "", *_markdown(["model", *names, "records"], rows, split in tall), ""]
        rows = [
            [f"{one} - {two}", *(show_difference(pair.get(name)) for name in names)]
            for (one, two), pair in pairs.get(split, {}).items()
        ]
        lines += [*_markdown(["difference, points", *names], rows, split in tall), ""] if rows else []
        lines += [f"{model}: {words}\n" for model, metrics in scores.items() for words in describe_split(metrics)]
    lines.append(
        "Intervals of 95 % over records, paired by id for differences. ~: not told apart from the best of its split, "
        "or a difference within noise. In brackets after a difference: records on which the two differ, of all."
    )
    return "\n".join(lines)


def write_comparison_table(path: str | Path, table: str) -> None:
    """Write the Markdown of `format_comparison`, whole or not at all."""
    _write(path, f"{table}\n".encode("utf-8", "backslashreplace"))


def list_splits(evaluation: Evaluation) -> list[str]:
    """List the splits, in the order of the file."""
    return list(dict.fromkeys(split for splits in evaluation.values() for split in splits))


def show_percent(value: float | None) -> str:
    """Show a fraction in percent; "-" where nothing was measured."""
    return "-" if value is None else f"{100 * value:.1f} %"


def show_interval(interval: Sequence[float] | None) -> str:
    """Show an interval of a fraction in percent."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def show_difference(found: Difference | None) -> str:
    """Show a difference in points, its interval, and the records on which two models differ."""
    if found is None:
        return "-"
    counts = "" if found.num_discordant is None else f" [{found.num_discordant} of {found.num_records}]"
    interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f"{'~ ' if found.within_noise else ''}{100 * found.difference:+.1f} ({interval}){counts}"


def _markdown(head: list[str], rows: list[list[str]], turned: bool = False) -> list[str]:
    """Make a table; `turned`: with a line for each column."""
    head, *rows = map(list, zip(head, *rows)) if turned else (head, *rows)
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in line)} |" for line in lines]


def _dump(value: Any, depth: int, indent: str = "") -> str:
    """Write JSON with a line for each key of the first `depth` levels."""
    if not depth or not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(key)}: {_dump(item, depth - 1, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _is_evaluation(path: Path) -> bool:
    models = read_object(path).values()
    splits = [split for model in models if isinstance(model, dict) for split in model.values()]
    return bool(splits) and all(isinstance(split, dict) and "num_records" in split for split in splits)


def _is_cases(path: Path) -> bool:
    return {"split", "record_id", "turn", "models"} <= read_object(path).keys()


def _write(path: str | Path, content: bytes) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, content)
