"""A live teacher: the model runs beside the student, and its signal is dense, its best tokens, or draws.

dense: hidden states and head; the student's loss makes the teacher's logits a chunk at a time, so [N, V] never exists.
topk, sampled: K tokens a row, made from the head a chunk at a time by kernels/topk.py; the loss then reads only those.

A draw depends on the run's seed, the optimizer step, the record's tokens and the place in it: not on rank, batch or
split.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.config.schema import RunConfig
from kd.teacher.model import TeacherModel
from kernels import (
    DenseTeacher,
    SparseTeacher,
    TeacherSamples,
    TeacherTopK,
    sparse_teacher,
    teacher_sample,
    teacher_topk,
)

CAPTURED = -1  # in place of a step: the draws of a cache are made once
# Rows whose logits exist at once on a GPU: sampling keeps them in fp64 beside the fp32 (2 GB at 1,024 rows and 151,936
# columns).
_GPU_CHUNK_ROWS = 1024
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # the step of splitmix64's sequence (Steele, Lea, Flood 2014), as int64


class SparseForm(NamedTuple):
    """What is taken of each row's distribution."""

    kind: str  # topk or sampled
    top_k: int | None
    num_draws: int | None
    vocab_size: int
    seed: int


def sparse_rows(
    dense: DenseTeacher, micro: MicroBatch, temperatures: tuple[float, ...], form: SparseForm, step: int
) -> TeacherTopK | TeacherSamples:
    """The signal of a micro-batch's rows at each temperature, from hidden states and head."""
    options = {"vocab_size": form.vocab_size, "chunk_rows": _GPU_CHUNK_ROWS if dense.hidden.is_cuda else None}
    if form.kind == "topk":
        return teacher_topk(*dense, form.top_k, temperatures, **options)
    return teacher_sample(*dense, form.num_draws, temperatures, row_seeds(form.seed, micro, step), **options)


def row_seeds(seed: int, micro: MicroBatch, step: int) -> Tensor:
    """[N] int64, one a row: a hash of the seed, the step and the record's key, then splitmix64's sequence by
    position.
    """
    starts = [hashlib.blake2b(struct.pack("<Qq", seed, step) + key, digest_size=8).digest() for key in micro.keys]
    starts = torch.tensor([int.from_bytes(start, "little", signed=True) for start in starts], dtype=torch.int64)
    return starts.to(micro.record.device, non_blocking=True).index_select(0, micro.record) + micro.positions * _GAMMA


class LiveTeacher:
    """A TeacherSource (kd/teacher/source.py) over a model of this job.

    Args:
        ds_config: DeepSpeed settings of a teacher that is not replicated.
        vocab_size: len(tokenizer); the head's columns beyond it get no probability.
    """

    missing: frozenset[bytes] = frozenset()
    has_entropy = True
    content = None

    def __init__(self, config: RunConfig, ds_config: dict, vocab_size: int, device: torch.device):
        teacher = config.teacher
        self._model = TeacherModel(config, ds_config, device, packed=config.data.packing != "none")
        self._form = SparseForm(teacher.targets, teacher.top_k, teacher.num_draws, vocab_size, config.run.seed)

    def temperature(self, wanted: float) -> float:
        return wanted

    def prefetch(self, micro_batches: list[MicroBatch], temperature: float) -> None:
        """Nothing: the model's forward is the work of `signal`, on the device that the student trains on."""

    def signal(self, micro: MicroBatch, temperature: float, step: int = 0) -> DenseTeacher | SparseTeacher:
        dense = self._model.rows(micro)
        if self._form.kind == "dense":
            return dense
        return sparse_teacher(sparse_rows(dense, micro, (temperature,), self._form, step), temperature)

    def close(self) -> None:
        """Nothing was begun."""


class LiveRows:
    """What capture asks for its rows (kd/teacher/capture/capture.py): as LiveTeacher, at every temperature of the
    cache.
    """

    def __init__(self, config: RunConfig, ds_config: dict, vocab_size: int, device: torch.device):
        cache = config.teacher.cache
        self._model, self._device = TeacherModel(config, ds_config, device, packed=False), device
        self._form = SparseForm(cache.kind, cache.top_k, cache.num_draws, vocab_size, config.run.seed)
        self._temperatures = cache.temperatures

    def prefetch(self, micro_batches: Iterable[MicroBatch]) -> None:
        """Nothing: the device works on one batch at a time."""

    def signal_rows(self, micro: MicroBatch) -> TeacherTopK | TeacherSamples:
        micro = micro.to(self._device)
        return sparse_rows(self._model.rows(micro), micro, self._temperatures, self._form, CAPTURED)

    def missing(self, micro: MicroBatch) -> dict[int, str]:
        return {}

    def close(self) -> None:
        """Nothing was begun."""
