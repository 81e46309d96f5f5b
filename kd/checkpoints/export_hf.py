"""Export: the student as a plain `save_pretrained` folder, with tokenizer, chat template and stops.

The folder appears whole or not at all: it is written beside its place, flushed to disk, and renamed.
"""

from __future__ import annotations

import json
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import PreTrainedModel

from kd.atomic_files import describe_failure
from kd.distributed.collectives import on_rank_0
from kd.errors import SpanwiseError
from kd.folders.made import replacing_folder
from kd.models.lora import list_merged


class ExportError(SpanwiseError, RuntimeError):
    """Student that could not be written to its folder; nothing trained is lost."""


def export_student(model: PreTrainedModel, tokenizer, folder: str | Path) -> None:
    """Write the (possibly partitioned) `model` to `folder`. All ranks call it together.

    Weights keep the precision of training, adapters are merged; they are gathered one at a time onto rank 0's host
    memory. The stops are those of `model.config.eos_token_id`, in config.json and in generation_config.json. An older
    export is replaced, and one that someone has added to or changed is set aside (kd/folders/made.py).

    Raises:
        ExportError: on every rank, when the folder cannot be written.
    """
    folder = Path(folder)
    weights: dict[str, torch.Tensor] = {}
    first = dist.get_rank() == 0
    for weight in list_merged(model):  # tied weights are named once; save_pretrained ties them again
        with deepspeed.zero.GatheredParameters(weight.parts, enabled=hasattr(weight.parts[0], "ds_id")):
            if first:
                weights[weight.name] = weight.merge().detach().to("cpu", copy=True).contiguous()
    if first:
        weights |= {
            name: buffer.detach().cpu()
            for name, buffer in model.named_buffers()
            if name in model.state_dict(keep_vars=True)
        }
    on_rank_0(lambda: _write(model, tokenizer, weights, folder))


def _write(model: PreTrainedModel, tokenizer, weights: dict[str, torch.Tensor], folder: Path) -> None:
    try:
        with replacing_folder(folder) as part:
            use_cache, model.config.use_cache = model.config.use_cache, True
            try:
                model.save_pretrained(part, state_dict=weights, safe_serialization=True)
            finally:
                model.config.use_cache = use_cache
            tokenizer.save_pretrained(part)
            _name_stops(part / "generation_config.json", model.config.eos_token_id)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"the student is trained, and its export failed: {describe_failure(error, folder)}; its last checkpoint "
            "has all that was trained: the same command then trains nothing more, and exports it"
        ) from error


def _name_stops(file: Path, stop_ids: int | list[int] | None) -> None:
    """Write the stops into a generation_config.json.

    transformers refuses to save a changed GenerationConfig that it has any complaint about, as it has about those of
    many published models (a temperature without do_sample), and saves an unchanged one.
    """
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["eos_token_id"] = stop_ids
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
