"""Whole copy of a student that may be partitioned, its adapters merged, for generation while it trains.

Generation on partitioned weights hangs where ranks need different numbers of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from kd.models.lora import list_merged


class WholeCopy:
    """Copy of a model's weights on this rank's device; all ranks make one and refresh it together.

    Args:
        model: the student, partitioned by ZeRO-3 or whole.
        device: of the copy, which takes as much memory there as all the weights.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device):
        self._source, self._device = model, device
        self._copy: Any = None

    @torch.no_grad()
    def refresh(self) -> PreTrainedModel:
        """Return the copy with the weights as they are now, gathered one at a time."""
        import deepspeed  # seconds, and a process that only checks data never gets here

        if self._copy is None:
            self._copy = self._make()
        targets = dict(self._copy.named_parameters())
        for weight in list_merged(self._source):
            with deepspeed.zero.GatheredParameters(weight.parts, enabled=hasattr(weight.parts[0], "ds_id")):
                targets[weight.name].copy_(weight.merge())
        buffers = dict(self._copy.named_buffers())
        for name, buffer in self._source.named_buffers():
            buffers[name].copy_(buffer)
        return self._copy

    def _make(self) -> PreTrainedModel:
        dtype = next(self._source.parameters()).dtype
        with torch.random.fork_rng():  # the weights are drawn and thrown away, and training's draws go on as they were
            copy: Any = type(self._source)._from_config(self._source.config, dtype=dtype)
        return copy.to(self._device).eval()
