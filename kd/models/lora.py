"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685) on the student's matrices, through peft.

They are put into the model in place, so that its class, its head and its hidden states stay what they were. The rest is
frozen: gradients, masters and moments exist for the adapters alone. What leaves training, as an export or a copy for
generation, is the plain model again, its matrices W + (alpha / rank) B A, merged one at a time in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.config.schema import Lora
from kd.models.model_files import StudentError, first_line

_ADAPTER = "default"
_BASE = ".base_layer."


class MergedWeight(NamedTuple):
    """Weight of the plain model: the parameters that it is made of, which ZeRO-3 may have divided."""

    name: str
    parts: list[nn.Parameter]  # the weight, and of an adapted one A [rank, in] and B [out, rank]
    scale: float = 0.0

    @torch.no_grad()
    def merge(self) -> Tensor:
        """Return the weight where its parts are whole: the parameter itself, or a new tensor of its dtype."""
        if len(self.parts) == 1:
            return self.parts[0]
        weight, a, b = self.parts
        return (weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype)


def add_adapters(model: nn.Module, lora: Lora) -> None:
    """Put adapters into a model in place, and freeze all else.

    They are drawn from torch's generator; B begins as zeros, so that the model is at first what it was.

    Raises:
        StudentError: peft is not installed, or cannot adapt these matrices; or a target names none.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise StudentError(
            "student.lora: peft is not installed: pip install 'spanwise[lora]', or remove the key"
        ) from error
    targets = _find_targets(model, lora)
    given: dict[str, Any] = {"lora_alpha": lora.alpha}  # typed as int, and used as any number
    settings = LoraConfig(r=lora.rank, lora_dropout=lora.dropout, target_modules=targets, **given)
    try:
        inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise StudentError(f"student.lora: {first_line(error)}: name modules that the student has") from error
    dtype = next(model.parameters()).dtype  # peft makes fp32 adapters beside weights of lower precision
    for name, parameter in model.named_parameters():
        adapts = ".lora_A." in name or ".lora_B." in name
        parameter.requires_grad_(adapts)
        if adapts:
            parameter.data = parameter.data.to(dtype)


def _find_targets(model: Any, lora: Lora) -> list[str]:
    """Find the linear layers that are adapted, by their whole names; never the head, which the loss multiplies by
    itself, nor a module that is no plain matrix (an embedding, a layer of experts), which could not be merged.
    """
    head = model.get_output_embeddings()
    linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not head]
    if not linear:
        raise StudentError(
            f"student.lora: {type(model).__name__} has no linear layer that can be adapted: remove the key"
        )
    found: set[str] = set()
    for target in lora.target_modules or linear:
        named = {name for name in linear if f".{name}".endswith(f".{target}")}
        if not named:
            choices = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise StudentError(
                f"student.lora.target_modules: {target!r} names none of the linear layers that can be adapted: choose "
                f"of {choices}, or ends of their whole names"
            )
        found |= named
    return sorted(found)


def list_merged(model: nn.Module) -> Iterator[MergedWeight]:
    """Yield each weight of the plain model, tied ones once, under its name there; without adapters, each parameter."""
    modules: dict[str, Any] = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        owner, base, rest = name.rpartition(_BASE)
        if base and rest == "weight" and _ADAPTER in modules[owner].lora_A:
            layer = modules[owner]
            parts = [parameter, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]
            yield MergedWeight(f"{owner}.{rest}", parts, layer.scaling[_ADAPTER])
        else:
            yield MergedWeight(name.replace(_BASE, "."), [parameter])
