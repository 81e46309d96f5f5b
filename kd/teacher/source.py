"""Where the teacher's signal comes from. The trainer asks a TeacherSource and does not know which one it has:

live    a model in the same job (kd/teacher/live.py), dense, its best tokens, or draws
cache   what launch/capture.py wrote (kd/teacher/cached.py), from a model or an endpoint
"""

from __future__ import annotations

from typing import Protocol

from kd.batching.micro_batch import MicroBatch
from kernels import DenseTeacher, SparseTeacher


class TeacherSource(Protocol):
    """The teacher's signal for supervised rows. All ranks call every method together, with a micro-batch each."""

    missing: frozenset[bytes]
    """Keys (kd/batching/record_key.py) of records it has no signal for: they must be left out before rows are
    counted.
    """
    has_entropy: bool
    """Whether its signals tell the teacher's entropy; where not, they say 0, and nothing may use or show it."""
    content: dict[str, str] | None
    """What a cache holds (kd.teacher.cache.manifest.content_of), with which training must go on once it has begun; None
    of a live teacher.
    """

    def temperature(self, wanted: float) -> float:
        """The temperature it has for a scheduled one; student, T^2 and log use what this returns."""

    def prefetch(self, micro_batches: list[MicroBatch], temperature: float) -> None:
        """Announces micro-batches, on the CPU, that `signal` will soon be asked for in this order; what is announced
        and not asked for is forgotten with the next announcement but one. Errors wait for `signal`."""

    def signal(self, micro: MicroBatch, temperature: float, step: int = 0) -> DenseTeacher | SparseTeacher:
        """The signal of the rows of `micro`, whose tensors are on the device; also of no rows.

        Args:
            temperature: one that `temperature` returned.
            step: the optimizer step, from 0: a live teacher draws anew in each.
        """

    def close(self) -> None:
        """Ends what it has begun."""
