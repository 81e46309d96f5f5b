"""Contradictions between the teacher's keys and others; for the rest see find.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kd.config.derived import uses_temperature
from kd.config.problems import Conflict
from kd.config.schedules import scheduled
from kd.config.schema import Loss, RunConfig, Teacher, TeacherCache
from kernels import divergences

_PARTS = 1000  # of a run, in each of which a schedule of the user's is taken to rise or to fall


def teacher_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield every contradiction that the teacher, or its absence, has a part in."""
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
        yield from _live(teacher, config.loss)
    else:
        yield from _cached(config, teacher, teacher.cache)
    if teacher.source in ("live", "cache") and (teacher.source == "cache") != (teacher.cache is not None):
        yield Conflict(
            ("teacher.source", "teacher.cache"),
            "needs teacher.cache: add `cache: {path: ...}`, or remove this key"
            if teacher.source == "cache"
            else "runs the model, and teacher.cache takes its place: remove one of the two",
        )
    if teacher.endpoint is not None:
        yield from _endpoint(teacher, config.loss)


def _live(teacher: Teacher, loss: Loss) -> Iterator[Conflict]:
    targets = teacher.targets or "dense"
    for name, kind in (("top_k", "topk"), ("num_draws", "sampled")):
        if getattr(teacher, name) is not None and targets != kind:
            yield Conflict(
                (f"teacher.{name}", "teacher.targets"),
                f"only with targets: {kind} (here {targets}): remove it, or change targets",
            )
    if targets == "sampled":
        yield from _forward_kl_alone(loss, "teacher.targets", "targets")
    if targets == "topk":
        yield from _sparse_formula(loss, "teacher.targets", "dense")


def _cached(config: RunConfig, teacher: Teacher, cache: TeacherCache) -> Iterator[Conflict]:
    for name in ("targets", "top_k", "num_draws"):
        if getattr(teacher, name) is not None:
            yield Conflict(
                (f"teacher.{name}", "teacher.cache"),
                "is of a teacher that runs beside the student, and teacher.cache takes its place: remove one of "
                "the two "
                f"(the cache has its own {'kind' if name == 'targets' else name})",
            )
    for name, kind in (("num_draws", "sampled"), ("top_k", "topk"), ("precision", "topk")):
        if getattr(cache, name) is not None and cache.kind != kind:
            yield Conflict(
                (f"teacher.cache.{name}", "teacher.cache.kind"),
                f"only with kind: {kind} (here {cache.kind}): remove it, or change kind",
            )
    if cache.kind == "sampled":
        yield from _forward_kl_alone(config.loss, "teacher.cache.kind", "kind")
    else:
        yield from _sparse_formula(config.loss, "teacher.cache.kind", None)
    if len(set(cache.temperatures)) < len(cache.temperatures):
        yield Conflict(("teacher.cache.temperatures",), f"{_show(cache)} names a temperature twice: keep one")
    yield from _schedule_is_cached(config, teacher, cache)


def _endpoint(teacher: Teacher, loss: Loss) -> Iterator[Conflict]:
    """Check that a server can tell what is asked: its best tokens' probabilities, at temperature 1, and no entropy."""
    cache = teacher.cache
    if cache is None:
        yield Conflict(
            ("teacher.endpoint", "teacher.cache"),
            "is asked when a cache is captured: add `cache: {path: ..., kind: topk}` under teacher",
        )
    elif cache.kind != "topk":
        yield Conflict(
            ("teacher.cache.kind", "teacher.endpoint"),
            f"an endpoint tells its best tokens alone: use kind: topk (here {cache.kind})",
        )
    if cache is not None and cache.temperatures != (1.0,):
        yield Conflict(
            ("teacher.cache.temperatures", "teacher.endpoint"),
            f"an endpoint tells probabilities at temperature 1 alone: use [1.0] (here {_show(cache)}), or capture "
            "from the model without endpoint",
        )
    if teacher.deepspeed is not None:
        yield Conflict(
            ("teacher.deepspeed", "teacher.endpoint"),
            "no teacher runs here when an endpoint is asked: remove one of the two",
        )
    if loss.entropy_weighting is not None:
        yield Conflict(
            ("loss.entropy_weighting", "teacher.endpoint"),
            "an endpoint tells no entropy: use loss.weights or loss.teacher_share, or capture from the model without "
            "endpoint",
        )


