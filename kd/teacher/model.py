"""Teacher's model: hidden states of a micro-batch's supervised rows, and its head, whole on every rank.

The teacher is sharded by its own ZeRO-3 engine (no optimizer), on the GPUs or in host memory, or replicated. Its head
is gathered once: inside the student's forward another engine's weight cannot be reached.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from kd.batching.micro_batch import MicroBatch
from kd.config.schema import Teacher
from kd.models.hidden_states import check_packable, hidden_rows
from kd.models.lm_head import head_of, head_scaling
from kd.models.load import load_causal_lm
from kernels import DenseTeacher, Head


class _Rows(nn.Module):
    """Teacher without its head: last hidden states of the supervised rows."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, micro: MicroBatch) -> Tensor:
        return hidden_rows(self.model, micro)


class TeacherModel:
    """Frozen causal LM under an engine of its own, or whole on every rank.

    Args:
        ds_config: DeepSpeed settings of a teacher that is not replicated.
        device: of the rows, and of a replicated model.
        packed: whether sequences hold several records, which must not see one another.

    Raises:
        StudentError: its files cannot be read.
        UnpackableModel: `packed`, and its attention cannot keep records apart.
        UnsupportedHead: its logits are made in a way that the kernels do not know.
    """

    def __init__(
        self,
        teacher: Teacher,
        ds_config: dict[str, Any],
        device: torch.device,
        *,
        packed: bool,
        attention_implementation: str = "sdpa",
    ):
        settings = None
        if teacher.placement != "replicated":
            settings = _settings(ds_config, teacher.placement == "offloaded")
        model = load_causal_lm(
            teacher.path,
            dtype=teacher.dtype,
            ds_config=settings,
            revision=teacher.revision,
            attention_implementation=attention_implementation,
        )
        if packed:
            check_packable(model)
        model.requires_grad_(False).eval()
        scaling, head = head_scaling(model.config), head_of(model)
        weights = [w for w in (head.weight, head.bias) if w is not None]
        if settings is None:
            self._forward = _Rows(model).to(device).eval()
            whole = [w.detach().to(device) for w in weights]
        else:
            dtype = next(model.parameters()).dtype
            if dtype != torch.float32:
                settings["bf16" if dtype == torch.bfloat16 else "fp16"] = {"enabled": True}
            with deepspeed.zero.GatheredParameters(weights):
                whole = [w.detach().clone().to(device) for w in weights]
            self._forward = deepspeed.initialize(model=_Rows(model), config=settings)[0]
            self._forward.eval()
        self.head = Head(whole[0], whole[1] if len(whole) > 1 else None, scaling.softcap, scaling.scale)

    @torch.no_grad()
    def rows(self, micro: MicroBatch) -> DenseTeacher:
        """Return the hidden states [N, Ht] at micro.rows, with the head, in the teacher's precision on the device.

        All ranks call it together, also those with no rows; the tensors of `micro` are on the device.
        """
        return DenseTeacher(self._forward(micro), self.head)


def _settings(ds_config: dict, offloaded: bool) -> dict[str, Any]:
    """Make the settings of an engine that only runs forward.

    Always ZeRO-3: the stages below it shard no weights, and refuse to be without an optimizer. The JSON may be that of
    a student trained under one of them.
    """
    settings = {
        k: v
        for k, v in ds_config.items()
        if k not in ("bf16", "fp16", "optimizer", "scheduler", "gradient_clipping", "train_batch_size")
    }
    settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    zero = {k: v for k, v in settings.get("zero_optimization", {}).items() if k != "offload_optimizer"} | {"stage": 3}
    if offloaded:
        zero |= {"offload_param": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    return settings | {"zero_optimization": zero}
