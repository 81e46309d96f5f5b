"""Search of a configuration for contradictions; every check names the keys that it looked at."""

from __future__ import annotations

from collections.abc import Iterator

from kd.config.conflicts.data import data_conflicts
from kd.config.conflicts.loss import loss_conflicts, schedule_conflicts
from kd.config.conflicts.rollouts import rollout_conflicts
from kd.config.conflicts.student import student_conflicts
from kd.config.conflicts.teacher import teacher_conflicts
from kd.config.conflicts.validation import validation_conflicts
from kd.config.problems import Conflict
from kd.config.schema import RunConfig


def find_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield every contradiction in `config`, in the order of the sections."""
    yield from teacher_conflicts(config)
    yield from student_conflicts(config)
    yield from data_conflicts(config)
    yield from rollout_conflicts(config)
    yield from loss_conflicts(config)
    yield from schedule_conflicts(config)
    yield from validation_conflicts(config)
