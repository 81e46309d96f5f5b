"""Language-model head for the functions that fuse it: logits, checks, rows of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.contract import Head

# A chunk costs 12 V H bytes of weight traffic whatever its rows: a GPU wants thousands of rows, a CPU wants its memory.
_GPU_CHUNK_BYTES, _GPU_ROWS = 1 << 30, (2048, 4096)
_CPU_CHUNK_BYTES = 64 << 20


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Compute the logits [n, V] of a chunk in hidden's dtype; the soft cap is computed in fp32, as its slope is."""
    logits = torch.nn.functional.linear(hidden.detach(), head.weight.detach(), head.bias)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        capped = logits.to(wide(logits.dtype)).div_(head.softcap).tanh_().mul_(head.softcap)
        logits = capped.to(logits.dtype)
    return logits


def default_chunk_rows(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return the rows of a chunk, from a memory budget for one operand's logits."""
    if device.type == "cpu":
        return max(16, _CPU_CHUNK_BYTES // (4 * width))
    low, high = _GPU_ROWS
    return min(high, max(low, _GPU_CHUNK_BYTES // (width * dtype.itemsize)))


def resolve_chunk_rows(chunk_rows: int | None, width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return chunk_rows as asked for, or from memory. Raises ValueError below 1."""
    if chunk_rows is None:
        return default_chunk_rows(width, dtype, device)
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1, or None to let memory decide")
    return chunk_rows


_ROUND_ROWS = 256  # to which a product's tiles fit: a chunk of 2731 rows would leave the last of them mostly empty
_ROUNDED_FROM = 1024


def chunks(num_rows: int, chunk_rows: int) -> list[slice]:
    """Cut rows into as few chunks of at most chunk_rows as there can be: even ones, or large ones of whole 256 rows.

    A last chunk of a row or two would cost as much as any, and BLAS sums so few rows less exactly. No rows are a chunk.
    """
    count = max(1, -(-num_rows // chunk_rows))
    edges = [num_rows * index // count for index in range(count + 1)]
    size = -(-num_rows // count // _ROUND_ROWS) * _ROUND_ROWS
    if size > chunk_rows:
        size -= _ROUND_ROWS
    if size >= _ROUNDED_FROM and -(-num_rows // size) == count:
        edges = [min(size * index, num_rows) for index in range(count + 1)]
    return [slice(first, last) for first, last in zip(edges, edges[1:])]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_head(who: str, hidden: Tensor, head: Head, num_rows: int, device: torch.device) -> None:
    """Check that hidden [N, H] and head fit each other, N and the device. Raises ValueError."""
    weight, bias = head.weight, head.bias
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{who}: hidden {list(hidden.shape)} and head.weight {list(weight.shape)} must be [N, H] and [V, H]; under "
            "ZeRO-3 a weight of shape [0] means that it was read outside the engine's forward"
        )
    if bias is not None and bias.shape != (len(weight),):
        raise ValueError(
            f"{who}: head.bias has shape {list(bias.shape)}, one value a column is needed: [{len(weight)}]"
        )
    if any(t is not None and t.dtype != hidden.dtype for t in (weight, bias)) or not hidden.is_floating_point():
        with_bias = "" if bias is None else f" and head.bias {bias.dtype}"
        raise ValueError(
            f"{who}: hidden is {hidden.dtype}, head.weight {weight.dtype}{with_bias}: cast them to one "
            "floating-point dtype"
        )
    if len(hidden) != num_rows or any(t is not None and t.device != device for t in (hidden, weight, bias)):
        raise ValueError(f"{who}: {len(hidden)} rows on {hidden.device}; {num_rows} rows, all on {device}, are needed")
    if head.softcap is not None and not head.softcap > 0:
        raise ValueError(f"{who}: softcap is {head.softcap}; it must be positive, or None for a head without one")
