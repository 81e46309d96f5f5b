"""Where the teacher's signal comes from. The trainer asks a TeacherSource and does not know which one it has:

    live    a model in the same job (kd/teacher/live.py), dense, its best tokens, or draws
    cache   what launch/capture.py wrote (kd/teacher/cached.py), from a model or an endpoint
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from kd.config_schema import RunConfig
from kd.data.batches import Source
from kd.data.micro_batch import MicroBatch
from kernels import DenseTeacher, SparseTeacher


class TeacherSource(Protocol):
    """The teacher's signal for supervised rows. All ranks call every method together, with a micro-batch each."""

    missing: frozenset[bytes]
    """Keys (kd/data/content.py) of records it has no signal for: they must be left out before rows are counted."""
    has_entropy: bool
    """Whether its signals tell the teacher's entropy; where not, they say 0, and nothing may use or show it."""
    content: dict[str, str] | None
    """What a cache holds (kd.teacher.manifest.content_of), with which training must go on once it has begun; None of a live teacher."""

    def temperature(self, wanted: float) -> float:
        """The temperature it has for a scheduled one; student, T^2 and log use what this returns."""

    def prefetch(self, micro_batches: list[MicroBatch], temperature: float) -> None:
        """Announces micro-batches, on the CPU, that `signal` will soon be asked for in this order; what is announced and not
        asked for is forgotten with the next announcement but one. Errors wait for `signal`."""

    def signal(self, micro: MicroBatch, temperature: float, step: int = 0) -> DenseTeacher | SparseTeacher:
        """The signal of the rows of `micro`, whose tensors are on the device; also of no rows.

        Args:
            temperature: one that `temperature` returned.
            step: the optimizer step, from 0: a live teacher draws anew in each.
        """

    def close(self) -> None:
        """Ends what it has begun."""


def open_teacher(config: RunConfig, ds_config: dict, tokenizer, device: torch.device, say: Callable[[str], None],
                 sources: Sequence[Source]) -> TeacherSource:
    """The source that `config.teacher` asks for. All ranks call it together.

    Args:
        ds_config: DeepSpeed settings of a live teacher that has no JSON of its own.
        say: told, in words, what a person should know.
        sources: the records of each stage, of which a cache must be.

    Raises:
        NotCaptured: teacher.cache names a folder without a finished cache.
        CacheError: the cache is damaged, or another teacher's, tokenizer's, template's or dataset's.
    """
    from kd.teacher.cached import open_cache
    from kd.teacher.live import LiveTeacher

    if config.teacher.cache is not None:
        return open_cache(config, tokenizer, device, say, sources)
    return LiveTeacher(config, teacher_settings(config, ds_config), len(tokenizer), device)


def teacher_settings(config: RunConfig, ds_config: dict) -> dict:
    """DeepSpeed settings of the teacher's own engine: its JSON's, else the student's."""
    return json.loads(Path(config.teacher.deepspeed).read_text()) if config.teacher.deepspeed else ds_config
