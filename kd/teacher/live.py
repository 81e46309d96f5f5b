"""A live teacher: hidden states of the supervised rows, and its head, whole on every rank.

The student's loss makes the teacher's logits a chunk at a time from these, so the teacher's [N, V] never exists. The
teacher is sharded by its own ZeRO-3 engine (no optimizer), or replicated. Its head is gathered once: inside the
student's forward another engine's weight cannot be reached.
"""

from __future__ import annotations

import deepspeed
import torch
from torch import Tensor, nn

from kd.config_schema import RunConfig
from kd.data.micro_batch import MicroBatch
from kd.hidden_rows import check_packable, hidden_rows
from kd.model_head import head_form, head_of
from kd.student import load_causal_lm
from kernels import DenseTeacher, Head


class _Rows(nn.Module):
    """The teacher without its head: last hidden states of the chosen rows."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, micro: MicroBatch) -> Tensor:
        return hidden_rows(self.model, micro)


class LiveTeacher:
    """`signal(micro_batch)` gives the DenseTeacher of its rows. All ranks must call it together, also those with no rows."""

    def __init__(self, config: RunConfig, ds_config: dict, device: torch.device):
        teacher = config.teacher
        sharded = teacher.placement == "sharded"
        settings = None
        if sharded:
            settings = {k: v for k, v in ds_config.items() if k not in ("bf16", "fp16", "optimizer", "scheduler", "gradient_clipping")}
            settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
            settings.pop("train_batch_size", None)
        model = load_causal_lm(teacher.path, dtype=teacher.dtype, ds_config=settings, revision=teacher.revision,
                               attention_implementation=config.student.attention_implementation)
        self.model_config = model.config
        if config.data.packing != "none":
            check_packable(model)
        model.requires_grad_(False).eval()
        form = head_form(model.config)
        head = head_of(model)
        if sharded:
            dtype = next(model.parameters()).dtype
            if dtype != torch.float32:
                settings["bf16" if dtype == torch.bfloat16 else "fp16"] = {"enabled": True}
            weights = [w for w in (head.weight, head.bias) if w is not None]
            with deepspeed.zero.GatheredParameters(weights):
                whole = [w.detach().clone().to(device) for w in weights]
            self._forward = deepspeed.initialize(model=_Rows(model), config=settings)[0]
            self._forward.eval()
        else:
            whole = [w.detach() for w in (head.weight, head.bias) if w is not None]
            self._forward = _Rows(model).to(device).eval()
            whole = [w.to(device) for w in whole]
        self.head = Head(whole[0], whole[1] if len(whole) > 1 else None, form.softcap, form.scale)

    @torch.no_grad()
    def signal(self, micro: MicroBatch) -> DenseTeacher:
        """Hidden states [N, Ht] of the micro-batch's rows (tensors already on the device) with the head."""
        return DenseTeacher(self._forward(micro), self.head)
