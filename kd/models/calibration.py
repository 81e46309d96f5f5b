"""Importance of a teacher's layers and MLP neurons, measured on a sample of the run's data before a cut.

Block influence of a layer: 1 - cos(its input, its output), a mean over tokens (Men et al., ShortGPT, arXiv 2403.03853,
equation 1). A neuron's activity: the L2 norm over samples of its mean absolute activation over tokens, at the input of
the MLP's last matrix (Muralidharan et al., Minitron, arXiv 2407.14679, section 2.2).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.config.schema import Data
from kd.models.layer_pruning import CutError
from kd.models.load import load_whole_model
from kd.records.checks import DataError
from kd.rendering.encode import encode_at
from kd.sources.stages import stage_source

_LAST = ("down_proj", "fc2")


class Importance(NamedTuple):
    """Measures of one teacher's layers, from its first to its last."""

    influence: Tensor  # [L] fp32, from 0 (the layer changes nothing) to 2
    neurons: Tensor  # [L, I] fp32

    def is_whole(self) -> bool:
        """Tell whether these are measures, which a file that somebody changed may not hold."""
        shaped = self.influence.dim() == 1 and self.neurons.dim() == 2 and len(self.influence) == len(self.neurons)
        return shaped and all(value.is_floating_point() and bool(value.isfinite().all()) for value in self)


def choose_layers(influence: Tensor, num_kept: int) -> tuple[int, ...]:
    """Choose the `num_kept` layers of most influence, in their order."""
    return tuple(sorted(influence.topk(num_kept).indices.tolist()))


def sample_tokens(data: Data, tokenizer: Any, num_records: int, seed: int) -> list[list[int]]:
    """Draw records of the first stage, as their tokens, cut to its max_length; those that cannot be rendered are left
    out.

    Raises:
        DataError: none can be rendered, or the files cannot be read.
    """
    source, length = stage_source(data, 0), data.stages[0].max_length
    chosen = random.Random(f"{seed}:calibration").sample(range(len(source)), min(num_records, len(source)))
    found, problem = [], None
    for index in sorted(chosen):
        try:
            found += [list(one.input_ids)[:length] for one in encode_at(source, index, tokenizer, data.turns)]
        except DataError as error:
            problem = error
    if not found:
        raise problem or DataError("no record to measure the teacher's layers on")
    return found


def measure_importance(path: str, revision: str | None, samples: Sequence[Sequence[int]]) -> Importance:
    """Run a saved teacher, whole, on the GPU where it has room and else on the CPU, over samples of tokens.

    Raises:
        StudentError: the teacher cannot be loaded.
        CutError: its layers are not found by their usual names, or what they give is not finite.
    """
    model = load_whole_model(path, revision).eval()
    size = sum(parameter.nbytes for parameter in model.parameters())
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.5 * size:
        model = model.cuda()
    found = importance_of(model, samples)
    if not found.is_whole():
        raise CutError(
            f"{path}: its layers give numbers that are not finite: look at its weights, or give student.layers"
        )
    return found


@torch.no_grad()
def importance_of(model: Any, samples: Iterable[Sequence[int]]) -> Importance:
    """Measure a model in memory. Raises CutError: its layers are not found by their usual names."""
    layers, last = _find(model)
    dots: list[list[Tensor]] = [[] for _ in layers]
    active: list[list[Tensor]] = [[] for _ in layers]

    def see_layer(number: int, args: tuple, kwargs: dict, output: Any) -> None:
        before = (args[0] if args else kwargs["hidden_states"]).float()
        after = (output[0] if isinstance(output, tuple) else output).float()
        dots[number].append(torch.nn.functional.cosine_similarity(before, after, dim=-1).mean())

    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, output, number=number: see_layer(number, args, kwargs, output), with_kwargs=True
        )
        for number, layer in enumerate(layers)
    ]
    hooks += [
        module.register_forward_pre_hook(
            lambda _, args, number=number: active[number].append(args[0].abs().float().flatten(0, -2).mean(0))
        )
        for number, module in enumerate(last)
    ]
    try:
        for sample in samples:
            model.base_model(input_ids=torch.tensor([list(sample)], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Importance(
        torch.stack([1 - torch.stack(values).mean() for values in dots]).cpu(),
        torch.stack([torch.stack(values).norm(dim=0) for values in active]).cpu(),
    )


def _find(model: Any) -> tuple[list[Any], list[Any]]:
    layers: list[Any] = list(getattr(model.base_model, "layers", []))
    last = [module for layer in layers for name, module in layer.named_modules() if name.rpartition(".")[2] in _LAST]
    if not layers or len(last) != len(layers):
        raise CutError(
            f"the layers of a {model.config.model_type} teacher, or their MLPs' {' or '.join(_LAST)}, are not found: "
            "give student.layers, and keep its intermediate_size"
        )
    return layers, last
