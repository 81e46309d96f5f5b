"""The definition of the losses in plain PyTorch: any device, any dtype, fp64 in fp64.

`definition` is the formula and nothing else: ordinary autograd differentiates it, and the tests hold every other
implementation against it in fp64. `dense_rows` is what `impl="reference"` runs: the same rows, a chunk at a time so
that fp32 [N, V] never exists at once, with the gradient written by formula.

For a row with student logits z, teacher logits u, label y, and q_T = softmax(z / T), p_T = softmax(u / T):

    L = kd T^2 D(p_T, q_T) + (truth + span) (-log q_1[y]) + hard (-log q_1[argmax u])

T^2 keeps the gradient's size when T changes (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural
Network", section 2.1). D and its gradient by s = z / T are those of kernels/divergences.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import divergences
from kernels.contract import (
    IGNORE_INDEX,
    LOG_P_FLOOR,
    DistillOutput,
    EntropyWeighting,
    Options,
    RowsInChunks,
    RowWeights,
    UsedWeights,
    take_rows,
)

# fp32 bytes of one operand's chunk: small on a CPU, where the working set should stay near the caches, and large enough
# on a device to fill it.
_CHUNK_BYTES = {"cpu": 16 << 20, "device": 256 << 20}


class _Kd(NamedTuple):
    """Ingredients of the distillation term's gradient."""

    log_q: Tensor  # [n, vocab] at T; the same tensor as _Parts.log_q where T is 1 and a cross-entropy is on
    gradient: divergences.Gradient


class _Parts(NamedTuple):
    """Ingredients of a chunk's gradient beside its per-row outputs."""

    log_q: Tensor | None  # [n, vocab] at T = 1; None unless a cross-entropy is on
    kd: _Kd | None
    label: Tensor  # [n, 1] a column that exists, whatever the label was
    choice: Tensor | None  # [n, 1] the teacher's argmax; None without a teacher
    poison: Tensor  # [n] 1, or NaN where the label is out of range, or the teacher's choice that of NaN


def rows_of(
    student: Tensor, teacher: Tensor | None, labels: Tensor, weights: RowWeights, options: Options
) -> tuple[DistillOutput, _Parts]:
    """Compute per-row outputs and the gradient's ingredients, out of place.

    Autograd may follow it from the student's logits.
    """
    vocab, temperature = options.vocab_size, options.temperature
    z = student[:, :vocab]
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    zeros = torch.zeros(len(labels), dtype=dtype, device=z.device)
    tempered = not (isinstance(temperature, float) and temperature == 1.0)

    valid, label, poison = read_labels(labels, weights, vocab, zeros)
    cross_entropy = any(w is not None for w in (weights.truth, weights.span, weights.hard))
    wide = z.to(dtype)
    log_q = torch.log_softmax(wide, -1) if cross_entropy else None
    best = z.argmax(-1)

    entropy, divergence, nll, hard_nll, teacher_hit = zeros, zeros, zeros, zeros, torch.zeros_like(valid)
    kd = choice = None
    if teacher is not None:
        u = teacher.detach()[:, :vocab]
        choice = u.argmax(-1, keepdim=True)
        teacher_hit = best == choice[:, 0]
        u = u.to(dtype)
        log_p = torch.log_softmax(u, -1).clamp_(min=LOG_P_FLOOR)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        if weights.kd is not None:
            if tempered:
                log_q_t = torch.log_softmax(wide / temperature, -1)
                log_p = torch.log_softmax(u / temperature, -1).clamp_(min=LOG_P_FLOOR)
                p = log_p.exp()
            else:
                log_q_t = torch.log_softmax(wide, -1) if log_q is None else log_q
            divergence, gradient = divergences.evaluate(options.divergence, log_p, p, log_q_t, options.beta)
            kd = _Kd(log_q_t, gradient)
        if log_q is not None and weights.hard is not None:
            hard_nll = -log_q.gather(1, choice)[:, 0]
            poison = poison + 0 * entropy  # of a teacher of NaN the choice means nothing
    if log_q is not None and (weights.truth is not None or weights.span is not None):
        nll = torch.where(valid, -log_q.gather(1, label)[:, 0], 0.0) * poison

    used = weights_as_used(weights, entropy, options.entropy, zeros)
    loss = used.kd * temperature**2 * divergence + (used.truth + used.span) * nll + used.hard * hard_nll
    output = DistillOutput(loss * poison, divergence, nll, hard_nll, entropy, best == labels, teacher_hit, used)
    return output, _Parts(log_q, kd, label, choice, poison)


