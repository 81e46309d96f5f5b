"""Last hidden states of a micro-batch's rows, for student and teacher alike; packed records are kept apart here alone.

A packed record's positions begin at 0, and it attends to itself alone:

    flash_attention_2  the sequences in one line and each record's start in it: the kernel never leaves a record, and
                       makes no mask. (Its detection by position_ids looks at single lines only, and waits for the GPU
                       in every layer.)
    sdpa, eager        an additive mask [B, 1, T, T] in the model's precision, one for all layers. Left to itself
                       transformers makes a boolean one from position_ids, which sdpa turns into numbers, and keeps for
                       backward, in each layer.
    with sliding windows (sdpa, eager) position_ids alone: transformers makes a mask for each kind of layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.errors import SpanwiseError

_ATTENTION = {"full_attention", "sliding_attention"}  # layers that see other tokens through the mask alone


class UnpackableModel(SpanwiseError, ValueError):
    """Model in which packed records would reach one another."""


def hidden_rows(model: Any, micro: MicroBatch) -> Tensor:
    """Run a transformers causal LM without its head; return the last hidden states at micro.rows.

    Args:
        micro: on the model's device.

    Returns:
        [N, H] in the model's precision, row i at micro.rows[i].
    """
    hidden = model.base_model(**_inputs(model, micro), use_cache=False).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, micro.rows)


def check_packable(model: Any) -> None:
    """Raise UnpackableModel for a model with layers that carry a state from token to token."""
    config = model.config.get_text_config()
    others = sorted(_layer_types(config) - _ATTENTION)
    if others or not hasattr(config, "num_attention_heads"):
        raise UnpackableModel(
            f"data.packing: a {config.model_type} model has layers ({', '.join(others) or 'no attention'}) that carry "
            "what they saw into the next record: use packing: none"
        )


def _inputs(model: Any, micro: MicroBatch) -> dict[str, Any]:
    if micro.packed is None:
        return {"input_ids": micro.input_ids, "attention_mask": micro.attention_mask}
    positions, starts, longest = micro.packed
    config = model.config.get_text_config()
    if config._attn_implementation == "flash_attention_2":
        return {
            "input_ids": micro.input_ids.view(1, -1),
            "position_ids": positions.view(1, -1),
            "attention_mask": None,
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    windows = "sliding_attention" in _layer_types(config) or getattr(config, "sliding_window", None) is not None
    mask = None if windows else _record_mask(positions, model.dtype)
    return {"input_ids": micro.input_ids, "position_ids": positions, "attention_mask": mask}


def _layer_types(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


def _record_mask(position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Make the additive mask [B, 1, T, T]: 0 where a token may look, the lowest number elsewhere.

    position_ids: [B, T], from 0 in each record.
    """
    record = (position_ids == 0).cumsum(-1)
    hidden = record[:, :, None] != record[:, None, :]
    hidden |= torch.ones_like(hidden[0]).triu_(1)
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)[:, None]
