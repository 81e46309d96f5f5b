"""Partitions of a DeepSpeed engine's parameters on this rank: fp32 masters and optimizer state, as views by name.

ZeRO-3 gives each rank an equal slice of every parameter, the last one padded. Stages 1 and 2 cut one flat tensor of all
parameters, so that a rank has a part of some and none of others. Both are slices of the flattened parameter, which any
other number of ranks, of any stage, can be given again. Read and written in place, for DeepSpeed 0.19.8: its own
functions for this leave weights in low precision as they were, and a fresh AdamW has no state to set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MASTER = "master"


@dataclass(frozen=True)
class Partition:
    """Slice [start, start + numel) of one flattened parameter, in this rank's flat fp32 tensor."""

    name: str
    parameter: torch.nn.Parameter
    shape: tuple[int, ...]  # of the whole parameter
    start: int
    numel: int
    flat: Tensor  # fp32 masters of many parameters; the optimizer's key to their state
    offset: int  # of the slice in `flat`

    def view(self, of: Tensor) -> Tensor:
        """Return the slice of a tensor that is laid out as `flat`."""
        return of.detach().narrow(0, self.offset, self.numel)


def list_partitions(engine: Any) -> Iterator[Partition]:
    """Yield this rank's slices of the engine's trained parameters, tied ones once; none that is empty.

    Raises:
        ValueError: the optimizer's state lies on a disk (NVMe), or no ZeRO optimizer holds it.
    """
    optimizer = engine.optimizer
    if getattr(optimizer, "swap_optimizer", False):
        raise ValueError(
            "an optimizer offloaded to NVMe is not in memory to be divided: set training.checkpoint_format to deepspeed"
        )
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        found = _of_stage_3(optimizer, parameter) if hasattr(parameter, "ds_id") else _of_flat(optimizer, parameter)
        if found is not None and found[1]:
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            yield Partition(name, parameter, shape, *found)


def _of_stage_3(optimizer: Any, parameter: Any) -> tuple[int, int, Tensor, int]:
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    size = parameter.ds_tensor.numel()
    start = dist.get_rank(parameter.ds_process_group) * size
    numel = max(0, min(size, parameter.ds_numel - start))
    return start, numel, optimizer.fp32_partitioned_groups_flat[group], offset


def _of_flat(optimizer: Any, parameter: Any) -> tuple[int, int, Tensor, int] | None:
    if not hasattr(parameter, "_hp_mapping"):
        raise ValueError(
            "no ZeRO optimizer holds these weights: set training.deepspeed to a JSON of ZeRO stage 1, 2 or 3"
        )
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it is on other ranks
        return None
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
    lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
    return lp.start, lp.numel, flats[mapping.param_group_index], hp.start


def flat_state(engine: Any, flat: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the optimizer's state of a flat tensor: tensors laid out like it, and numbers (its step).

    Raises:
        ValueError: there is other state, which cannot be divided (that of 8-bit optimizers).
    """
    tensors, numbers = {}, {}
    for key, value in engine.optimizer.optimizer.state.get(flat, {}).items():
        if isinstance(value, Tensor) and value.shape == flat.shape and value.is_floating_point():
            tensors[key] = value
        elif isinstance(value, (int, float)) or isinstance(value, Tensor) and value.numel() == 1:
            numbers[key] = float(value)
        else:
            raise ValueError(
                f"the optimizer's {key} is not laid out as its weights, and cannot be divided among other ranks: set "
                "training.checkpoint_format to deepspeed"
            )
    return tensors, numbers


def make_state(engine: Any, flat: Tensor, dtypes: dict[str, torch.dtype], numbers: dict[str, float]) -> None:
    """Make an optimizer's state of a flat tensor: zeros, and numbers of its own, as its first step would."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    optimizer = engine.optimizer.optimizer
    plain = isinstance(optimizer, DeepSpeedCPUAdam)  # its step is an int
    state: dict[str, Any] = {
        key: int(value) if plain else torch.tensor(value, dtype=torch.float32, device=flat.device)
        for key, value in numbers.items()
    }
    state |= {key: torch.zeros_like(flat, dtype=dtype, requires_grad=False) for key, dtype in dtypes.items()}
    optimizer.state[flat] = state


def set_weights(engine: Any, partitions: list[Partition], read_whole: Callable[[str], Tensor]) -> None:
    """Set the weights of forward and backward to the masters, in their own precision; all ranks together.

    Args:
        read_whole: returns all masters of a parameter, [numel]; asked where each rank holds whole weights.
    """
    if any(hasattr(parameter, "ds_id") for parameter in engine.module.parameters()):
        optimizer: Any = engine.optimizer
        optimizer.checkpoint_event_prologue()  # weights that are kept whole on each rank are divided too
        for partition in partitions:
            weights: Tensor = partition.parameter.ds_tensor.data  # type: ignore[attr-defined]
            weights.narrow(0, 0, partition.numel).copy_(partition.view(partition.flat))
        optimizer.checkpoint_event_epilogue()
        return
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(read_whole(name).view(parameter.shape))
