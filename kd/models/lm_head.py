"""Head of a transformers causal LM as the kernels take it: weight, bias, scale, softcap.

Families that change the logits after the head would train against the wrong distribution if that were overlooked, so
an attribute that is not understood is refused by name.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from kd.errors import SpanwiseError
from kernels import Head


class UnsupportedHead(SpanwiseError, ValueError):
    """Model that makes its logits in a way that Head cannot express."""


class HeadScaling(NamedTuple):
    """Steps after the matrix: z = scale * (x W^T + b), then softcap * tanh(z / softcap)."""

    scale: float = 1.0
    softcap: float | None = None


# Attribute of the model's configuration -> how its value changes the logits, as the families' modeling code has it.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_MULTIPLY_BY_SCALING = ("hyperclovax",)  # muP the other way round: logits_scaling multiplies
_SUSPECT = re.compile(r"logit|soft_?cap|lm_head|output_multiplier|head_scale")
# Attention scores, routers and output flags: nothing to do with the vocabulary's logits.
_HARMLESS = re.compile(r"attn|attention|router|output_router_logits|num_logits|logits_to_keep|assistant_lm_head")


def head_scaling(model_config: Any) -> HeadScaling:
    """Read scale and softcap from a model's configuration. Raises UnsupportedHead for an attribute it does not know."""
    text = model_config.get_text_config()
    scale, softcap = 1.0, None
    for name, value in sorted(vars(text).items()):
        if not _SUSPECT.search(name) or _HARMLESS.search(name) or value is None or isinstance(value, (bool, str)):
            continue
        if name in _SOFTCAPS:
            softcap = float(value)
        elif name in _MULTIPLIERS:
            scale *= float(value)
        elif name in _DIVISORS:
            scale *= float(value) if text.model_type in _MULTIPLY_BY_SCALING else 1.0 / float(value)
        elif value != 1:
            raise UnsupportedHead(
                f"{text.model_type}: its configuration has {name} = {value!r}, which changes the logits in a way "
                "that is not known here: use a model of another family, or teach kd/models/lm_head.py what it does"
            )
    return HeadScaling(scale, softcap)


def head_of(model: Any) -> Head:
    """Return the model's head for the kernels: weight [V, H] and bias [V], views of its parameters.

    Under ZeRO-3 call it inside engine.forward, at every forward: the weight is whole only there.

    Raises:
        UnsupportedHead: the logits are not made by one plain matrix, scale and softcap.
    """
    scaling, module = head_scaling(model.config), model.get_output_embeddings()
    name = type(model).__name__
    if type(module) is not torch.nn.Linear:
        raise UnsupportedHead(
            f"{name}: its head is a {type(module).__name__}, not a plain Linear: merge adapters or dequantise it first"
        )
    if getattr(model, "final_logits_bias", None) is not None:
        raise UnsupportedHead(
            f"{name}: it adds final_logits_bias to its logits: only decoder-only language models are supported"
        )
    return Head(module.weight, module.bias, scaling.softcap, scaling.scale)
