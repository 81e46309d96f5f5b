"""Files of an evaluation, evaluation.json and cases.jsonl, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd.atomic_files import publish
from kd.evaluation.metrics import METRICS
from kd.outputs import Output, read_object

EVALUATION, CASES = "evaluation.json", "cases.jsonl"


def list_outputs(name: str, folder: Path) -> list[Output]:
    """List the files of an evaluation in `folder`, which the option or key `name` gives."""
    return [
        Output(name, folder / EVALUATION, "an evaluation", _is_evaluation),
        Output(name, folder / CASES, "cases of an evaluation", _is_cases),
    ]


def write_evaluation(path: str | Path, evaluation: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write evaluation.json (model -> split -> metrics), whole or not at all.

    Raises:
        ValueError: a metric is not finite.
    """
    _write(path, json.dumps(evaluation, indent=2, allow_nan=False) + "\n")


def write_cases(path: str | Path, cases: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Write cases.jsonl from model -> split -> outcomes: a line a case, with each model's answer under `models`."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    shared = ("record_id", "turn", "kind", "prompt", "gold")
    own = ("output", "calls", "problems", "correct", "num_tokens", "finished")
    for model, splits in cases.items():
        for split, outcomes in splits.items():
            for outcome in outcomes:
                line = {"split": split, **{key: outcome[key] for key in shared}, "models": {}}
                line = lines.setdefault((split, outcome["case"]), line)
                line["models"][model] = {key: outcome[key] for key in own}
    _write(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines.values()))


def format_table(evaluation: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Format evaluation.json as lines for a terminal: fractions in percent, "-" where nothing was measured."""
    names = METRICS.names()
    lines = [f"{'model':<16}{'split':<16}" + "".join(f"{name:>20}" for name in names) + f"{'records':>9}"]
    for model, splits in evaluation.items():
        for split, metrics in splits.items():
            cells = ("-" if metrics[name] is None else f"{100 * metrics[name]:.1f} %" for name in names)
            lines.append(
                f"{model:<16}{split:<16}" + "".join(f"{cell:>20}" for cell in cells) + f"{metrics['num_records']:>9}"
            )
    return "\n".join(lines)


def _is_evaluation(path: Path) -> bool:
    models = read_object(path).values()
    splits = [split for model in models if isinstance(model, dict) for split in model.values()]
    return bool(splits) and all(isinstance(split, dict) and "num_records" in split for split in splits)


def _is_cases(path: Path) -> bool:
    return {"split", "record_id", "turn", "models"} <= read_object(path).keys()


def _write(path: str | Path, text: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, text.encode())
