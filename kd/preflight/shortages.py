"""Shortages of memory: each with the changes to the configuration that would make the job fit."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kd.preflight.memory import Job, estimate_memory

USABLE = 0.92  # of a device: the rest goes to the CUDA context, NCCL and fragmentation
_GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """Memory of one GPU (None: ranks run on the CPU) and of one host (None: unchecked), and the ranks of a host."""

    device_memory_bytes: int | None
    host_memory_bytes: int | None
    ranks_per_host: int

    def shortages(self, job: Job) -> list[tuple[str, int, int]]:
        """List each memory that is too small: (its name, bytes needed, bytes there)."""
        device, host = (sum(sizes.values()) for sizes in estimate_memory(job))
        found = []
        if self.device_memory_bytes is None:
            host += device
        elif device > self.device_memory_bytes * USABLE:
            found.append(("each GPU", device, int(self.device_memory_bytes * USABLE)))
        host *= min(self.ranks_per_host, job.world_size)
        if self.host_memory_bytes is not None and host > self.host_memory_bytes * USABLE:
            found.append(("each host", host, int(self.host_memory_bytes * USABLE)))
        return found


def find_shortages(job: Job, machine: Machine) -> Iterator[str]:
    """Yield each memory that a job does not fit, with the changes that help."""
    shortages = machine.shortages(job)
    if not shortages:
        return
    changes = []
    for family in _variants(job, machine):  # the mildest of each family that is enough
        changes += [change for change, variant in family if not machine.shortages(variant)][:1]
    advice = "any one of these makes it fit: " + "; ".join(changes) if changes else _advice(job, machine)
    for what, needed, there in shortages:
        yield f"{what} needs {needed / _GIB:.1f} GiB and has {there / _GIB:.1f} GiB to use: {advice}"


def _advice(job: Job, machine: Machine) -> str:
    if machine.device_memory_bytes is None:
        return f"there is no GPU here: run it on GPUs, or choose a smaller {'teacher' if job.is_capture else 'student'}"
    smaller = "a smaller teacher" if job.is_capture else "a smaller student or a smaller teacher"
    return f"no single change makes it fit: use more GPUs together with offload, {smaller}"


def _smaller_batches(job: Job, machine: Machine) -> list[tuple[str, Job]]:
    """Find the largest micro-batch that fits, by halves: memory grows with it."""

    def of(size: int) -> Job:
        return replace(job, micro_batch_size=size)

    fits = bisect.bisect_left(range(1, job.micro_batch_size), True, key=lambda size: bool(machine.shortages(of(size))))
    return [(f"training.micro_batch_size: {fits}, with more gradient_accumulation", of(fits))] if fits else []


def _variants(job: Job, machine: Machine) -> Iterator[list[tuple[str, Job]]]:
    """Yield single changes in families, the cheapest first, each from mild to strong."""
    if not job.gradient_checkpointing:
        yield [("student.gradient_checkpointing: true", replace(job, gradient_checkpointing=True))]
    if job.packing_mask:
        yield [
            (
                "student.attention_implementation: flash_attention_2",
                replace(job, packing_mask=False, eager_attention=False),
            )
        ]
    yield _smaller_batches(job, machine)
    if not job.offloads("optimizer") and not job.on_cpu:
        zero = {**job.zero, "offload_optimizer": {"device": "cpu"}}
        yield [
            (
                "training.deepspeed: ds_configs/zero3_offload.json",
                replace(job, ds_config={**job.ds_config, "zero_optimization": zero}),
            )
        ]
    if job.teacher is not None and not job.teacher_sharded:
        yield [("teacher.placement: sharded", replace(job, teacher_sharded=True))]
    if job.teacher is not None and not job.teacher_offloaded and not job.on_cpu:
        yield [("teacher.placement: offloaded", replace(job, teacher_sharded=True, teacher_offloaded=True))]
    if not job.on_cpu:
        yield [
            (f"{job.world_size * factor} GPUs", replace(job, world_size=job.world_size * factor))
            for factor in (2, 4, 8, 16)
        ]
