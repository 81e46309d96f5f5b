"""distill_loss: logits in, loss and per-row parts out. Also the choice of implementation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import reference
from kernels.attach import attach
from kernels.contract import (
    DistillOutput,
    EntropyWeighting,
    RowWeights,
    Scalar,
    check_rows,
    check_teacher_terms,
    resolve_options,
)

_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    weights: RowWeights,
    *,
    temperature: Scalar = 1.0,
    divergence: str = "forward_kl",
    beta: Scalar | None = None,
    entropy: EntropyWeighting | None = None,
    vocab_size: int | None = None,
    grad_scale: Scalar = 1.0,
    inplace: bool = False,
    impl: str = "auto",
) -> DistillOutput:
    """Weighted divergence to the teacher plus weighted cross-entropies, summed over rows (see kernels/reference.py).

    Args:
        student_logits: [N, Vs] bf16, fp16, fp32 (fp64 with the reference); rows may be strided, columns may not.
        teacher_logits: [N, Vt], a constant; or None, where only truth and span terms are on.
        labels: [N] token ids. -100 is allowed in rows whose truth and span weights are 0. Any other id outside
            [0, vocab_size) makes the row's loss and gradient NaN, without a wait for the device.
        weights: what each term of each row weighs, normaliser included.
        temperature: T > 0 of the divergence; cross-entropies are at T = 1. The loss and its gradient carry T^2.
        divergence: "forward_kl", "reverse_kl", or "jsd" with beta (0 is forward_kl, 1 is reverse_kl).
        entropy: factors on kd, truth, hard from the teacher's entropy.
        vocab_size: columns that count, needed where the widths differ; the gradient past it is 0.
        grad_scale: power of two by which the gradient is held larger between forward and backward (the fp16 loss
            scale). The result does not depend on it, underflow does.
        inplace: the gradient is written over student_logits, whose values are then gone. Eager mode only.
        impl: "auto", "triton" or "reference".

    temperature, beta, entropy ends and grad_scale are numbers or 0-d tensors; one on the logits' device is never read
    by the host, so its range is not checked, and such a beta must lie strictly between 0 and 1.

    Raises:
        ValueError: shapes, dtypes, settings that contradict each other, an impl that cannot run here.
        RuntimeError: on a second backward through the same call.
    """
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if logits is not None and (logits.dim() != 2 or not logits.is_floating_point()):
            raise ValueError(f"{name} must be floating point [N, V], got {logits.dtype} {list(logits.shape)}")
    num_rows, device = len(student_logits), student_logits.device
    if teacher_logits is not None and (len(teacher_logits) != num_rows or teacher_logits.device != device):
        raise ValueError(
            f"teacher_logits has {len(teacher_logits)} rows on {teacher_logits.device}, student_logits {num_rows} "
            f"on {device}: select the same supervised rows from both, on one device"
        )
    weights = check_rows(num_rows, device, labels, weights)
    check_teacher_terms(teacher_logits is not None, weights, entropy)
    options = resolve_options(
        device,
        (student_logits.shape[1], None if teacher_logits is None else teacher_logits.shape[1]),
        temperature=temperature,
        divergence=divergence,
        beta=beta,
        entropy=entropy,
        vocab_size=vocab_size,
        grad_scale=grad_scale,
    )
    if inplace and torch.compiler.is_compiling():
        raise ValueError("inplace=True overwrites an input, which torch.compile cannot follow: set inplace=False there")
    rows = choose_rows(impl, student_logits, teacher_logits)

    student = student_logits.detach()
    grad = None
    if torch.is_grad_enabled() and student_logits.requires_grad:
        grad = student if inplace else torch.empty_like(student)
    output = rows(student, teacher_logits, labels, weights, options, grad)
    loss = output.loss.sum()
    if grad is not None:
        loss = attach(loss, options.grad_scale, [(student_logits, grad)])
    return output._replace(loss=loss)


def choose_rows(impl: str, student_logits: Tensor, teacher_logits: Tensor | None) -> Callable[..., DistillOutput]:
    """The `dense_rows` of the implementation that `impl` names, or, for "auto", of the best that can run here."""
    if impl not in ("auto", "triton", "reference"):
        raise ValueError(f"unknown impl {impl!r}: choose 'auto', 'triton' or 'reference'")
    fits = all(x is None or x.dtype in _TRITON_DTYPES for x in (student_logits, teacher_logits))
    if impl == "reference" or (impl == "auto" and not (student_logits.is_cuda and fits)):
        return reference.dense_rows
    try:
        from kernels import dense
    except ImportError as error:
        if impl == "auto":
            return reference.dense_rows
        raise ValueError("impl='triton' needs triton >= 3.4: install it, or use impl='auto'") from error
    if not student_logits.is_cuda and not dense.INTERPRETED:
        raise ValueError(f"impl='triton' needs a GPU, the logits are on {student_logits.device}: use impl='auto'")
    if not fits:
        raise ValueError("impl='triton' takes fp32, fp16 and bf16 logits: use impl='reference' for others")
    return dense.dense_rows
