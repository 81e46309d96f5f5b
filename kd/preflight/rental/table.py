"""Table of a run on GPUs that may be rented: what fits, for how long, for how much, and what to change where none does.

Time of a step is the longer of its two parts, which overlap: operations at a stated share of a stated peak, and ZeRO's
traffic at a stated bandwidth. ZeRO-3 gathers the student's weights for forward and for backward and reduces its
gradients, each once a micro-batch (Rajbhandari et al., arXiv 1910.02054, section 7.2); a sharded teacher's weights are
gathered once. The steps of an optimizer in host memory come on top: gradients and weights over PCIe, and the traffic of
Adam's states in the host's own memory. The rates are assumptions, printed with every table and there to be changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from kd.config.schema import RunConfig
from kd.preflight.memory import WIDTH, Job, count_flops, estimate_memory
from kd.preflight.plan import find_job, plan_stages
from kd.preflight.shortages import USABLE, Machine, find_shortages
from kd.units import size

MADE_BY = "spanwise plan"  # a table's JSON is known again by it
_HOUR = 3600.0
_GIB = 1 << 30
_ADAM_BYTES = 28  # a parameter: master, two moments and gradient read; master, moments and weight written


class Rates(NamedTuple):
    """What is assumed of the GPUs; FLOP/s and bytes a second."""

    peak_flops: float = 989e12  # dense bf16 of an H100 or H200, as its maker states it
    mfu: float = 0.40  # model FLOPs utilisation; well-tuned dense training reaches 0.4 to 0.5
    within_host: float = 200e9  # of one GPU, to others of its host
    across_hosts: float = 25e9  # of one GPU, to those of other hosts
    pcie: float = 25e9  # of one GPU, to its host's memory
    host_memory: float = 200e9  # of a host
    price: float | None = None  # of a GPU-hour, in any currency
    gpus_per_host: int = 8
    host_bytes: int | None = None  # memory of a host; None leaves it unchecked

    def describe(self) -> str:
        """Say what is assumed, in a line."""
        return (
            f"assumed: {self.mfu:.0%} of {self.peak_flops / 1e12:,.0f} TFLOP/s a GPU; a GPU sends "
            f"{self.within_host / 1e9:g} GB/s within its host of {self.gpus_per_host} and "
            f"{self.across_hosts / 1e9:g} GB/s to others, {self.pcie / 1e9:g} GB/s to its host, whose memory has "
            f"{self.host_memory / 1e9:g} GB/s"
        )


@dataclass(frozen=True)
class Row:
    """One choice of GPUs and settings. Bytes are of one rank; seconds of an optimizer step of the longest stage."""

    gpus: int
    gpu_bytes: int
    setting: str
    device_bytes: dict[str, int]
    host_bytes: dict[str, int]
    fits: bool
    step_seconds: float
    traffic_share: float  # of the step that is traffic; above 0.5 the GPUs wait for it
    hours: float  # of the whole run
    tokens_per_second: float  # of all GPUs, when every record is as long as its stage's max_length
    money: float | None
    change: str | None  # what to change where it does not fit


@dataclass(frozen=True)
class Table:
    """Rows of one run, by count, size and setting, and what they rest on."""

    name: str
    student_parameters: int
    teacher_parameters: int | None
    tokens: int  # of the run on as many ranks as it takes rows for: the most
    capture_hours: float | None  # GPU-hours of a teacher over every token of the run, each once
    rates: Rates
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return {"made_by": MADE_BY} | asdict(self) | {"rates": self.rates._asdict()}


def make_table(
    config: RunConfig,
    counts: Sequence[int],
    gpu_bytes: Sequence[int],
    rates: Rates,
    *,
    tokenizer_length: int | None = None,
) -> Table:
    """Make the table of a run for each count of GPUs and each size of one, without network, weights or a GPU.

    A GPU's rows of a step are those of the configuration, so that more GPUs train more tokens in as many steps.

    Raises:
        StudentError: the student that `config` asks for cannot be made.
        PlanError: a model's sizes are far beyond all memory.
    """
    job, teacher, notes = find_job(config, max(counts), max(counts) * max(gpu_bytes), tokenizer_length=tokenizer_length)
    rows = []
    for count in sorted(set(counts)):
        for memory in sorted(set(gpu_bytes)):
            machine = Machine(memory, rates.host_bytes, min(count, rates.gpus_per_host))
            for setting, variant in _settings(replace(job, world_size=count)):
                rows.append(_row(config, variant, setting, machine, rates))
    tokens = sum(
        one.steps * one.tokens_per_step for one in plan_stages(config.data.stages, config.training, max(counts))
    )
    capture = None
    if teacher is not None and config.teacher is not None and config.teacher.cache is not None:
        a_token = 2 * teacher.matrix_parameters + 2 * teacher.num_layers * teacher.attention_width * job.max_length
        capture = tokens * a_token / (rates.peak_flops * rates.mfu) / _HOUR
    return Table(
        config.run.name,
        job.student.parameters,
        teacher.parameters if teacher else None,
        tokens,
        capture,
        rates,
        tuple(rows),
        notes,
    )


def _settings(job: Job) -> Iterator[tuple[str, Job]]:
    """Yield the run as it is configured, and with what commonly makes it fit, the milder first; none twice."""
    yield "as configured", job
    checkpointed = job if job.gradient_checkpointing else replace(job, gradient_checkpointing=True)
    if checkpointed is not job:
        yield "gradient checkpointing", checkpointed
    offloaded = checkpointed
    if not job.offloads("optimizer"):
        zero = {**job.zero, "stage": 3, "offload_optimizer": {"device": "cpu"}}
        offloaded = replace(checkpointed, ds_config={**job.ds_config, "zero_optimization": zero})
        yield "optimizer in host memory", offloaded
    if job.teacher is not None and not job.teacher_offloaded:
        yield "teacher and optimizer in host memory", replace(offloaded, teacher_sharded=True, teacher_offloaded=True)


def _row(config: RunConfig, job: Job, setting: str, machine: Machine, rates: Rates) -> Row:
    device, host = estimate_memory(job)
    accumulation, seconds, tokens = config.training.gradient_accumulation, 0.0, 0
    share, longest = 0.0, 0.0
    for stage in plan_stages(config.data.stages, config.training, job.world_size):
        step, traffic = step_seconds(job, stage.max_length, accumulation, rates)
        seconds, tokens = seconds + stage.steps * step, tokens + stage.steps * stage.tokens_per_step
        if step > longest:
            longest, share = step, traffic / step
    hours = seconds / _HOUR
    assert machine.device_memory_bytes is not None, "a table is of GPUs"
    fits = not machine.shortages(job)
    change = None if fits else " / ".join(text.partition(": ")[2] for text in find_shortages(job, machine))
    return Row(
        gpus=job.world_size,
        gpu_bytes=machine.device_memory_bytes,
        setting=setting,
        device_bytes=device,
        host_bytes=host,
        fits=fits,
        step_seconds=longest,
        traffic_share=share,
        hours=hours,
        tokens_per_second=tokens / seconds,
        money=None if rates.price is None else hours * job.world_size * rates.price,
        change=change,
    )


def step_seconds(job: Job, length: int, accumulation: int, rates: Rates) -> tuple[float, float]:
    """Estimate (seconds of an optimizer step of records of `length` tokens, seconds of traffic in it)."""
    tokens = job.micro_batch_size * length
    flops = tokens * count_flops(job.student, job.teacher, length, job.gradient_checkpointing)
    work = accumulation * flops / (rates.peak_flops * rates.mfu)
    bandwidth = rates.within_host if job.world_size <= rates.gpus_per_host else rates.across_hosts
    part = (job.world_size - 1) / job.world_size
    passes = 3 if job.zero.get("stage") == 3 else 0
    moved = passes * job.student.parameters * WIDTH[job.student_dtype]
    if job.teacher is not None and job.teacher_sharded:
        moved += job.teacher.parameters * WIDTH[job.teacher_dtype]
    traffic = accumulation * part * moved / bandwidth
    if job.zero.get("stage") in (1, 2):  # gradients reduced, and weights gathered, once a step
        traffic += part * 2 * job.student.parameters * WIDTH[job.student_dtype] / bandwidth
    if job.teacher is not None and job.teacher_offloaded:
        traffic += accumulation * job.teacher.parameters * WIDTH[job.teacher_dtype] / job.world_size / rates.pcie
    step = max(work, traffic)
    if job.offloads("optimizer"):
        own = job.student.parameters / job.world_size
        ranks = min(job.world_size, rates.gpus_per_host)
        step += own * (4 + WIDTH[job.student_dtype]) / rates.pcie + own * ranks * _ADAM_BYTES / rates.host_memory
    return step, traffic


def format_table(table: Table) -> str:
    """Format the table for a terminal."""
    teacher = "none" if table.teacher_parameters is None else f"{table.teacher_parameters / 1e9:.2f} B"
    lines = [
        f"{table.name}: student {table.student_parameters / 1e9:.2f} B, teacher {teacher}",
        f"  {'GPUs':>4} {'of':>9}  {'setting':<37} {'each GPU':>9} {'host':>9}  {'s/step':>7} {'tok/s':>9} "
        f"{'hours':>8} {'money':>10}",
    ]
    for row in table.rows:
        host = sum(row.host_bytes.values()) * min(row.gpus, table.rates.gpus_per_host)
        money = "" if row.money is None else f"{row.money:,.0f}"
        lines.append(
            f"  {row.gpus:>4} {size(row.gpu_bytes):>9}  {row.setting:<37} {size(sum(row.device_bytes.values())):>9} "
            f"{size(host) if host else '-':>9}  {row.step_seconds:>7.1f} {row.tokens_per_second:>9,.0f} "
            f"{row.hours:>8,.0f} {money:>10}" + ("" if row.fits else "  does not fit")
        )
    if not any(row.fits for row in table.rows):
        lines.append(f"  nothing fits: {table.rows[-1].change}")
    if table.capture_hours is not None:
        lines.append(
            f"  capture   at most {table.capture_hours:,.0f} GPU-hours, were every token of the run another one"
        )
    lines.append(f"  hours     of the whole run, at most {table.tokens / 1e9:,.1f} B tokens on the most GPUs")
    lines.append(f"  fits      in {USABLE:.0%} of a GPU; the rest goes to CUDA, NCCL and fragmentation")
    lines.append(f"  {table.rates.describe()}")
    return "\n".join([*lines, *(f"  note      {note}" for note in table.notes)])
