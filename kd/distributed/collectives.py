"""Work whose error, and of one rank also its result, all ranks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

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


def on_every_rank(work: Callable[[], T]) -> T:
    """Run `work` on every rank and return its own result; where one raises, all do, so that none waits for ever.

    All ranks call it together, and `work` calls no collective.

    Raises:
        SpanwiseError: `work` raised, here or elsewhere: the error of the first rank that did.
    """
    result, error, cause = None, None, None
    try:
        result = work()
    except SpanwiseError as found:
        error = found
    except Exception as found:
        rank = dist.get_rank() if dist.is_initialized() else 0
        error, cause = SpanwiseError(f"rank {rank}: {describe_failure(found)}"), found
    errors = [error]
    if dist.is_available() and dist.is_initialized():
        errors = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
    first = next((found for found in errors if found is not None), None)
    if first is not None:
        raise first from cause
    return cast(T, result)
