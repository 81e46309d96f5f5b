"""TODO docstring."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kd.evaluation.metrics import METRICS


def write_evaluation(path: str | Path, evaluation: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write evaluation.json (model -> split -> metrics), whole or not at all."""
    _write_whole(path, json.dumps(evaluation, indent=2, allow_nan=False) + "\n")


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
    _write_whole(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines.values()))


def format_table(evaluation: dict[str, dict[str, dict[str, Any]]]) -> str:
    """evaluation.json as lines for a terminal, fractions in percent, "-" where nothing was measured."""
    header = f"{'model':<16}{'split':<16}" + "".join(f"{metric:>20}" for metric in METRICS) + f"{'records':>9}"
    lines = [header]
    for model, splits in evaluation.items():
        for split, metrics in splits.items():
            cells = ("-" if metrics[key] is None else f"{100 * metrics[key]:.1f} %" for key in METRICS)
            lines.append(
                f"{model:<16}{split:<16}" + "".join(f"{cell:>20}" for cell in cells) + f"{metrics['num_records']:>9}"
            )
    return "\n".join(lines)


def _write_whole(path: str | Path, text: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a crash could leave the new name on empty content
    os.replace(part, path)
