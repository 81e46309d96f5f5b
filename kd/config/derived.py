"""TODO docstring."""

from __future__ import annotations

from pathlib import Path

from kd.config.schema import Data, Loss, RunConfig


def uses_teacher(config: RunConfig) -> bool:
    """Whether any term of the run ever reads the teacher's logits; without one the teacher is never run."""
    loss = config.loss
    if config.teacher is None:
        return False
    return loss.weights is None or loss.weights.kd > 0 or loss.weights.hard > 0


def uses_temperature(loss: Loss) -> bool:
    """Whether the divergence, the one term that has the temperature in it, ever weighs anything in a run with a
    teacher.
    """
    if loss.entropy_weighting is not None:
        return max(loss.entropy_weighting.kd) > 0
    if loss.teacher_share is not None:
        return max(loss.teacher_share.start, loss.teacher_share.end) > 0
    return loss.weights is None or loss.weights.kd > 0


def run_folder(config: RunConfig) -> Path:
    return Path(config.run.output_dir) / config.run.name


def quarantine_file(config: RunConfig) -> Path:
    return Path(config.data.quarantine) if config.data.quarantine is not None else run_folder(config) / "refused.jsonl"


def longest_length(data: Data) -> int:
    """Return the longest stage's max_length, in tokens."""
    return max(stage.max_length for stage in data.stages)
