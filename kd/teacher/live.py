"""Live teacher: a model that runs beside the student and gives dense targets, its best tokens, or draws.

dense: hidden states and head; the student's loss makes the teacher's logits a chunk at a time, so [N, V] never exists.
topk, sampled: K tokens a row, made from the head a chunk at a time by kernels/topk.py; the loss then reads only those.

A draw depends on the run's seed, the optimizer step, the record's tokens and the place in it: not on rank, batch or
split.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.config.deepspeed.fill import teacher_ds_config
from kd.teacher.model import TeacherModel
from kd.teacher.source import OpenTeacher
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


class SparseOptions(NamedTuple):
    """Tokens that are kept of each row's distribution, as kernels/topk.py takes them."""

    kind: str  # topk or sampled
    top_k: int | None  # of topk
    num_draws: int | None  # of sampled
    vocab_size: int  # columns of the head beyond it get no probability
    seed: int  # of the draws


def sparse_rows(
    dense: DenseTeacher, micro: MicroBatch, temperatures: tuple[float, ...], options: SparseOptions, step: int
) -> TeacherTopK | TeacherSamples:
    """Make sparse targets of a micro-batch's rows at each temperature, from hidden states [N, H] and head.

    Args:
        step: optimizer step of the draws, or CAPTURED.
    """
    chunk_rows = _GPU_CHUNK_ROWS if dense.hidden.is_cuda else None
    shared: dict[str, Any] = {"vocab_size": options.vocab_size, "chunk_rows": chunk_rows}
    if options.kind == "topk":
        assert options.top_k is not None
        return teacher_topk(*dense, options.top_k, temperatures, **shared)
    assert options.num_draws is not None
    seeds = row_seeds(options.seed, micro, step)
    return teacher_sample(*dense, options.num_draws, temperatures, seeds, **shared)


def row_seeds(seed: int, micro: MicroBatch, step: int) -> Tensor:
    """Make the seeds [N] int64 of a micro-batch's rows, on its device.

    Each is a hash of the seed, the step and the record's key, then splitmix64's sequence by position.
    """
    starts = [hashlib.blake2b(struct.pack("<Qq", seed, step) + key, digest_size=8).digest() for key in micro.keys]
    starts = torch.tensor([int.from_bytes(start, "little", signed=True) for start in starts], dtype=torch.int64)
    return starts.to(micro.record.device, non_blocking=True).index_select(0, micro.record) + micro.positions * _GAMMA


def open_live(request: OpenTeacher) -> LiveTeacher:
    """Load the teacher beside the student. All ranks call it together.

    Raises:
        StudentError: its files cannot be read.
        UnpackableModel: data.packing is on, and this model's attention cannot keep records apart.
    """
    teacher = request.teacher
    model = TeacherModel(
        teacher,
        teacher_ds_config(teacher, request.ds_config),
        request.device,
        packed=request.data.packing != "none",
        attention_implementation=request.attention_implementation,
    )
    if teacher.targets in (None, "dense"):
        return LiveTeacher(model)
    vocab_size = len(request.tokenizer)
    return LiveTeacher(
        model, SparseOptions(teacher.targets, teacher.top_k, teacher.num_draws, vocab_size, request.seed)
    )


class LiveTeacher:
    """TeacherSource over a model of this job.

    Args:
        sparse: tokens that are kept of each row; None gives dense targets.
    """

    missing: frozenset[bytes] = frozenset()
    has_entropy = True
    content: dict[str, str] | None = None

    def __init__(self, model: TeacherModel, sparse: SparseOptions | None = None):
        self._model, self._sparse = model, sparse

    def temperature(self, wanted: float) -> float:
        """Return `wanted`: every temperature can be had."""
        return wanted

    def prefetch(self, micro_batches: list[MicroBatch], temperature: float) -> None:
        """Do nothing: the model's forward is the work of `targets`, on the device that the student trains on."""

    def targets(self, micro: MicroBatch, temperature: float, step: int = 0) -> DenseTeacher | SparseTeacher:
        """Run the model over `micro`; see TeacherSource.targets."""
        dense = self._model.rows(micro)
        if self._sparse is None:
            return dense
        return sparse_teacher(sparse_rows(dense, micro, (temperature,), self._sparse, step), temperature)

    def close(self) -> None:
        """Do nothing: nothing was begun."""


class LiveRows:
    """RowSource of a capture (kd/teacher/capture/rows.py) over a model of this job, at every temperature of a cache."""

    def __init__(
        self, model: TeacherModel, sparse: SparseOptions, temperatures: tuple[float, ...], device: torch.device
    ):
        self._model, self._sparse, self._temperatures, self._device = model, sparse, temperatures, device

    def prefetch(self, micro_batches: Iterable[MicroBatch]) -> None:
        """Do nothing: the device works on one batch at a time."""

    def target_rows(self, micro: MicroBatch) -> TeacherTopK | TeacherSamples:
        """Run the model over `micro`; see RowSource.target_rows."""
        micro = micro.to(self._device)
        return sparse_rows(self._model.rows(micro), micro, self._temperatures, self._sparse, CAPTURED)

    def missing(self, micro: MicroBatch) -> dict[int, str]:
        """Return nothing: a model has targets for every record."""
        return {}

    def close(self) -> None:
        """Do nothing: nothing was begun."""
