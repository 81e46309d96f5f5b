"""Defaults that depend on other keys: the one place that fills them in."""

from __future__ import annotations

from typing import Any

from kd.config.fields import Section
from kd.config.schema import EntropyWeighting, RunConfig, Teacher, Weights
from kd.dtypes import multiplies_bf16


def fill_defaults(config: RunConfig) -> RunConfig:
    """Write out the defaults that depend on other keys."""
    loss, optimizer, student = config.loss, config.optimizer, config.student
    if student.dtype == "auto":
        student = student.model_copy(update={"dtype": "bf16" if multiplies_bf16() else "fp32"})
    if loss.weights is None and loss.teacher_share is None and loss.entropy_weighting is None:
        weights = Weights(truth=1.0) if config.teacher is None else Weights(kd=0.5, hard=0.3, truth=0.2)
        loss = loss.model_copy(update={"weights": weights})
    if loss.entropy_weighting is not None:
        loss = loss.model_copy(update={"entropy_weighting": normalise_weights(loss.entropy_weighting)})
    if optimizer.schedule != "constant" and optimizer.final_lr_fraction is None:
        optimizer = optimizer.model_copy(update={"final_lr_fraction": 0.1})
    if optimizer.schedule == "wsd" and optimizer.decay_fraction is None:
        optimizer = optimizer.model_copy(update={"decay_fraction": 0.2})
    teacher = None if config.teacher is None else _fill_teacher(config.teacher)
    evaluation = config.evaluation
    if config.data.validation and evaluation.every is None:
        evaluation = evaluation.model_copy(update={"every": max(1, config.training.steps // 20)})
    filled = {"student": student, "loss": loss, "optimizer": optimizer, "teacher": teacher, "evaluation": evaluation}
    return config.model_copy(update=filled)


def teacher_source(teacher: Teacher) -> str:
    """Return the name of the source that gives the targets (kd.config.registries.TEACHER_SOURCES)."""
    return teacher.source or ("live" if teacher.cache is None else "cache")


def _fill_teacher(teacher: Teacher) -> Teacher:
    if teacher.cache is None:
        targets = teacher.targets or "dense"
        defaults = {"dense": {}, "topk": {"top_k": 64}, "sampled": {"num_draws": 50}}[targets]
        return teacher.model_copy(update={"targets": targets, **_missing(teacher, defaults)})
    defaults = {"topk": {"top_k": 32, "precision": "16bit"}, "sampled": {"num_draws": 50}}[teacher.cache.kind]
    return teacher.model_copy(update={"cache": teacher.cache.model_copy(update=_missing(teacher.cache, defaults))})


def _missing(section: Section, defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if getattr(section, name) is None}


def normalise_weights(weighting: EntropyWeighting) -> EntropyWeighting:
    """Divide each end's triple by its sum; within rounding of 1 it is left alone, so that a saved configuration loads
    equal.
    """
    names = ("kd", "hard", "truth")
    sums = [sum(getattr(weighting, name)[end] for name in names) for end in (0, 1)]
    scales = [1.0 if abs(total - 1) < 1e-12 else total for total in sums]
    return weighting.model_copy(
        update={name: tuple(value / scale for value, scale in zip(getattr(weighting, name), scales)) for name in names}
    )
