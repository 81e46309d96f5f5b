"""Page of a comparison of evaluations: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd.atomic_files import publish
from kd.evaluation.comparison import Evaluation
from kd.reports.html import el, page
from kd.reports.scores import draw_scores


def write_comparison(path: Path, evaluation: Evaluation, files: Sequence[tuple[str, Path]]) -> None:
    """Write the page of evaluations that were joined from `files` (kd.evaluation.comparison.read_evaluations).

    Raises:
        ComparisonError: two models were asked different records.
    """
    sources = [el("li", el("b", name), f": {file}") for name, file in files]
    body = [
        el("p", "Spanwise comparison", class_="eyebrow"),
        el("h1", f"{len(evaluation)} models side by side"),
        el("ul", *sources),
        draw_scores(evaluation),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, page("Comparison · Spanwise", *body).encode("utf-8", "backslashreplace"))
