"""Checkpoints of named partitions in safetensors, without pickle: resumed by any number of ranks of any ZeRO stage.

    partitions-RRRRR-PPPP.safetensors   of rank R: for each parameter, `NAME/master` and each tensor of its optimizer's
                                        state (`NAME/exp_avg`, ...), fp32, slices of the flattened parameter; metadata
                                        says the shape, the slice's start, and numbers (the optimizer's step)
    state-RRRRR.safetensors             the run's state on rank R, DeepSpeed's counters, and the fp16 loss scale

Weights in lower precision are not written: they are the masters, rounded. Frozen weights are not written either: they
are read from where the run reads them. With as many ranks as before all bits are as they were.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd.checkpoints.plain_state import RANKS, join_state, split_state
from kd.checkpoints.zero_partitions import MASTER, Partition, flat_state, list_partitions, make_state, set_weights

_FILE_BYTES = 1 << 30  # a file's tensors are in memory twice while it is written
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
_FLOATS = ("F32", "F64", "BF16", "F16")
_Count = Annotated[int, Field(ge=0)]


class _About(BaseModel):
    """What a file says of one parameter's slice in it."""

    model_config = ConfigDict(strict=True)

    shape: list[_Count]
    start: _Count
    numel: _Count
    kinds: list[str]
    numbers: dict[str, FiniteFloat]


class _Said(BaseModel):
    """What a rank's state file says."""

    model_config = ConfigDict(strict=True)

    run: Any
    counters: dict[str, _Count]
    loss_scale: dict[str, bool | int | FiniteFloat | None]


_ABOUT = TypeAdapter(dict[str, _About])


class PartitionsFormat:
    """CheckpointFormat of this file; any number of ranks loads what another wrote."""

    any_world_size = True

    def save(self, engine: Any, folder: Path, state: dict[str, Any]) -> None:
        rank = dist.get_rank()
        for part, (tensors, about) in enumerate(_parts(engine)):
            save_file(tensors, folder / f"partitions-{rank:05d}-{part:04d}.safetensors", {"partitions": about})
        tensors: dict[str, Tensor] = {}
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        said = {
            "run": split_state(state, tensors),
            "counters": {name: int(getattr(engine, name)) for name in _COUNTERS},
            "loss_scale": {key: value for key, value in vars(scaler).items() if _is_number(value)} if scaler else {},
        }
        tensors[""] = torch.zeros(0)  # safetensors writes no file without one
        save_file(tensors, folder / f"state-{rank:05d}.safetensors", {"state": json.dumps(said)})

    def load(self, engine: Any, folder: Path) -> dict[str, Any]:
        with _Slices(folder) as slices:
            partitions = list(list_partitions(engine))
            self._load_optimizer(engine, partitions, slices)
            set_weights(engine, partitions, lambda name: slices.read(name, MASTER))
        files = sorted(folder.glob("state-*.safetensors"))
        if not files:
            raise ValueError("it has no state-NNNNN.safetensors")
        said = _read_state(files[dist.get_rank() % len(files)])
        for name in _COUNTERS:
            setattr(engine, name, said.counters[name])
        for name, value in said.loss_scale.items():
            setattr(engine.optimizer.loss_scaler, name, value)
        if len(files) == dist.get_world_size():
            return said.run
        return said.run | {RANKS: [_read_state(file).run for file in files]}

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        with _Slices(folder) as slices:
            return {name: slices.read(name, MASTER).view(slices.shape(name)) for name in slices.names()}

    def _load_optimizer(self, engine: Any, partitions: list[Partition], slices: _Slices) -> None:
        of_flat: dict[int, list[Partition]] = defaultdict(list)
        for partition in partitions:
            of_flat[id(partition.flat)].append(partition)
        for group in of_flat.values():
            flat = group[0].flat
            numbers = slices.numbers(group[0].name)
            kinds = [kind for kind in slices.kinds(group[0].name) if kind != MASTER]
            if kinds or numbers:
                make_state(engine, flat, dict.fromkeys(kinds, torch.float32), numbers)
            tensors = {MASTER: flat} | flat_state(engine, flat)[0]
            for partition in group:
                if slices.shape(partition.name) != partition.shape:
                    raise ValueError(
                        f"{partition.name} is {list(partition.shape)} here and {list(slices.shape(partition.name))} in "
                        "the checkpoint: it is of another model"
                    )
                for kind, tensor in tensors.items():
                    found = slices.read(partition.name, kind, partition.start, partition.numel)
                    partition.view(tensor).copy_(found)


