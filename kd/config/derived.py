"""Facts that several keys decide together."""

from __future__ import annotations

from pathlib import Path

from kd.config.schema import Data, Loss, Run, Teacher


def uses_teacher(teacher: Teacher | None, loss: Loss) -> bool:
    """Tell whether any term of the run ever reads the teacher's targets; without one the teacher is never run."""
    if teacher is None:
        return False
    return loss.weights is None or loss.weights.kd > 0 or loss.weights.hard > 0


def uses_temperature(loss: Loss) -> bool:
    """Tell whether the divergence, the one term that has the temperature in it, ever weighs anything in a run with a
    teacher.
    """
    if loss.entropy_weighting is not None:
        return max(loss.entropy_weighting.kd) > 0
    if loss.teacher_share is not None:
        return max(loss.teacher_share.start, loss.teacher_share.end) > 0
    return loss.weights is None or loss.weights.kd > 0


def run_folder(run: Run) -> Path:
    """Return the folder of a run's files."""
    return Path(run.output_dir) / run.name


def quarantine_file(data: Data, run: Run) -> Path:
    """Return the file that keeps the records a run refuses."""
    return Path(data.quarantine) if data.quarantine is not None else run_folder(run) / "refused.jsonl"


def longest_length(data: Data) -> int:
    """Return the longest stage's max_length, in tokens."""
    return max(stage.max_length for stage in data.stages)
