"""Custom operators for torch.compile: flat arguments in, flat tensors out, for each public loss.

torch.compile traces into Python, and the losses are not traceable Python: kernels are chosen and launched, settings are
checked, gradients are written into memory. So under compilation each public function is one functional operator of
torch.library, with shapes for the compiler and its own autograd formula. Eager calls use no operator: operators may not
write their inputs, so gradients could not be scaled in place, nor written over the logits.

Every operator takes its own leading arguments and then ARGUMENTS, and returns ROWS and then the gradients
of its first arguments, of which one that is not wanted has no elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.contract import (
    DistillOutput,
    EntropyWeighting,
    RowWeights,
    Settings,
    SparseTeacher,
    columns_of,
    output_of_columns,
)

_SCALARS = (
    "temperature",
    "beta",
    "grad_scale",
    "h_min",
    "h_max",
    "kd_sure",
    "kd_unsure",
    "truth_sure",
    "truth_unsure",
    "hard_sure",
    "hard_unsure",
)
_SLOTS, _WEIGHTS = SparseTeacher._fields[:-1], RowWeights._fields
ROWS = ", ".join(["Tensor"] * 11)
# One by one: lists of tensors make the autograd of an operator depend on what is in them.
ARGUMENTS = ", ".join(
    [
        *(f"Tensor? slots_{name}" for name in _SLOTS),
        *(f"Tensor? weights_{name}" for name in _WEIGHTS),
        *(f"Tensor? scalar_{name}" for name in _SCALARS),
        "Tensor labels, float[] numbers, str kind, str divergence, bool has_beta, bool has_entropy, SymInt? "
        "vocab_size, str impl",
    ]
)
NUM_ARGUMENTS = ARGUMENTS.count(",") + 1


def pack(sparse: SparseTeacher | None, labels: Tensor, weights: RowWeights, settings: Settings) -> tuple:
    """Make ARGUMENTS of a call's own. A scalar travels as a number or as a tensor, the other place being 0 or None."""
    if not isinstance(weights, RowWeights):
        raise ValueError("weights must be a RowWeights(kd, truth, span, hard); a term that is off may be None")
    beta, entropy = settings.beta, settings.entropy
    ends = (0.0,) * 8 if entropy is None else (entropy.h_min, entropy.h_max, *entropy.kd, *entropy.truth, *entropy.hard)
    scalars = [settings.temperature, 0.0 if beta is None else beta, settings.grad_scale, *ends]
    return (
        *((None,) * len(_SLOTS) if sparse is None else sparse[:-1]),
        *weights,
        *(s if isinstance(s, Tensor) else None for s in scalars),
        labels,
        [0.0 if isinstance(s, Tensor) else float(s) for s in scalars],
        "" if sparse is None else sparse.kind,
        settings.divergence,
        beta is not None,
        entropy is not None,
        settings.vocab_size,
        settings.impl,
    )


def _read(packed: Sequence) -> tuple[Sequence, Sequence, list, tuple]:
    """Read slots, weights, scalars (each the number or the tensor it was) and what follows them."""
    slots, rest = packed[: len(_SLOTS)], packed[len(_SLOTS) :]
    weights, rest = rest[: len(_WEIGHTS)], rest[len(_WEIGHTS) :]
    tensors, (labels, numbers, *others) = rest[: len(_SCALARS)], rest[len(_SCALARS) :]
    return slots, weights, [n if t is None else t for n, t in zip(numbers, tensors)], (labels, *others)


def unpack(packed: tuple) -> tuple[SparseTeacher | None, Tensor, RowWeights, Settings]:
    """Make a call's own arguments of ARGUMENTS."""
    slots, weights, scalars, rest = _read(packed)
    labels, kind, divergence, has_beta, has_entropy, vocab_size, impl = rest
    temperature, beta, grad_scale, h_min, h_max, *ends = scalars
    entropy = EntropyWeighting(h_min, h_max, (ends[0], ends[1]), (ends[2], ends[3]), (ends[4], ends[5]))
    settings = Settings(
        temperature=temperature,
        divergence=divergence,
        beta=beta if has_beta else None,
        entropy=entropy if has_entropy else None,
        vocab_size=vocab_size,
        grad_scale=grad_scale,
        impl=impl,
    )
    sparse = SparseTeacher._make((*slots, kind)) if kind else None
    return sparse, labels, RowWeights._make(weights), settings


def flatten(output: DistillOutput) -> tuple[Tensor, ...]:
    """Copy an output, its loss summed already, into ROWS: an operator's results may not share memory."""
    return tuple(tensor.clone() for tensor in columns_of(output))


def restore(rows: Sequence[Tensor]) -> DistillOutput:
    """Make an output of an operator's ROWS; only the loss belongs to the graph."""
    loss, *others = rows
    return output_of_columns([loss, *(tensor.detach() for tensor in others)])


def fake_rows(student: Tensor) -> tuple[Tensor, ...]:
    """Make ROWS by shape and type, for a student (logits or hidden states) [N, ...]."""
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32

    def row(dtype=dtype):
        return student.new_empty(len(student), dtype=dtype)

    return (
        student.new_empty((), dtype=dtype),
        *(row() for _ in range(4)),
        row(torch.bool),
        row(torch.bool),
        *(row() for _ in range(4)),
    )


def keep_for_backward(ctx, grads: Sequence[Tensor], packed: Sequence) -> None:
    """Save the gradients made in forward, and the scale that they are held at."""
    scale = _read(packed)[2][_SCALARS.index("grad_scale")]
    ctx.num_grads = len(grads)
    ctx.grad_scale = None if isinstance(scale, Tensor) else scale
    ctx.save_for_backward(*grads, *([scale] if isinstance(scale, Tensor) else []))


def scaled_grads(ctx, upstream: Tensor) -> list[Tensor | None]:
    """Return grads * upstream / grad_scale; None for one that nobody wanted. Those in memory stay as they are."""
    grads, scale = ctx.saved_tensors[: ctx.num_grads], ctx.saved_tensors[ctx.num_grads :]
    factor = upstream / (scale[0] if scale else ctx.grad_scale)
    return [grad * factor if wanted else None for grad, wanted in zip(grads, ctx.needs_input_grad)]
