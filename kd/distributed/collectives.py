"""Work of one rank whose result, or error, all ranks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from kd.atomic_files import describe_failure
from kd.errors import SpanwiseError

T = TypeVar("T")


def on_rank_0(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and return its result on every rank; the others wait. All ranks call it together.

    Without a process group `work` simply runs here.

    Raises:
        SpanwiseError: `work` raised, on every rank, so that none waits for ever. Ours keep their type; any other is
            told by its type and text, with the original as the cause on rank 0.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    outcome: list[Any] = [None, None]  # result, error
    cause: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except SpanwiseError as error:
            outcome[1] = error
        except Exception as error:
            outcome[1], cause = SpanwiseError(f"rank 0: {describe_failure(error)}"), error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1] from cause
    return outcome[0]
