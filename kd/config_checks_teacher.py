"""Contradictions between the teacher's keys and others; for the rest see config_checks.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kd.config_schema import RunConfig, TeacherCache


class Conflict(NamedTuple):
    """`keys`: dotted, the one to change first; it is not reported when one of them is already wrong by itself."""

    keys: tuple[str, ...]
    message: str


def teacher_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Every contradiction that the teacher, or its absence, has a part in."""
    if config.teacher is None:
        yield from _without_teacher(config)
        return
    teacher = config.teacher
    if teacher.placement == "replicated" and teacher.deepspeed is not None:
        yield Conflict(
            ("teacher.deepspeed", "teacher.placement"),
            "a replicated teacher is not under DeepSpeed: remove this key, or use placement: sharded",
        )
    if teacher.cache is None:
        yield from _live(config)
    else:
        yield from _cached(config, teacher.cache)


def _live(config: RunConfig) -> Iterator[Conflict]:
    teacher, signal = config.teacher, config.teacher.signal or "dense"
    for name, kind in (("top_k", "topk"), ("num_draws", "sampled")):
        if getattr(teacher, name) is not None and signal != kind:
            yield Conflict((f"teacher.{name}", "teacher.signal"), f"only with signal: {kind} (here {signal}): remove it, or change signal")
    if signal == "sampled":
        yield from _forward_kl_alone(config, "teacher.signal", "signal")


def _cached(config: RunConfig, cache: TeacherCache) -> Iterator[Conflict]:
    for name in ("signal", "top_k", "num_draws"):
        if getattr(config.teacher, name) is not None:
            yield Conflict(
                (f"teacher.{name}", "teacher.cache"),
                f"is of a teacher that runs beside the student, and teacher.cache takes its place: remove one of the two "
                f"(the cache has its own {'kind' if name == 'signal' else name})",
            )
    for name, kind in (("num_draws", "sampled"), ("top_k", "topk"), ("precision", "topk")):
        if getattr(cache, name) is not None and cache.kind != kind:
            yield Conflict((f"teacher.cache.{name}", "teacher.cache.kind"), f"only with kind: {kind} (here {cache.kind}): remove it, or change kind")
    if cache.kind == "sampled":
        yield from _forward_kl_alone(config, "teacher.cache.kind", "kind")
    if len(set(cache.temperatures)) < len(cache.temperatures):
        yield Conflict(("teacher.cache.temperatures",), f"{_listed(cache)} names a temperature twice: keep one")
    yield from _schedule_is_cached(config, cache)


def _forward_kl_alone(config: RunConfig, key: str, name: str) -> Iterator[Conflict]:
    if config.loss.divergence != "forward_kl":
        yield Conflict(
            ("loss.divergence", key),
            f"{config.loss.divergence} cannot be estimated from draws without bias: use forward_kl, or {key.rpartition('.')[0]}.{name}: topk",
        )


def _schedule_is_cached(config: RunConfig, cache: TeacherCache) -> Iterator[Conflict]:
    from kd.objective import scheduled  # brings torch, which reading a YAML otherwise does without

    t, steps = config.loss.temperature, config.training.steps
    if t.schedule != "constant" and t.end is None:
        return  # another check says so
    for step in range(1 if t.schedule == "constant" else steps):
        wanted = scheduled(t.schedule, t.start, t.end, step, steps)
        nearest = min(cache.temperatures, key=lambda at: abs(at - wanted))
        if abs(nearest - wanted) > cache.t_tolerance + 1e-12:
            keys = ("teacher.cache.temperatures", "teacher.cache.t_tolerance", *(f"loss.temperature.{key}" for key in ("schedule", "start", "end")))
            yield Conflict(
                keys,
                f"training is at temperature {wanted:.4g} in step {step}, and the nearest of {_listed(cache)} is farther than t_tolerance "
                f"({cache.t_tolerance:g}): add {wanted:.4g} to this list and capture, or change loss.temperature or t_tolerance",
            )
            return


def _listed(cache: TeacherCache) -> str:
    return "[" + ", ".join(f"{temperature:g}" for temperature in cache.temperatures) + "]"


def _without_teacher(config: RunConfig) -> Iterator[Conflict]:
    if config.student.init == "teacher_layers":
        yield Conflict(("student.init", "teacher"), "teacher_layers needs a teacher: add `teacher: {path: ...}`, or use init: scratch")
    if config.tokenizer.path is None and config.student.init != "checkpoint":
        yield Conflict(("tokenizer.path", "teacher", "student.init"), "required without a teacher: the folder or hub id of the tokenizer")
    weights = config.loss.weights
    for name in ("kl", "hard"):
        if weights is not None and getattr(weights, name) > 0:
            yield Conflict(
                (f"loss.weights.{name}", "teacher"), "this term learns from a teacher and there is none: set it to 0, or add `teacher: {path: ...}`"
            )
    for name in ("teacher_share", "entropy_weighting"):
        if getattr(config.loss, name) is not None:
            yield Conflict((f"loss.{name}", "teacher"), "needs a teacher: remove it, or add `teacher: {path: ...}`")
