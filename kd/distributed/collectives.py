"""TODO docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kd.errors import SpanwiseError


def on_rank_0(work: Callable[[], Any]) -> Any:
    """What `work` returns on rank 0, on every rank, which wait for it; an error there is raised on every rank, so that
    none waits for ever. Errors of ours keep their type."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    found: list[Any] = [None, None]  # result, error
    if not distributed or torch.distributed.get_rank() == 0:
        try:
            found[0] = work()
        except Exception as error:
            if not distributed:
                raise
            found[1] = (
                error if isinstance(error, SpanwiseError) else SpanwiseError(f"rank 0: {type(error).__name__}: {error}")
            )
    if distributed:
        torch.distributed.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]
