"""Plan of a run, before anything is loaded or rented: parameters, memory, tokens, time, and what makes it fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from kd.config.deepspeed.fill import resolve_ds_config
from kd.config.derived import count_step, longest_length
from kd.config.schema import RunConfig, Stage, Teacher, Training
from kd.config.sections.student import MOST_LAYERS
from kd.errors import SpanwiseError
from kd.models.load import count_parameters, read_model_config
from kd.models.model_files import ModelNotFound
from kd.models.student import student_model_config
from kd.preflight.memory import (
    Job,
    Shape,
    count_adapters,
    count_flops,
    count_teacher_weights,
    estimate_memory,
    fewest_parameters,
)
from kd.preflight.obstacles import find_obstacles
from kd.preflight.published import published_config
from kd.preflight.shortages import Machine, find_shortages
from kd.teacher.capture.size import CacheSize
from kd.units import size

ASSUMED_MFU = 0.40  # model FLOPs utilisation; well-tuned dense training reaches 0.4 to 0.5
_GIB = 1 << 30
_FAR_BEYOND = 1000  # times all memory: no change of the configuration but its sizes helps
_SIZES_OF = {
    "student": "student.num_hidden_layers, student.hidden_size and the sizes beside them, or its source's config.json",
    "teacher": "config.json at teacher.path",
}


class PlanError(SpanwiseError, ValueError):
    """Run that this machine cannot hold."""


@dataclass(frozen=True)
class StagePlan:
    """Steps and tokens of one stage."""

    name: str
    max_length: int
    steps: int  # at most, where the stage ends at a loss
    tokens_per_step: int  # all ranks, when every record is as long as max_length


@dataclass(frozen=True)
class Plan:
    """Needs of a run on a number of ranks."""

    name: str
    world_size: int
    ranks_per_host: int
    student_parameters: int
    teacher_parameters: int | None
    device_bytes: dict[str, int]  # one rank, by item; on the CPU this is host memory
    host_bytes: dict[str, int]  # one rank, by item: what is offloaded
    device_memory_bytes: int | None
    host_memory_bytes: int | None
    stages: tuple[StagePlan, ...]
    flops: float  # the whole run
    tokens_per_second: float | None
    peak_flops: float | None
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    cache: CacheSize | None = None  # of the teacher's targets on disk

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, when every record is as long as its stage's max_length."""
        return sum(stage.steps * stage.tokens_per_step for stage in self.stages)


def plan_run(
    config: RunConfig,
    world_size: int,
    device_memory_bytes: int | None = None,
    host_memory_bytes: int | None = None,
    *,
    ranks_per_host: int | None = None,
    tokenizer_length: int | None = None,
    cache: CacheSize | None = None,
) -> Plan:
    """Plan `config` on `world_size` ranks.

    device_memory_bytes: of one GPU; None when ranks run on the CPU, where everything is in host memory.
    host_memory_bytes: of one host, with `ranks_per_host` ranks (by default all); None leaves it unchecked.
    cache: size of the teacher's cache on disk (kd/teacher/capture/size.py), where the run has one and it is known.

    No network is read: a teacher that is not on this machine is left out, and a note says so.

    Raises:
        StudentError: the student that `config` asks for cannot be made.
        PlanError: a model's sizes are far beyond all memory.
    """
    ranks_per_host = ranks_per_host or world_size
    memory = world_size * ((device_memory_bytes or 0) + (host_memory_bytes or 0))
    job, teacher, notes = find_job(
        config, world_size, memory, tokenizer_length=tokenizer_length, on_cpu=device_memory_bytes is None
    )
    student, peak = job.student, config.training.peak_tflops
    peak_flops = None if peak is None else peak * 1e12
    machine = Machine(device_memory_bytes, host_memory_bytes, ranks_per_host)
    device, host = estimate_memory(job)
    stages = tuple(plan_stages(config.data.stages, config.training, world_size))
    flops = sum(
        stage.steps
        * stage.tokens_per_step
        * count_flops(student, job.teacher, stage.max_length, job.gradient_checkpointing)
        for stage in stages
    )
    tokens = sum(stage.steps * stage.tokens_per_step for stage in stages)
    return Plan(
        name=config.run.name,
        world_size=world_size,
        ranks_per_host=ranks_per_host,
        student_parameters=student.parameters,
        teacher_parameters=teacher.parameters if teacher else None,
        device_bytes=device,
        host_bytes=host,
        device_memory_bytes=device_memory_bytes,
        host_memory_bytes=host_memory_bytes,
        stages=stages,
        flops=flops,
        tokens_per_second=tokens * world_size * peak_flops * ASSUMED_MFU / flops if peak_flops else None,
        peak_flops=peak_flops,
        notes=notes,
        problems=(*find_shortages(job, machine), *find_obstacles(config, job, ranks_per_host)),
        cache=cache,
    )


