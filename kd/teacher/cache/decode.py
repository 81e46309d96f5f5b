"""Decoder of a cache: records of memory-mapped shards as a SparseTeacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.teacher.cache.codec import unpack_entropy, unpack_ids, unpack_log_probs, unpack_samples
from kd.teacher.cache.shard import Shard
from kd.teacher.cache.spec import CacheSpec
from kernels import SparseTeacher

Part = tuple[Shard, int]  # a record: its shard, and its place in it


def decode(spec: CacheSpec, parts: Sequence[Part], t: int) -> SparseTeacher:
    """Decode the rows of the records at spec.temperatures[t], one record after another, to CPU tensors.

    Raises:
        CacheError: bytes that no writer makes.
    """
    entropy = _entropies(spec, parts, None)
    entropy_t = _entropies(spec, parts, spec.tempered.index(t)) if t in spec.tempered else entropy
    if spec.kind == "topk":
        ids = unpack_ids(spec, _row_parts(parts, "ids"))
        log_tail = torch.from_numpy(_rows(parts, "log_tail", t))
        probs = _top_k_probs(spec, _rows(parts, "log_probs"), log_tail, spec.temperatures[t])
    else:
        num_rows = np.array([shard.num_rows[i] for shard, i in parts])
        spans = [(shard, *shard.entry_span(t, i)) for shard, i in parts]
        size = spec.entry_bytes
        data = [shard.tensors[f"data_{t}"][a * size : b * size] for shard, a, b in spans]
        ids, counts = unpack_samples(spec, data, num_rows, np.array([b - a for _, a, b in spans]))
        probs = torch.from_numpy(counts).float().div_(spec.draws)
        log_tail = torch.full((len(ids),), -float("inf"))
    ids = torch.from_numpy(ids)
    return SparseTeacher(ids, probs, log_tail, entropy, entropy_t, ids[:, 0].clone(), spec.kind)


def no_rows(spec: CacheSpec) -> SparseTeacher:
    """Return the SparseTeacher that no records decode to."""
    nothing = torch.zeros(0)
    width = spec.kept if spec.kind == "topk" else 1
    ids = torch.zeros(0, width, dtype=torch.int32)
    return SparseTeacher(
        ids, torch.zeros(0, width), nothing, nothing.clone(), nothing.clone(), ids[:, 0].clone(), spec.kind
    )


def _top_k_probs(spec: CacheSpec, stored: NDArray, log_tail: Tensor, temperature: float) -> Tensor:
    """Return probabilities [n, K] at the temperature: (1 - tail) p_k^(1/T) / sum over k of p_k^(1/T), p as stored."""
    if spec.precision == "fp32" and temperature == 1.0:
        return torch.from_numpy(stored).exp()  # they sum to 1 - tail as they are
    log_probs = torch.from_numpy(stored if spec.precision == "fp32" else unpack_log_probs(stored))
    return torch.softmax(log_probs / temperature, -1).mul_(-torch.expm1(log_tail)[:, None])


def _entropies(spec: CacheSpec, parts: Sequence[Part], tempered: int | None) -> Tensor:
    stored = _rows(parts, "entropy") if tempered is None else _rows(parts, "entropy_t", tempered)
    return torch.from_numpy(stored if spec.precision == "fp32" else unpack_entropy(stored))


def _rows(parts: Sequence[Part], name: str, t: int | None = None) -> NDArray:
    return np.concatenate(_row_parts(parts, name, t))


def _row_parts(parts: Sequence[Part], name: str, t: int | None = None) -> list[NDArray]:
    """List each record's rows of a tensor that has rows first, or behind a temperature's place, as views."""
    whole = [shard.tensors[name] if t is None else shard.tensors[name][t] for shard, _ in parts]
    return [tensor[shard.first_row[i] : shard.first_row[i + 1]] for tensor, (shard, i) in zip(whole, parts)]
