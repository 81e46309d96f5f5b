"""Export: the student as a plain `save_pretrained` folder, with tokenizer and chat template.

The folder appears whole or not at all: it is written beside its place, flushed to disk, and renamed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from kd.atomic_files import flush
from kd.distributed.collectives import on_rank_0


def export_student(model: PreTrainedModel, tokenizer, folder: str | Path) -> None:
    """Write the (possibly partitioned) `model` to `folder`, replacing an older export. All ranks call it together.

    Weights keep the precision of training; they are gathered one at a time onto rank 0's host memory.
    """
    folder = Path(folder)
    weights: dict[str, torch.Tensor] = {}
    first = dist.get_rank() == 0
    for name, parameter in model.named_parameters():  # tied weights are named once; save_pretrained ties them again
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if first:
                weights[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if first:
        weights |= {
            name: buffer.detach().cpu()
            for name, buffer in model.named_buffers()
            if name in model.state_dict(keep_vars=True)
        }
    on_rank_0(lambda: _write(model, tokenizer, weights, folder))


def _write(model: PreTrainedModel, tokenizer, weights: dict[str, torch.Tensor], folder: Path) -> None:
    part = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    use_cache, model.config.use_cache = model.config.use_cache, True
    try:
        model.save_pretrained(part, state_dict=weights, safe_serialization=True)
    finally:
        model.config.use_cache = use_cache
    tokenizer.save_pretrained(part)
    for path in [*part.iterdir(), part]:
        flush(path)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(part, folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
