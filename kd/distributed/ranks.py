"""Ranks: this process's place in the job, and what ranks tell one another over the CPU."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """Ranks of the job, over a group that carries CPU tensors and Python objects (gloo); all call each method
    together.
    """

    def __init__(self, group=None):
        self._group = dist.group.WORLD if group is None else group
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    @classmethod
    def over_cpu(cls) -> Ranks:
        """Make the ranks of the whole job; NCCL cannot carry what they exchange, so that it gets a gloo group beside
        it.
        """
        return cls(None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo"))

    def sum(self, values: Tensor) -> Tensor:
        """Add up `values` (any shape, CPU), in place, and return them."""
        dist.all_reduce(values, group=self._group)
        return values

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, by rank."""
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values
