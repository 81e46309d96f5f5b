"""Contradictions in what a run measures, chooses by and is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kd.config.derived import run_folder
from kd.config.problems import Conflict
from kd.config.schema import RunConfig


def validation_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield keys of validation that lack what they need, and files that are chosen by and measured on."""
    training, evaluation, data = config.training, config.evaluation, config.data
    for key, value in (
        ("evaluation.every", evaluation.every),
        ("evaluation.generate_every", evaluation.generate_every),
        ("training.keep_best", training.keep_best),
    ):
        if value is not None and not data.validation:
            yield Conflict((key, "data.validation"), "needs data.validation: name a split there, or remove this key")
    for name, source in data.validation.items():
        if source != "demo" and source in data.evaluation.values():
            yield Conflict(
                (f"data.validation.{name}", "data.evaluation"),
                f"{source} is held out in data.evaluation too: choose by other records than those measured in the end",
            )
    own = run_folder(config.run).resolve()
    for name, place in evaluation.compare_with.items():
        if own in (folder := Path(place).resolve(), *folder.parents):
            yield Conflict(
                (f"evaluation.compare_with.{name}", "run.name"),
                f"{place} is of this run, which would be compared with itself: give this run another name",
            )
    if training.patience is not None and training.keep_best is None:
        yield Conflict(("training.patience", "training.keep_best"), "needs training.keep_best: the metric to wait for")
