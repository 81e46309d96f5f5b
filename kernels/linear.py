"""linear_distill_loss: hidden states and heads in, gradients of both out, logits only a chunk of rows at a time."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kernels import ops
from kernels.attach import attach
from kernels.checks import check_rows, check_sparse_teacher, check_teacher_terms, resolve_options
from kernels.contract import (
    DenseTeacher,
    DistillOutput,
    EntropyWeighting,
    Head,
    Options,
    RowsInChunks,
    RowWeights,
    Scalar,
    Settings,
    SparseTeacher,
    take_rows,
)
from kernels.head import check_head, chunks, head_logits, resolve_chunk_rows, wide
from kernels.logits import choose_rows


def linear_distill_loss(
    hidden: Tensor,
    head: Head,
    teacher: DenseTeacher | SparseTeacher | None,
    labels: Tensor,
    weights: RowWeights,
    *,
    chunk_rows: int | None = None,
    temperature: Scalar = 1.0,
    divergence: str = "forward_kl",
    beta: Scalar | None = None,
    entropy: EntropyWeighting | None = None,
    vocab_size: int | None = None,
    grad_scale: Scalar = 1.0,
    impl: str = "auto",
) -> DistillOutput:
    """Compute distill_loss, or sparse_distill_loss, of head(hidden), without [N, V] ever in memory.

    Gradients of hidden, head.weight and head.bias are made here, in forward (dW and dbias summed in fp32), and backward
    only multiplies all of them by upstream / grad_scale. The weight is not kept for backward, so the call is safe where
    ZeRO-3 releases it after forward; it must be made inside the engine's forward, where the weight is whole.

    Args:
        hidden: [N, H] of the supervised rows, in the dtype of head.weight. N = 0 gives a loss of 0 that still reaches
            hidden and head, with zero gradients.
        head: the student's; head.weight may be tied to the embedding.
        teacher: frozen. A DenseTeacher's logits, teacher.head(teacher.hidden), are made a chunk at a time as well; a
            SparseTeacher needs none; None for cross-entropy alone (weights.kd, weights.hard and entropy are then None).
        chunk_rows: rows whose logits exist at once, at most; None chooses 2048 to 4096 on a GPU, 64 MiB of fp32 logits
            on a CPU.

    All else, and what is raised, is as in distill_loss; logits are always overwritten by their gradient here, so there
    is no `inplace`.
    """
    if not isinstance(teacher, (DenseTeacher, SparseTeacher, type(None))):
        raise ValueError(f"teacher must be a DenseTeacher, a SparseTeacher or None, got {type(teacher).__name__}")
    settings = Settings(temperature, divergence, beta, entropy, vocab_size, grad_scale, impl)
    grads_on = torch.is_grad_enabled()
    tensors = (hidden, head.weight, head.bias)
    wanted = [grads_on and t is not None and t.requires_grad for t in tensors]
    if torch.compiler.is_compiling():
        packed = ops.pack(teacher if isinstance(teacher, SparseTeacher) else None, labels, weights, settings)
        dense = teacher if isinstance(teacher, DenseTeacher) else None
        their_hidden, their_head = (None, (None, None, None, 1.0)) if dense is None else dense
        rows = torch.ops.spanwise.linear_loss(hidden, *head, their_hidden, *their_head, chunk_rows, wanted, *packed)
        return ops.restore(rows[:-3])
    output, grads, options = _run(hidden, head, teacher, labels, weights, settings, chunk_rows, wanted)
    if any(wanted):
        pairs = [(t, g) for t, g in zip(tensors, grads) if t is not None]
        output = output._replace(loss=attach(output.loss, options.grad_scale, pairs))
    return output


def _run(
    hidden: Tensor,
    head: Head,
    teacher: DenseTeacher | SparseTeacher | None,
    labels: Tensor,
    weights: RowWeights,
    settings: Settings,
    chunk_rows: int | None,
    wanted: list[bool],
) -> tuple[DistillOutput, list[Tensor | None], Options]:
    """Check, then compute: the output outside any graph, gradients of hidden, weight and bias as wanted, the
    settings.
    """
    num_rows, device, width = len(hidden), hidden.device, len(head.weight)
    check_head("student", hidden, head, num_rows, device)
    dense = teacher if isinstance(teacher, DenseTeacher) else None
    sparse = teacher if isinstance(teacher, SparseTeacher) else None
    if dense is not None:
        check_head("teacher", dense.hidden, dense.head, num_rows, device)
    weights = check_rows(num_rows, device, labels, weights)
    check_teacher_terms(teacher is not None, weights, settings.entropy)
    options = resolve_options(device, (width, None if dense is None else len(dense.head.weight)), settings)
    if sparse is not None:
        sparse = check_sparse_teacher(sparse, num_rows, device, options.divergence)
    loss_of = choose_rows(settings.impl, hidden, sparse if dense is None else dense.hidden, options.divergence)
    chunk_rows = resolve_chunk_rows(chunk_rows, width, hidden.dtype, device)

    grads = _Gradients(hidden, head, wanted)
    rows = RowsInChunks(num_rows)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for part in chunks(num_rows, chunk_rows):
            logits = head_logits(hidden[part], head)
            target = None
            if grads.wanted:
                # The slope of the soft cap is read off the logits, so they have to outlive the gradient's writing.
                target = logits if head.softcap is None else torch.empty_like(logits)
            if dense is not None:
                targets = head_logits(dense.hidden[part], dense.head)
            else:
                targets = None if sparse is None else take_rows(sparse, part)
            rows.put(part, loss_of(logits, targets, labels[part], take_rows(weights, part), options, target))
            if target is not None:
                grads.add(part, target, logits)
    output = rows.output()
    return output._replace(loss=output.loss.sum()), grads.results(), options


torch.library.define(
    "spanwise::linear_loss",
    "(Tensor hidden, Tensor weight, Tensor? bias, float? softcap, float scale, Tensor? teacher_hidden, "
    "Tensor? teacher_weight, Tensor? teacher_bias, float? teacher_softcap, float teacher_scale, SymInt? chunk_rows, "
    f"bool[] wanted, {ops.ARGUMENTS}) -> ({ops.ROWS}, Tensor, Tensor, Tensor)",
)


@torch.library.impl("spanwise::linear_loss", "default")
def _linear_loss(
    hidden,
    weight,
    bias,
    softcap,
    scale,
    their_hidden,
    their_weight,
    their_bias,
    their_softcap,
    their_scale,
    chunk_rows,
    wanted,
    *packed,
):
    teacher, labels, weights, settings = ops.unpack(packed)
    if their_hidden is not None:
        teacher = DenseTeacher(their_hidden, Head(their_weight, their_bias, their_softcap, their_scale))
    head = Head(weight, bias, softcap, scale)
    output, grads, _ = _run(hidden, head, teacher, labels, weights, settings, chunk_rows, wanted)
    return *ops.flatten(output), *(hidden.new_empty(0) if g is None else g for g in grads)


@torch.library.register_fake("spanwise::linear_loss")
def _(
    hidden,
    weight,
    bias,
    softcap,
    scale,
    their_hidden,
    their_weight,
    their_bias,
    their_softcap,
    their_scale,
    chunk_rows,
    wanted,
    *packed,
):
    grads = (hidden.new_empty(t.shape if on else 0) for t, on in zip((hidden, weight, bias), wanted))
    return *ops.fake_rows(hidden), *grads


def _keep(ctx, inputs, output):
    ops.keep_for_backward(ctx, output[-3:], inputs[-ops.NUM_ARGUMENTS :])


def _backward(ctx, upstream, *_):
    return *ops.scaled_grads(ctx, upstream), *[None] * (9 + ops.NUM_ARGUMENTS)


torch.library.register_autograd("spanwise::linear_loss", _backward, setup_context=_keep)


class _Gradients:
    """Gradients of hidden, weight and bias, gathered chunk by chunk; None for a tensor that wants none."""

    def __init__(self, hidden: Tensor, head: Head, needs: list[bool]):
        dtype = wide(hidden.dtype)
        self.hidden, self.head, self.wanted = hidden, head, any(needs)
        self.dx = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needs[0] else None
        self.dw = torch.empty(head.weight.shape, dtype=dtype, device=hidden.device) if needs[1] else None
        self.db = torch.zeros(len(head.weight), dtype=dtype, device=hidden.device) if needs[2] else None

    def add(self, part: slice, grad: Tensor, logits: Tensor) -> None:
        """Take in d(loss)/d(logits) [n, V] of the rows in `part`. Overwrites grad."""
        if self.head.softcap is not None:
            ratio = logits.to(wide(logits.dtype)) / self.head.softcap
            grad.copy_(grad * (1 - ratio.square_()))
        alpha = self.head.scale
        if self.dx is not None:
            torch.addmm(self.dx[part], grad, self.head.weight.detach(), beta=0, alpha=alpha, out=self.dx[part])
        if self.dw is not None:
            _add_product(self.dw, grad.t(), self.hidden[part].detach(), part.start == 0, alpha)
        if self.db is not None:
            self.db.add_(grad.sum(0, dtype=self.db.dtype), alpha=alpha)

    def results(self) -> list[Tensor | None]:
        return [None if g is None else g.to(self.hidden.dtype) for g in (self.dx, self.dw, self.db)]


_WIDENED_ROWS = 8192


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool, alpha: float) -> None:
    """Add alpha * a @ b to total, products and sums in its (wider) dtype; the first call ignores what was there."""
    beta = 0 if first else 1
    if a.dtype == total.dtype or not total.is_cuda:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=beta, alpha=alpha, out=total)
    elif widening_addmm(total.device, a.dtype, total.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, alpha=alpha, out=total)
    else:
        b = b.to(total.dtype)
        for start in range(0, len(a), _WIDENED_ROWS):
            part = slice(start, start + _WIDENED_ROWS)
            torch.addmm(total[part], a[part].to(total.dtype), b, beta=beta, alpha=alpha, out=total[part])


@functools.cache
def widening_addmm(device: torch.device, low: torch.dtype, high: torch.dtype) -> bool:
    """Probe, once a process, that addmm adds a half-precision product to a wider sum without rounding either.

    Some of the torch versions we support refuse it (on ROCm 2.8 every product of that kind): they multiply in the wider
    dtype, for which a few thousand rows of the weight's gradient are widened at a time. The probe's product and sum
    both have more digits than half precision: 2059 and 2^-10.
    """
    ones = torch.ones(16, 2056, dtype=low, device=device)
    ones[:, 0] = 2
    total = torch.full((16, 16), 2.0**-10, dtype=high, device=device)
    expected = total + 2055 + 4
    try:
        torch.addmm(total, ones, ones.t(), out_dtype=high, out=total)
    except (RuntimeError, TypeError):
        return False
    return total.equal(expected)
