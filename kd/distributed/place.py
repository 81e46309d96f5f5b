"""Place of this process in its job, as the launcher's environment gives it."""

from __future__ import annotations

import os
from typing import NamedTuple

from kd.errors import SpanwiseError

_LAUNCHER = "start the job with deepspeed or torchrun, which set it, or unset RANK and WORLD_SIZE to run one process"


class StartError(SpanwiseError, RuntimeError):
    """Job that cannot start: its environment, its port, or ranks that do not come."""


class Place(NamedTuple):
    """Rank of a process, in its job and on its machine, and where rank 0 is met."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int


def read_place() -> Place | None:
    """Read the launcher's variables; None where there are none, for a job of one process.

    Raises:
        StartError: one is missing, no integer, or out of range; the message names it.
    """
    if "RANK" not in os.environ:
        return None
    world_size = read_world_size()
    rank = _read("RANK", 0, world_size - 1)
    local_world_size = _read("LOCAL_WORLD_SIZE", 1, world_size, default=world_size)
    local_rank = _read("LOCAL_RANK", 0, world_size - 1)
    if not os.environ.get("MASTER_ADDR"):
        raise StartError(f"MASTER_ADDR: not set, though RANK is: {_LAUNCHER}")
    port = _read("MASTER_PORT", 1, 65535)
    local_world_size = max(local_world_size, local_rank + 1)  # DeepSpeed's launcher sets none, and hands on an old one
    return Place(rank, world_size, local_rank, local_world_size, os.environ["MASTER_ADDR"], port)


def read_world_size() -> int:
    """Read WORLD_SIZE; 1 where it is not set.

    Raises:
        StartError: it is no integer from 1 on.
    """
    return _read("WORLD_SIZE", 1, 1_000_000, default=1)


def _read(name: str, low: int, high: int, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise StartError(f"{name}: not set, though RANK is: {_LAUNCHER}")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else None
    if number is None or not low <= number <= high:
        raise StartError(f"{name}={text}: an integer from {low} to {high} is needed here: {_LAUNCHER}")
    return number