def find_job(
    config: RunConfig, world_size: int, memory: int = 0, *, tokenizer_length: int | None = None, on_cpu: bool = False
) -> tuple[Job, Shape | None, tuple[str, ...]]:
    """Read the sizes of a run's models; return (its job, its teacher's sizes, notes).

    The teacher is in the job where it runs beside the student, as it does without a cache. memory: of all ranks, in
    bytes; 0 leaves sizes unchecked. Raises as `plan_run`.
    """
    reader = _Reader()
    student_config = student_model_config(
        config.student,
        config.teacher,
        max_length=longest_length(config.data),
        tokenizer_length=tokenizer_length,
        read=reader.read,
    )
    student = _shape(student_config, "student", memory)
    teacher, notes = _teacher(config.teacher, memory, reader)
    cached = config.teacher is not None and config.teacher.cache is not None
    job = _job(config, student, None if cached else teacher, world_size, on_cpu=on_cpu)
    return job, teacher, (*reader.notes(), *notes, *_capture_notes(replace(job, teacher=teacher), cached))


def flops_a_token(config: RunConfig, tokenizer_length: int) -> Callable[[float], float] | None:
    """Return the operations of a token by the length of its sequence, without what is computed twice to save memory, as
    the model FLOPs utilisation counts them; None without training.peak_tflops, which needs them. Raises as `plan_run`.
    """
    if config.training.peak_tflops is None:
        return None
    job, *_ = find_job(config, 1, tokenizer_length=tokenizer_length)
    return lambda length: count_flops(job.student, job.teacher, length, gradient_checkpointing=False)


def find_capture_problems(
    config: RunConfig, world_size: int, device_memory_bytes: int | None = None, host_memory_bytes: int | None = None
) -> tuple[str, ...]:
    """Find what would stop a capture of teacher.cache, where the teacher runs alone, on one host; arguments
    as of `plan_run`.

    Nothing is found of a teacher behind an endpoint, or one that is not on this machine.

    Raises:
        PlanError: the teacher's sizes are far beyond all memory.
    """
    if config.teacher is None or config.teacher.endpoint is not None:
        return ()
    memory = world_size * ((device_memory_bytes or 0) + (host_memory_bytes or 0))
    teacher, _ = _teacher(config.teacher, memory, _Reader())
    if teacher is None:
        return ()
    job = replace(
        _job(config, teacher, teacher, world_size, on_cpu=device_memory_bytes is None),
        is_capture=True,
        packing_mask=False,  # a record a row
    )
    machine = Machine(device_memory_bytes, host_memory_bytes, world_size)
    return (*find_shortages(job, machine), *find_obstacles(config, job, world_size))


def check_fits(plan: Plan) -> None:
    """Refuse a run that the machine cannot hold; call it before anything is loaded.

    Raises:
        PlanError: names each memory that is too small, and the changes that help.
    """
    refuse(plan.name, plan.problems)


def refuse(name: str, problems: Sequence[str]) -> None:
    """Refuse what has problems, if it has; raises as `check_fits`."""
    if problems:
        raise PlanError(f"{name} does not fit this machine:\n" + "\n".join(f"  {problem}" for problem in problems))


def format_plan(plan: Plan) -> str:
    """Format the plan for a person."""
    teacher = "none" if plan.teacher_parameters is None else f"{plan.teacher_parameters / 1e9:.2f} B"
    place = "rank, in host memory" if plan.device_memory_bytes is None else "GPU"
    lines = [
        f"plan of {plan.name} on {plan.world_size} rank{'s' if plan.world_size > 1 else ''}",
        f"  student   {plan.student_parameters / 1e9:.2f} B parameters ({plan.student_parameters:,})",
        f"  teacher   {teacher}{' parameters' if plan.teacher_parameters else ''}",
        f"  memory of each {place} (estimate)",
        *_items(plan.device_bytes),
    ]
    if plan.host_bytes:
        lines += ["  host memory of each rank (estimate)", *_items(plan.host_bytes)]
    lines.append("  tokens, when every record has its stage's max_length")
    for stage in plan.stages:
        lines.append(f"    {stage.name:<38} {stage.steps:>9,} steps x {stage.tokens_per_step:,}")
    lines.append(f"    {'all stages':<38} {plan.tokens / 1e9:>9.3f} B tokens")
    lines.append(f"  work      {plan.flops:.3g} FLOPs, {plan.flops / max(plan.tokens, 1):.3g} a token")
    if plan.tokens_per_second is None or plan.peak_flops is None:
        lines.append("  time      not estimated: the device's peak is not known (training.peak_tflops)")
    else:
        days = plan.tokens / plan.tokens_per_second / 86400
        lines.append(
            f"  time      about {days:.3g} days at {plan.tokens_per_second:,.0f} tokens/s; an estimate that assumes "
            f"{ASSUMED_MFU:.0%} of {plan.peak_flops / 1e12:.0f} TFLOP/s on each of {plan.world_size} devices"
        )
    if plan.cache is not None:
        lines.append(
            f"  cache     about {size(plan.cache.num_bytes)} on disk: {plan.cache.num_rows:,} rows of "
            f"{plan.cache.row_bytes:.0f} bytes, if the teacher is as sure as a language model of 2 nats"
        )
    lines += [f"  note      {note}" for note in plan.notes]
    lines += [f"  PROBLEM   {problem}" for problem in plan.problems] or ["  fits      no problem found"]
    return "\n".join(lines)


