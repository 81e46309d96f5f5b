"""What names a run: its folder, seed and extensions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kd.config.fields import Place, Section, Text


class Run(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")] = Field(examples=["my-run"])
    """Folder of this run under output_dir: letters, digits, dot, dash and underscore, at most 200 of them,
    and no dot, dash or underscore first."""
    output_dir: Place = "runs"
    """Folder that holds all runs; made when missing."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1337
    """Seeds initial weights, data order and dropout; from 0 to 4294967295."""
    extensions: tuple[Text, ...] = ()
    """Modules of your own that register formats, divergences, rewards and the like, as import paths: every rank, and
    every worker process, imports them before the rest of this file is checked."""
    trackers: tuple[Text, ...] = ()
    """Experiment trackers that get the metrics beside metrics.jsonl and TensorBoard, by accelerate's names: wandb,
    mlflow, trackio, comet_ml, aim, clearml, dvclive, swanlab. Each is installed and set up, offline too, by its own
    package and environment variables."""
