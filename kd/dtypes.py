"""Precision that the hardware has: bf16 where it multiplies it, fp32 where it would only be emulated.

A CPU without bf16 instructions runs bf16 matrix products tens of times slower than fp32 ones, so a run that asks for
`dtype: auto` gets fp32 there.
"""

from __future__ import annotations

import torch


def multiplies_bf16() -> bool:
    """Tell whether this machine's device (its GPU, else its CPU) has bf16 matrix products of its own."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def multiplies_fp16() -> bool:
    """Tell whether this machine's device (its GPU, else its CPU) trains in fp16."""
    return torch.cuda.is_available() or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    )


def loaded_dtype(saved: torch.dtype | None) -> torch.dtype:
    """Choose the precision that `auto` loads weights in: as saved (fp32 where nothing says so), but fp32 for bf16 that
    would be emulated.
    """
    saved = saved or torch.float32
    return torch.float32 if saved == torch.bfloat16 and not multiplies_bf16() else saved