def definition(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, weights: RowWeights, options: Options
) -> DistillOutput:
    """Compute the loss of the whole batch as one differentiable expression, for tests: it holds many [N, V] tensors."""
    output, _ = rows_of(student_logits, teacher_logits, labels, weights, options)
    return output._replace(loss=output.loss.sum())


def dense_rows(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    weights: RowWeights,
    options: Options,
    grad: Tensor | None,
) -> DistillOutput:
    """Compute every row's outputs (`loss` is [N]); write grad_scale * d(sum of loss)/dz into `grad`, if given.

    `grad` is [N, Vs] in the dtype wanted and may be student_logits itself: a chunk is read in full before it is
    written. No graph is recorded.
    """
    rows = RowsInChunks(len(labels))
    with torch.no_grad():
        for part in row_chunks(student_logits, options.vocab_size):
            chunk_weights = take_rows(weights, part)
            teacher = None if teacher_logits is None else teacher_logits[part]
            output, parts = rows_of(student_logits[part], teacher, labels[part], chunk_weights, options)
            if grad is not None:
                _write_gradient(grad[part], output.weights, chunk_weights, parts, options)
            rows.put(part, output)
    return rows.output()


def row_chunks(student_logits: Tensor, vocab: int) -> list[slice]:
    """List the rows taken at once, from a memory budget; no rows at all are one empty chunk."""
    budget = _CHUNK_BYTES["cpu" if student_logits.device.type == "cpu" else "device"]
    step = max(1, budget // (4 * vocab))
    return [slice(start, start + step) for start in range(0, max(len(student_logits), 1), step)]


def read_labels(labels: Tensor, weights: RowWeights, vocab: int, zeros: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return [n] true where the label is a token, [n, 1] a column that exists whatever the label is, and [n] 1, or NaN
    where the label is neither a token nor ignored.
    """
    valid = (labels >= 0) & (labels < vocab)
    asked = sum_or(weights.truth, weights.span, zeros) != 0
    poison = torch.where(valid | ((labels == IGNORE_INDEX) & ~asked), 1.0, float("nan")).to(zeros.dtype)
    return valid, torch.where(valid, labels, 0).long()[:, None], poison


def sum_or(first: Tensor | None, second: Tensor | None, zeros: Tensor) -> Tensor:
    """Add two weights [n], of which one that is None counts as zeros."""
    return (zeros if first is None else first) + (zeros if second is None else second)


def weights_as_used(
    weights: RowWeights, entropy: Tensor, weighting: EntropyWeighting | None, zeros: Tensor
) -> UsedWeights:
    """Weigh kd, truth and hard by the teacher's entropy [n], in nats; a weight that is None becomes zeros."""
    used = {name: zeros if w is None else w.to(zeros.dtype) for name, w in weights._asdict().items()}
    if weighting is not None:
        n = ((entropy - weighting.h_min) / (weighting.h_max - weighting.h_min)).clamp(0.0, 1.0)
        for name in ("kd", "truth", "hard"):
            sure, unsure = getattr(weighting, name)
            used[name] = used[name] * (sure + (unsure - sure) * n)
    return UsedWeights(**used)


def _write_gradient(grad: Tensor, used: UsedWeights, weights: RowWeights, parts: _Parts, options: Options) -> None:
    """Write grad_scale * dL/dz into grad[:, :vocab] and zeros past the vocabulary. Consumes the tensors in `parts`."""
    vocab, scale = options.vocab_size, parts.poison * options.grad_scale
    grad[:, vocab:] = 0
    cross_entropy = (used.truth + used.span + used.hard) * scale
    total = None
    q = None if parts.log_q is None else parts.log_q.exp()
    if parts.kd is not None:
        # d(T^2 D)/dz = T^2 dD/ds / T
        factor = (used.kd * options.temperature * scale)[:, None]
        q_t = q if q is not None and parts.kd.log_q is parts.log_q else parts.kd.log_q.exp()
        total = parts.kd.gradient(q_t, factor)
    if q is not None:
        total = q.mul_(cross_entropy[:, None]) if total is None else total.addcmul_(q, cross_entropy[:, None])
        ce = ((used.truth + used.span) * scale)[:, None]
        total.scatter_add_(1, parts.label, -ce)
        if weights.hard is not None and parts.choice is not None:
            total.scatter_add_(1, parts.choice, -(used.hard * scale)[:, None])
    if total is None:
        grad[:, :vocab] = (parts.poison - 1)[:, None]
    else:
        grad[:, :vocab] = total
