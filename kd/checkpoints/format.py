"""Checkpoint formats: how the state of a DeepSpeed engine is written into a folder, and loaded from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class CheckpointFormat(Protocol):
    """One way to write a checkpoint; registered in kd/config/registries.py under the name that its manifest says.

    Every rank calls `save` and `load` with the same folder, which is empty at first and on a file system that all ranks
    see.
    Hashes, publishing and retries are the caller's (kd/checkpoints/store.py).

    An attribute `any_world_size = True` says that `load` takes what another number of ranks wrote; the state is then
    that of some rank, with every rank's in a list under kd.checkpoints.plain_state.RANKS.
    """

    def save(self, engine: Any, folder: Path, state: dict[str, Any]) -> None:
        """Write the DeepSpeed `engine` (weights, optimizer, loss scale) and this rank's `state`."""
        ...

    def load(self, engine: Any, folder: Path) -> dict[str, Any]:
        """Load them into `engine` and return this rank's state.

        Raises:
            Exception: of any kind, where that cannot be done; the caller tells all ranks.
        """
        ...

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        """Read the whole weights without an engine, in one process: name in the engine's module -> fp32 on the CPU.

        Raises:
            Exception: as `load`.
        """
        ...
