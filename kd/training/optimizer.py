"""Optimizer: AdamW with weight decay on matrices alone, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from kd.config.schema import Optimizer

FINAL_LR_FRACTION, DECAY_FRACTION = 0.1, 0.2


def learning_rate(config: Optimizer, step: int, num_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0): linear warm-up, then the schedule, clamped past its
    end.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    final = FINAL_LR_FRACTION if config.final_lr_fraction is None else config.final_lr_fraction
    start = config.warmup_steps
    if config.schedule == "wsd":
        share = DECAY_FRACTION if config.decay_fraction is None else config.decay_fraction
        start = max(start, num_steps - round(share * num_steps))
    done = min(max((step - start) / max(num_steps - 1 - start, 1), 0.0), 1.0)
    left = 0.5 + 0.5 * math.cos(math.pi * done) if config.schedule == "cosine" else 1 - done
    return config.lr * (final + (1 - final) * left)


def build_optimizer(model: nn.Module, config: Optimizer, ds_config: dict) -> torch.optim.Optimizer:
    """Make AdamW over the parameters that are trained: DeepSpeed's CPU one where the optimizer is offloaded, which ZeRO
    demands.
    """
    # ZeRO-3 partitions a parameter to one dimension: its own shape is in ds_shape.
    shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in model.named_parameters()}
    groups = [
        {
            "params": [
                p for name, p in model.named_parameters() if p.requires_grad and (len(shapes[name]) >= 2) == decayed
            ],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    options = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if "offload_optimizer" in ds_config.get("zero_optimization", {}):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    return torch.optim.AdamW(groups, fused=True, **options)
