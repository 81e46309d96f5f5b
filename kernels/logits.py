"""distill_loss and sparse_distill_loss: logits in, loss and per-row parts out. Also the choice of implementation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import divergences, ops, reference, reference_sparse
from kernels.attach import attach, have_triton
from kernels.checks import check_rows, check_sparse_teacher, check_teacher_terms, resolve_options
from kernels.contract import DistillOutput, EntropyWeighting, Options, RowWeights, Scalar, Settings, SparseTeacher

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
    """Sum weighted divergence to the teacher and weighted cross-entropies over rows (formula: kernels/reference.py).

    Args:
        student_logits: [N, Vs] bf16, fp16, fp32 (fp64 with the reference); rows may be strided, columns may not.
        teacher_logits: [N, Vt], a constant; or None, where only truth and span terms are on.
        labels: [N] token ids. -100 is allowed in rows whose truth and span weights are 0. Any other id outside
            [0, vocab_size) makes the row's loss and gradient NaN, without a wait for the device.
        weights: what each term of each row weighs, normaliser included.
        temperature: T > 0 of the divergence; cross-entropies are at T = 1. The loss and its gradient carry T^2.
        divergence: "forward_kl", "reverse_kl", "jsd" with beta (0 is forward_kl, 1 is reverse_kl), or one that was
            registered (kernels/divergences.py).
        entropy: factors on kd, truth, hard from the teacher's entropy.
        vocab_size: columns that count, needed where the widths differ; the gradient past it is 0.
        grad_scale: power of two by which the gradient is held larger between forward and backward (the fp16 loss
            scale). The result does not depend on it, underflow does.
        inplace: the gradient is written over student_logits, whose values are then gone. Eager mode only.
        impl: "auto", "triton" or "reference".

    temperature, beta, entropy ends and grad_scale are numbers or 0-d tensors; one on the logits' device is never read
    by the host, so its range is not checked, and such a beta must lie strictly between 0 and 1. What changes from step
    to step has to be such a tensor under torch.compile: each new number compiles anew, and the ninth stops
    fullgraph=True.

    Raises:
        ValueError: shapes, dtypes, settings that contradict each other, an impl that cannot run here.
        RuntimeError: on a second backward through the same call.
    """
    settings = Settings(temperature, divergence, beta, entropy, vocab_size, grad_scale, impl)
    return _loss(student_logits, teacher_logits, labels, weights, settings, inplace)


def sparse_distill_loss(
    student_logits: Tensor,
    teacher: SparseTeacher,
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
    """Compute distill_loss with a teacher that gives K tokens a row (formula: kernels/reference_sparse.py).

    Args:
        student_logits: [N, Vs] as in distill_loss.
        teacher: its probabilities, tail and entropy_t are at `temperature`, its entropy at T = 1: that one weighs terms
            and is reported. The hard term is against teacher.argmax.

    All else is as in distill_loss. `divergence` of the output is that of the K + 1 buckets for a "topk" teacher, at
    most the one over the whole vocabulary: compare it between runs of equal K only. For a "sampled" one it is an
    unbiased estimate, and may be negative on a row.

    Raises:
        ValueError: as distill_loss; a sampled teacher with another divergence than forward_kl; a teacher whose tensors
            do not fit each other.
        RuntimeError: on a second backward through the same call.
    """
    if not isinstance(teacher, SparseTeacher):
        raise ValueError(f"teacher must be a SparseTeacher, got {type(teacher).__name__}: for logits use distill_loss")
    settings = Settings(temperature, divergence, beta, entropy, vocab_size, grad_scale, impl)
    return _loss(student_logits, teacher, labels, weights, settings, inplace)


def _loss(
    student_logits: Tensor,
    teacher: Tensor | SparseTeacher | None,
    labels: Tensor,
    weights: RowWeights,
    settings: Settings,
    inplace: bool,
) -> DistillOutput:
    wanted = torch.is_grad_enabled() and student_logits.requires_grad
    if torch.compiler.is_compiling():
        if inplace:
            raise ValueError(
                "inplace=True overwrites an input, which torch.compile cannot follow: set inplace=False there"
            )
        sparse = teacher if isinstance(teacher, SparseTeacher) else None
        dense = teacher if sparse is None else None
        packed = ops.pack(sparse, labels, weights, settings)
        *rows, _ = torch.ops.spanwise.logits_loss(student_logits, dense, wanted, *packed)
        return ops.restore(rows)
    output, grad, options = _run(student_logits, teacher, labels, weights, settings, inplace, wanted)
    if grad is not None:
        output = output._replace(loss=attach(output.loss, options.grad_scale, [(student_logits, grad)]))
    return output


def _run(
    student_logits: Tensor,
    teacher: Tensor | SparseTeacher | None,
    labels: Tensor,
    weights: RowWeights,
    settings: Settings,
    inplace: bool,
    wanted: bool,
) -> tuple[DistillOutput, Tensor | None, Options]:
    """Check, then compute: the output outside any graph, the gradient if wanted (held at grad_scale), the settings."""
    sparse = isinstance(teacher, SparseTeacher)
    for name, logits in (("student_logits", student_logits), ("teacher_logits", None if sparse else teacher)):
        if logits is not None and (logits.dim() != 2 or not logits.is_floating_point()):
            raise ValueError(f"{name} must be floating point [N, V], got {logits.dtype} {list(logits.shape)}")
        if logits is not None and logits.stride(1) != 1 and logits.numel() > 0:
            raise ValueError(f"{name} has columns {logits.stride(1)} apart: call .contiguous() on it first")
    if inplace and len(student_logits) > 1 and student_logits.stride(0) < student_logits.shape[1]:
        raise ValueError(
            "student_logits has rows that share memory, which inplace=True would overwrite: call .contiguous() on "
            "it first"
        )
    num_rows, device = len(student_logits), student_logits.device
    if not sparse and teacher is not None and (len(teacher) != num_rows or teacher.device != device):
        raise ValueError(
            f"teacher_logits has {len(teacher)} rows on {teacher.device}, student_logits {num_rows} "
            f"on {device}: select the same supervised rows from both, on one device"
        )
    weights = check_rows(num_rows, device, labels, weights)
    check_teacher_terms(teacher is not None, weights, settings.entropy)
    teacher_width = None if sparse or teacher is None else teacher.shape[1]
    options = resolve_options(device, (student_logits.shape[1], teacher_width), settings)
    if sparse:
        teacher = check_sparse_teacher(teacher, num_rows, device, options.divergence)
    rows = choose_rows(settings.impl, student_logits, teacher, options.divergence)
    student = student_logits.detach()
    grad = None
    if wanted:
        grad = student if inplace else torch.empty_like(student)
    output = rows(student, teacher, labels, weights, options, grad)
    return output._replace(loss=output.loss.sum()), grad, options


torch.library.define(
    "spanwise::logits_loss", f"(Tensor student, Tensor? teacher, bool wanted, {ops.ARGUMENTS}) -> ({ops.ROWS}, Tensor)"
)


@torch.library.impl("spanwise::logits_loss", "default")
def _logits_loss(student, teacher, wanted, *packed):
    sparse, labels, weights, settings = ops.unpack(packed)
    output, grad, _ = _run(student, teacher if sparse is None else sparse, labels, weights, settings, False, wanted)
    return *ops.flatten(output), student.new_empty(0) if grad is None else grad


@torch.library.register_fake("spanwise::logits_loss")
def _(student, teacher, wanted, *packed):
    return *ops.fake_rows(student), torch.empty_like(student) if wanted else student.new_empty(0)


def _keep(ctx, inputs, output):
    _, _, _, *packed = inputs
    ops.keep_for_backward(ctx, output[-1:], packed)


def _backward(ctx, upstream, *_):
    return *ops.scaled_grads(ctx, upstream), *[None] * (2 + ops.NUM_ARGUMENTS)


torch.library.register_autograd("spanwise::logits_loss", _backward, setup_context=_keep)


def choose_rows(
    impl: str, student_logits: Tensor, teacher: Tensor | SparseTeacher | None, divergence: str
) -> Callable[..., DistillOutput]:
    """Return `dense_rows` or `sparse_rows` of the implementation that `impl` names; "auto" takes the best one here.

    Raises:
        ValueError: an unknown impl, or impl="triton" where it cannot run.
    """
    if impl not in ("auto", "triton", "reference"):
        raise ValueError(f"unknown impl {impl!r}: choose 'auto', 'triton' or 'reference'")
    sparse = isinstance(teacher, SparseTeacher)
    plain = reference_sparse.sparse_rows if sparse else reference.dense_rows
    dense_teacher = None if sparse else teacher
    fits = all(x is None or x.dtype in _TRITON_DTYPES for x in (student_logits, dense_teacher))
    has_kernel = divergences.find(divergence).kind is not None
    if impl == "reference" or (impl == "auto" and not (student_logits.is_cuda and fits and has_kernel)):
        return plain
    if not have_triton():
        if impl == "auto":
            return plain
        raise ValueError("impl='triton' needs triton >= 3.4: install it, or use impl='auto'")
    from kernels.fused import dense
    from kernels.fused import sparse as sparse_kernel
    from kernels.fused.language import INTERPRETED

    divergences.kind_of(divergence)
    if not student_logits.is_cuda and not INTERPRETED:
        raise ValueError(f"impl='triton' needs a GPU, the logits are on {student_logits.device}: use impl='auto'")
    if not fits:
        raise ValueError("impl='triton' takes fp32, fp16 and bf16 logits: use impl='reference' for others")
    return sparse_kernel.sparse_rows if sparse else dense.dense_rows
