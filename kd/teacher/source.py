"""Teacher source: gives the targets of a micro-batch's rows. The trainer asks one and does not know its kind.

live    a model in the same job (kd/teacher/live.py): dense, its best tokens, or draws
cache   files that launch/capture.py wrote (kd/teacher/cached.py), from a model or an endpoint

To add one: write a class with the methods of TeacherSource and a function that takes an OpenTeacher and returns it,
and register the function in kd.config.registries.TEACHER_SOURCES; `teacher.source: its name` in the YAML then opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kd.batching.micro_batch import MicroBatch
from kd.config.schema import Data, Loss, RunConfig, Teacher
from kd.sources.source import Source
from kernels import DenseTeacher, SparseTeacher


class TeacherSource(Protocol):
    """Targets for supervised rows. All ranks call every method together, each with a micro-batch of its own."""

    @property
    def missing(self) -> frozenset[bytes]:
        """Keys (kd/batching/record_key.py) of records without targets; they are left out before rows are counted."""
        ...

    @property
    def has_entropy(self) -> bool:
        """True where the targets have the teacher's entropy; without it they say 0, and nothing may use or show it."""
        ...

    @property
    def content(self) -> dict[str, str] | None:
        """Content of a cache (kd.teacher.cache.manifest.content_of), which a resumed run must find again; None of a
        source that a run may change.
        """
        ...

    def temperature(self, wanted: float) -> float:
        """Return the temperature it has for a scheduled one; student, T^2 and log use it. Raises SpanwiseError."""
        ...

    def prefetch(self, micro_batches: list[MicroBatch], temperature: float) -> None:
        """Announce micro-batches, on the CPU, that `targets` will soon be asked for, in this order.

        Those not asked for are forgotten with the next announcement but one. Errors wait for `targets`.
        """
        ...

    def targets(self, micro: MicroBatch, temperature: float, step: int = 0) -> DenseTeacher | SparseTeacher:
        """Return the targets of the rows of `micro`, whose tensors are on the device; there may be no rows.

        Args:
            temperature: one that `temperature` returned.
            step: optimizer step, from 0; a source that draws does so anew in each.

        Returns:
            Fields of N = len(micro.rows) rows on the device, row i for micro.rows[i].
        """
        ...

    def close(self) -> None:
        """End threads and connections."""
        ...


@dataclass(frozen=True)
class OpenTeacher:
    """Request for a teacher source: what a run knows that one may need.

    Attributes:
        teacher, loss, data: sections of the configuration.
        ds_config: student's DeepSpeed settings, for an engine of the teacher's without a JSON of its own.
        tokenizer: the run's; ids are below len(tokenizer).
        device: of the rows asked for.
        say: told, in words, what a person should know.
        sources: records of each stage, in the order of data.stages.
        seed: run.seed.
        attention_implementation: student.attention_implementation.
    """

    teacher: Teacher
    loss: Loss
    data: Data
    ds_config: dict[str, Any]
    tokenizer: Any
    device: torch.device
    say: Callable[[str], None]
    sources: Sequence[Source]
    seed: int
    attention_implementation: str = "sdpa"

    @classmethod
    def for_run(
        cls,
        config: RunConfig,
        ds_config: dict[str, Any],
        tokenizer: Any,
        device: torch.device,
        say: Callable[[str], None],
        sources: Sequence[Source],
    ) -> OpenTeacher:
        """Make the request of a run that has a teacher."""
        assert config.teacher is not None, "a run without a teacher opens none"
        return cls(
            config.teacher,
            config.loss,
            config.data,
            ds_config,
            tokenizer,
            device,
            say,
            sources,
            config.run.seed,
            config.student.attention_implementation,
        )
