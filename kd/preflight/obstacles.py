"""Obstacles that are no shortage of memory: a precision, a disk, processes or a batch that this machine cannot give."""

from __future__ import annotations

import os
from collections.abc import Iterator

import deepspeed.ops

from kd.config.deepspeed.fill import offload_device
from kd.config.deepspeed.read import read_ds_config
from kd.config.derived import reads_teacher, run_folder
from kd.config.schema import RunConfig, Training
from kd.dtypes import multiplies_fp16
from kd.preflight.memory import Job

_PROCESSES_A_CORE = 4  # workers wait for one another beyond this, and each holds some 400 MB
_FEW = 8  # workers of a host that any machine may start


def find_obstacles(config: RunConfig, job: Job, ranks_per_host: int) -> Iterator[str]:
    """Yield what would stop a job on this machine after its models are loaded, each with its key and remedy."""
    if not job.is_capture:
        yield from _run_folder(config)
    dtypes = {} if job.is_capture else {"student.dtype": config.student.dtype}
    is_asked = job.is_capture or reads_teacher(config)
    if config.teacher is not None and job.teacher is not None and is_asked:
        dtypes["teacher.dtype"] = config.teacher.dtype
    for key, dtype in dtypes.items():
        if dtype == "fp16" and job.on_cpu and not multiplies_fp16():
            yield f"{key}: fp16 needs a GPU, and there is none here: use {key}: auto, or bf16 or fp32"
    workers, cores = config.data.workers or 0, len(os.sched_getaffinity(0))
    most = max(_FEW, _PROCESSES_A_CORE * cores) // min(ranks_per_host, job.world_size)
    if workers > max(most, 1):
        yield (
            f"data.workers: {workers} processes for each of {min(ranks_per_host, job.world_size)} ranks are more than "
            f"{cores} cores can feed: use {max(most, 1)} or fewer, or leave it out"
        )
    if job.is_capture:
        return
    yield from _offloads(job)
    yield from _batch(config.training, job.world_size)


def _run_folder(config: RunConfig) -> Iterator[str]:
    folder = run_folder(config.run)
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                yield f"run.output_dir, run.name: {path} is no folder, and the run's is {folder}: choose another"
            return


def _offloads(job: Job) -> Iterator[str]:
    for name in ("offload_optimizer", "offload_param"):
        section = job.zero.get(name)
        if section is None or offload_device(section) != "nvme":
            continue
        path, key = section["nvme_path"], f"training.deepspeed: zero_optimization.{name}"
        if not (os.path.isdir(path) and os.access(path, os.W_OK)):
            yield f"{key}.nvme_path: {path} is no folder that can be written here: mount the disk, or use device cpu"
        elif not deepspeed.ops.__compatible_ops__["async_io"]:
            yield f"{key}.device: nvme needs libaio, which is not installed: install libaio-dev, or use device cpu"


def _batch(training: Training, world_size: int) -> Iterator[str]:
    batch = read_ds_config(training.deepspeed).get("train_batch_size", "auto")
    per_rank = training.micro_batch_size * training.gradient_accumulation
    if batch != "auto" and batch != per_rank * world_size:
        yield (
            f"training.deepspeed: train_batch_size is {batch}, and {world_size} ranks train {per_rank * world_size} "
            "rows a step (training.micro_batch_size x training.gradient_accumulation x ranks): remove it, or change one"
        )