def _job(config: RunConfig, student: Shape, teacher: Shape | None, world_size: int, *, on_cpu: bool) -> Job:
    placement = config.teacher.placement if config.teacher else "replicated"
    sampled_together, corrections = _sampling(config, world_size)
    return Job(
        student=student,
        teacher=teacher,
        world_size=world_size,
        student_dtype=config.student.dtype,
        teacher_dtype=config.teacher.dtype if config.teacher else "bf16",
        teacher_sharded=placement != "replicated",
        teacher_offloaded=placement == "offloaded",
        ds_config=resolve_ds_config(config.training, config.optimizer, config.student),
        micro_batch_size=config.training.micro_batch_size,
        max_length=longest_length(config.data),
        gradient_checkpointing=config.student.gradient_checkpointing,
        eager_attention=config.student.attention_implementation == "eager",
        chunk_rows=config.loss.chunk_rows,
        on_cpu=on_cpu,
        adapters=None if config.student.lora is None else count_adapters(student, config.student.lora),
        sampled_together=sampled_together,
        corrections=corrections,
        packing_mask=config.data.packing != "none" and config.student.attention_implementation != "flash_attention_2",
    )


def _sampling(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Return sampled_together and corrections of a Job, of the stage that takes the most."""
    together = corrections = 0
    parts = config.training.gradient_accumulation * world_size
    for rollouts in filter(None, (stage.rollouts for stage in config.data.stages)):
        if rollouts.engine == "local":
            together = max(together, rollouts.batch_size)
        if rollouts.repair and (rollouts.distill or rollouts.reward):
            answers = -(-count_step(config.training, world_size, rollouts).answers // parts)
            corrections = max(corrections, answers)
    return together, corrections


def _items(sizes: dict[str, int]) -> list[str]:
    rows = [*sizes.items(), ("together", sum(sizes.values()))]
    return [f"    {name:<38} {size / _GIB:9.2f} GiB" for name, size in rows]


def _shape(model_config: PreTrainedConfig, name: str, memory: int) -> Shape:
    """Read a model's sizes, unless they are far beyond `memory` bytes: to count parameters builds it layer by layer."""
    layers, fewest = model_config.get_text_config().num_hidden_layers, fewest_parameters(model_config)
    if layers > MOST_LAYERS or memory and 2 * fewest > _FAR_BEYOND * memory:
        raise PlanError(
            f"the {name} has {layers:,} layers and {fewest:.3g} parameters or more, and all memory of the job is "
            f"{memory / _GIB:,.0f} GiB: correct {_SIZES_OF[name]}"
        )
    return Shape.of(model_config, count_parameters(model_config))


class _Reader:
    """Reads configurations of models on this machine, and of others their published sizes."""

    def __init__(self) -> None:
        self._published: dict[str, None] = {}

    def read(
        self, path: str | os.PathLike, revision: str | None = None, *, key: str | None = None, ask: bool = True
    ) -> PreTrainedConfig:
        """Read a configuration; `ask` the hub where it is neither here nor published. Raises as `read_model_config`."""
        try:
            return read_model_config(path, revision, key=key, local_files_only=True)
        except ModelNotFound:
            found = published_config(os.fspath(path))
            if found is None and ask:
                return read_model_config(path, revision, key=key)
            if found is None:
                raise
        self._published[os.fspath(path)] = None
        return found

    def notes(self) -> Iterator[str]:
        """Yield a note where sizes are published ones."""
        if self._published:
            yield f"of {', '.join(self._published)}, not on this machine, the published sizes are used"


def _teacher(teacher: Teacher | None, memory: int, reader: _Reader) -> tuple[Shape | None, tuple[str, ...]]:
    if teacher is None:
        return None, ()
    try:
        model_config = reader.read(teacher.path, teacher.revision, key="teacher.path", ask=False)
    except ModelNotFound:
        return None, (
            f"the teacher {teacher.path} is not on this machine, so its parameters, memory and time are left out: "
            "download its config.json, or give teacher.path a folder",
        )
    return _shape(model_config, "teacher", memory), ()


def _capture_notes(job: Job, cached: bool) -> Iterator[str]:
    if cached and job.teacher is not None:
        place = "host" if job.teacher_offloaded else "GPU"
        yield (
            f"with teacher.cache the teacher runs at capture alone (launch/capture.py), where its weights take "
            f"{count_teacher_weights(job) / _GIB:.2f} GiB of each {'rank' if job.on_cpu else place}"
        )


def plan_stages(stages: Sequence[Stage], training: Training, world_size: int) -> Iterator[StagePlan]:
    """Yield each stage's steps and tokens."""
    records = training.micro_batch_size * training.gradient_accumulation * world_size
    left = training.steps
    for stage in stages:
        # a stage that ends at a loss has max_steps (kd/config/conflicts/)
        most = None if stage.until is None else stage.until.steps or stage.until.max_steps
        steps = left if most is None else min(left, most)
        left -= steps
        yield StagePlan(stage.name, stage.max_length, steps, records * stage.max_length)
