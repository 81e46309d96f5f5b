"""Facts that several keys decide together."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kd.config.schema import Data, Loss, Rollouts, Run, RunConfig, Teacher, Training


def uses_teacher(teacher: Teacher | None, loss: Loss) -> bool:
    """Tell whether any term over records ever reads the teacher's targets; without one it never answers for them."""
    if teacher is None:
        return False
    return loss.weights is None or loss.weights.kd > 0 or loss.weights.hard > 0


def reads_teacher(config: RunConfig) -> bool:
    """Tell whether a run ever reads the teacher's targets, over records or on the student's own answers."""
    stages = (stage.rollouts for stage in config.data.stages)
    distills = any(rollouts is not None and rollouts.distill > 0 for rollouts in stages)
    return uses_teacher(config.teacher, config.loss) or config.teacher is not None and distills


class StepSizes(NamedTuple):
    """Sequences of one optimizer step of a stage, over all ranks."""

    records: int
    answers: int  # of the student, whole groups of `samples`


def count_step(training: Training, world_size: int, rollouts: Rollouts | None) -> StepSizes:
    """Count the sequences of a step: `share` of them, in whole groups, are answers. None is a stage without
    rollouts."""
    size = training.micro_batch_size * training.gradient_accumulation * world_size
    if rollouts is None:
        return StepSizes(size, 0)
    answers = int(rollouts.share * size / rollouts.samples + 0.5) * rollouts.samples
    answers -= rollouts.samples * (answers > size)
    return StepSizes(size - answers, answers)


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