def _forward_kl_alone(loss: Loss, key: str, name: str) -> Iterator[Conflict]:
    if loss.divergence != "forward_kl":
        yield Conflict(
            ("loss.divergence", key),
            f"{loss.divergence} cannot be estimated from draws without bias: use forward_kl, or "
            f"{key.rpartition('.')[0]}.{name}: topk",
        )


def _sparse_formula(loss: Loss, key: str, instead: str | None) -> Iterator[Conflict]:
    if divergences.find(loss.divergence).sparse is None:
        change = f"{key}: {instead}" if instead else "a teacher without cache"
        yield Conflict(
            ("loss.divergence", key),
            f"{loss.divergence} has no formula for a teacher's best tokens alone (topk): use {change}, or another "
            "divergence",
        )


def _schedule_is_cached(config: RunConfig, teacher: Teacher, cache: TeacherCache) -> Iterator[Conflict]:
    t, steps = config.loss.temperature, config.training.steps
    if (
        not uses_temperature(config.loss) or t.schedule != "constant" and t.end is None
    ):  # the latter has a check of its own
        return
    step = first_step_not_cached(cache, lambda step: scheduled(t.schedule, t.start, t.end, step, steps), steps)
    if step is None:
        return
    wanted = scheduled(t.schedule, t.start, t.end, step, steps)
    keys = (
        "teacher.cache.temperatures",
        "teacher.cache.t_tolerance",
        *(f"loss.temperature.{key}" for key in ("schedule", "start", "end")),
    )
    known = f"and the nearest of {_show(cache)} is farther than t_tolerance ({cache.t_tolerance:g})"
    remedy = f"add {wanted:.4g} to this list and capture, or change loss.temperature or t_tolerance"
    if teacher.endpoint is not None:  # no other temperature can be captured from it, as _endpoint says
        keys = ("loss.temperature.start", "teacher.endpoint", *keys)
        known = "and an endpoint tells probabilities at temperature 1 alone"
        remedy = "set loss.temperature.start: 1.0" + (
            "" if t.schedule == "constant" else ", and schedule: constant without end"
        )
    yield Conflict(keys, f"training is at temperature {wanted:.4g} in step {step}, {known}: {remedy}")


def first_step_not_cached(cache: TeacherCache, at: Callable[[int], float], num_steps: int) -> int | None:
    """Find the first step whose temperature `at(step)` is farther than t_tolerance from every cached one.

    Steps are halved until both ends of a part are near one cached temperature, and with them, in a schedule that only
    rises or only falls, all between. The run is cut into `_PARTS` first, for a user's schedule that does both.
    """

    def near(step: int) -> set[float]:
        wanted = at(step)
        return {one for one in cache.temperatures if abs(one - wanted) <= cache.t_tolerance + 1e-12}

    def search(first: int, last: int) -> int | None:
        if not near(first):
            return first
        if last - first <= 1:
            return None if near(last) else last
        if near(first) & near(last):
            return None
        middle = (first + last) // 2
        found = search(first, middle)
        return search(middle, last) if found is None else found

    ends = sorted({part * (num_steps - 1) // _PARTS for part in range(_PARTS + 1)})
    found = (search(*part) for part in zip(ends, ends[1:] or ends))
    return next((step for step in found if step is not None), None)


def _show(cache: TeacherCache) -> str:
    return "[" + ", ".join(f"{temperature:g}" for temperature in cache.temperatures) + "]"


def _without_teacher(config: RunConfig) -> Iterator[Conflict]:
    if config.student.init == "teacher_layers":
        yield Conflict(
            ("student.init", "teacher"),
            "teacher_layers needs a teacher: add `teacher: {path: ...}`, or use init: scratch",
        )
    if config.tokenizer.path is None and config.student.init != "checkpoint":
        yield Conflict(
            ("tokenizer.path", "teacher", "student.init"),
            "required without a teacher: the folder or hub id of the tokenizer",
        )
    weights = config.loss.weights
    for name in ("kd", "hard"):
        if weights is not None and getattr(weights, name) > 0:
            yield Conflict(
                (f"loss.weights.{name}", "teacher"),
                "this term learns from a teacher and there is none: set it to 0, or add `teacher: {path: ...}`",
            )
    for name in ("teacher_share", "entropy_weighting"):
        if getattr(config.loss, name) is not None:
            yield Conflict((f"loss.{name}", "teacher"), "needs a teacher: remove it, or add `teacher: {path: ...}`")