class _Slice(NamedTuple):
    file: str
    start: int
    numel: int
    about: _About


class _Slices:
    """Slices of every parameter in a checkpoint's files, read by place; a context that holds the files open."""

    def __init__(self, folder: Path):
        self._open, self._files = ExitStack(), {}
        self._slices: dict[str, list[_Slice]] = defaultdict(list)
        for file in sorted(folder.glob("partitions-*.safetensors")):
            with _reading(file):
                self._files[file.name] = self._open.enter_context(safe_open(file, "pt"))
                for name, about in _ABOUT.validate_json(self._files[file.name].metadata()["partitions"]).items():
                    _check_slice(self._files[file.name], name, about)
                    self._slices[name].append(_Slice(file.name, about.start, about.numel, about))
        for found in self._slices.values():
            found.sort(key=lambda one: one.start)

    def __enter__(self) -> _Slices:
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def names(self) -> list[str]:
        return list(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._first(name).about.shape)

    def numbers(self, name: str) -> dict[str, float]:
        return self._first(name).about.numbers

    def kinds(self, name: str) -> list[str]:
        return self._first(name).about.kinds

    def read(self, name: str, kind: str, start: int = 0, numel: int | None = None) -> Tensor:
        """Read values [start, start + numel) of a flattened parameter, to its end by default; raises ValueError."""
        if numel is None:
            numel = torch.Size(self.shape(name)).numel() - start
        at, end, parts = start, start + numel, []
        for one in self._slices[name]:
            stop = min(end, one.start + one.numel)
            if one.start <= at < stop:
                values = self._files[one.file].get_slice(f"{name}/{kind}")
                parts.append(values[at - one.start : stop - one.start])
                if not all(map(math.isfinite, torch.aminmax(parts[-1]))):  # a step with such a gradient is never taken
                    raise ValueError(f"{one.file}: {name}/{kind} holds numbers that are not finite")
                at = stop
        if at < end:
            raise ValueError(f"values {at} to {end} of {name}/{kind} are in none of its files")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _first(self, name: str) -> _Slice:
        if name not in self._slices:
            raise ValueError(f"{name} is in none of its files: it is of another model")
        return self._slices[name][0]


def _parts(engine: Any) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Yield this rank's partitions by the file: tensors by name, and what is said of them as JSON."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    num_bytes = 0
    for partition in list_partitions(engine):
        state, numbers = flat_state(engine, partition.flat)
        found = {kind: partition.view(tensor) for kind, tensor in ({MASTER: partition.flat} | state).items()}
        size = sum(tensor.nbytes for tensor in found.values())
        if tensors and num_bytes + size > _FILE_BYTES:
            yield tensors, json.dumps(about)
            tensors, about, num_bytes = {}, {}, 0
        num_bytes += size
        tensors |= {f"{partition.name}/{kind}": tensor.cpu().clone() for kind, tensor in found.items()}
        about[partition.name] = {
            "shape": partition.shape,
            "start": partition.start,
            "numel": partition.numel,
            "kinds": list(found),
            "numbers": numbers,
        }
    if tensors:
        yield tensors, json.dumps(about)


def _read_state(file: Path) -> _Said:
    with _reading(file), safe_open(file, "pt") as opened:
        said = _Said.model_validate_json(opened.metadata()["state"])
        if absent := {*_COUNTERS} - said.counters.keys():
            raise ValueError(f"counters.{min(absent)} is missing")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
        said.run = join_state(said.run, tensors)
        if not isinstance(said.run, dict):
            raise ValueError("its state is no mapping")
        if (scale := said.loss_scale.get("cur_scale", 1)) is None or scale <= 0:
            raise ValueError(f"loss_scale.cur_scale is {scale}, and not above 0")
    return said


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Name the file in what is wrong with it, whatever a file that this program did not write holds."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{file.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (SafetensorError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file.name} is no file that this program wrote ({type(error).__name__}: {error})") from error


def _check_slice(opened: Any, name: str, about: _About) -> None:
    """Check that a file holds what it says of a parameter, by its header alone; raises ValueError, SafetensorError."""
    if MASTER not in about.kinds:
        raise ValueError(f"{name} has no {MASTER}")
    for kind in about.kinds:
        found = opened.get_slice(f"{name}/{kind}")
        if found.get_shape() != [about.numel] or found.get_dtype() not in _FLOATS:
            raise ValueError(f"{name}/{kind} is {found.get_dtype()} {found.get_shape()}, not {about.numel} numbers")


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float))


FORMAT = PartitionsFormat()
