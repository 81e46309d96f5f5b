"""The losses for a teacher that gives K tokens a row, in plain PyTorch: any device, any dtype, fp64 in fp64.

As in kernels/reference.py, `sparse_definition` is the formula for autograd and tests, `sparse_rows` what
`impl="reference"` runs, with the gradient written by formula. A row's columns are cut into buckets: each kept token,
and all other tokens together, the *rest*. The divergence D(p, q) is taken over the buckets, with f_b = dD/dq_b, so for
s = z / T

    dD/ds_j = q_j (f_b(j) - sum_b q_b f_b)  =  r_j G_b,      G_b = q_b (f_b - sum_b q_b f_b),   r_j = q_j / q_b(j)

G is what kernels/divergences.py gives over buckets. r is 1 in a kept token's own bucket, and softmax of s among the
rest: off the kept tokens the gradient is one constant times e^s, and a second one times e^z for the cross-entropies.
The rest's q is the log-sum-exp of its own columns, never 1 - sum: of a sure student the difference would be rounding
and nothing else. Merging buckets cannot raise a divergence (data processing inequality), so `topk` divergences are
lower bounds of those over the whole vocabulary.

A `sampled` teacher has no rest. -sum p^ log q_T is an unbiased estimate of the cross-entropy to p_T when p^ are counts
/ draws, and so is its gradient; taking off the exact entropy leaves an unbiased KL (which one row's draws can make
negative).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import divergences
from kernels.contract import (
    LOG_P_FLOOR,
    NO_TOKEN,
    DistillOutput,
    Options,
    RowsInChunks,
    RowWeights,
    SparseTeacher,
    UsedWeights,
    take_rows,
)
from kernels.reference import read_labels, row_chunks, weights_as_used

_LOWEST = -1.0e30  # below every logit that is not -inf, and finite: inf - inf must not be made of a row with no rest


class _Slots(NamedTuple):
    ids: Tensor  # [n, K] int64; vocab_size in an empty slot: one past the last column
    probs: Tensor  # [n, K], 0 in an empty slot
    poison: Tensor  # [n] 1, or NaN for a row whose slots no tokenizer gave


class _Kept(NamedTuple):
    slots: _Slots
    logits: Tensor  # [n, K] the student's at the slots


def sorted_slots(teacher: SparseTeacher) -> tuple[Tensor, Tensor]:
    """Sort slots by id, empty ones (id -1 whatever they named) first: ids [N, K], probs [N, K] as given."""
    ids, order = torch.where(teacher.probs == 0, NO_TOKEN, teacher.ids).sort(-1)
    return ids, teacher.probs.gather(1, order)


def _read_slots(teacher: SparseTeacher, vocab: int, dtype: torch.dtype) -> _Slots:
    ids, probs = sorted_slots(teacher)
    empty = ids == NO_TOKEN
    wrong = ((ids < 0) & ~empty) | (ids >= vocab) | (probs < 0)
    wrong[:, 1:] |= (ids[:, 1:] == ids[:, :-1]) & ~empty[:, 1:]
    poison = torch.where(wrong.any(-1), float("nan"), 1.0).to(dtype)
    stray = empty | (ids < 0) | (ids >= vocab)
    return _Slots(ids.masked_fill(stray, vocab).long(), probs.to(dtype).masked_fill(empty, 0.0), poison)


def _read_choice(teacher: SparseTeacher, weights: RowWeights, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return [n] true where the argmax is a token, [n, 1] a column that exists, and [n] 1, or NaN where the argmax is
    no token and has weight.
    """
    chosen = (teacher.argmax >= 0) & (teacher.argmax < vocab)
    wrong = torch.zeros_like(chosen) if weights.hard is None else ~chosen & (weights.hard != 0)
    return chosen, torch.where(chosen, teacher.argmax, 0).long()[:, None], torch.where(wrong, float("nan"), 1.0)


def sparse_definition(
    student_logits: Tensor, teacher: SparseTeacher, labels: Tensor, weights: RowWeights, options: Options
) -> DistillOutput:
    """Compute the loss of the whole batch as one differentiable expression of the logits, for tests."""
    vocab, temperature = options.vocab_size, options.temperature
    wide = student_logits[:, :vocab].to(torch.float64 if student_logits.dtype == torch.float64 else torch.float32)
    zeros = wide.new_zeros(len(labels))
    valid, label, poison = read_labels(labels, weights, vocab, zeros)
    chosen, choice, hard_poison = _read_choice(teacher, weights, vocab)
    poison = poison * hard_poison
    slots = _read_slots(teacher, vocab, wide.dtype)
    if weights.kd is not None:
        poison = poison * slots.poison
    log_q, log_q_t = torch.log_softmax(wide, -1), torch.log_softmax(wide / temperature, -1)

    padded = torch.cat([log_q_t, torch.full_like(log_q_t[:, :1], _LOWEST)], 1)
    others = padded.scatter(1, slots.ids, _LOWEST)
    bucket_log_q = torch.cat([padded.gather(1, slots.ids), torch.logsumexp(others, -1, keepdim=True)], 1)
    if weights.kd is None:
        divergence = zeros
    elif teacher.kind == "sampled":
        divergence = -(slots.probs * bucket_log_q[:, :-1]).sum(-1) - teacher.entropy_t
    else:
        log_p = torch.cat([slots.probs.log(), teacher.log_tail.to(wide.dtype)[:, None]], 1).clamp(min=LOG_P_FLOOR)
        divergence, _ = divergences.evaluate(
            options.divergence, log_p, log_p.exp(), bucket_log_q, options.beta, buckets=True
        )

    nll = hard_nll = zeros
    if weights.truth is not None or weights.span is not None:
        nll = torch.where(valid, -log_q.gather(1, label)[:, 0], 0.0) * poison
    if weights.hard is not None:
        hard_nll = torch.where(chosen, -log_q.gather(1, choice)[:, 0], 0.0)
    entropy = teacher.entropy.to(wide.dtype)
    used = weights_as_used(weights, entropy, options.entropy, zeros)
    best = wide.argmax(-1)
    loss = used.kd * temperature**2 * divergence + (used.truth + used.span) * nll + used.hard * hard_nll
    return DistillOutput(
        (loss * poison).sum(), divergence, nll, hard_nll, entropy, best == labels, best == teacher.argmax, used
    )


def sparse_rows(
    student_logits: Tensor,
    teacher: SparseTeacher,
    labels: Tensor,
    weights: RowWeights,
    options: Options,
    grad: Tensor | None,
) -> DistillOutput:
    """Do as reference.dense_rows: `loss` is [N]; `grad` [N, Vs], if given, is written and may be student_logits."""
    rows = RowsInChunks(len(labels))
    with torch.no_grad():
        for part in row_chunks(student_logits, options.vocab_size):
            some = take_rows(weights, part)
            output, parts = _rows_of(student_logits[part], take_rows(teacher, part), labels[part], some, options)
            if grad is not None:
                _write_gradient(grad[part], output.weights, some, parts, options)
            rows.put(part, output)
    return rows.output()


class _Kd(NamedTuple):
    """Ingredients of the distillation term's gradient."""

    rest: Tensor  # [n, V + 1] softmax of z / T among the rest, 0 at kept tokens; the last column is thrown away
    rest_pull: Tensor  # [n] dD/ds of the rest as a whole
    slot_ids: Tensor  # [n, K]
    slot_pull: Tensor  # [n, K] dD/ds


class _CrossEntropy(NamedTuple):
    """Ingredients of the cross-entropies' gradient."""

    rest: Tensor  # [n, V + 1] as _Kd.rest at T = 1; where T is 1 it is that tensor
    rest_q: Tensor  # [n] q of the rest as a whole
    slot_q: Tensor  # [n, K], or [n, 0] without kd


class _Parts(NamedTuple):
    """Ingredients of a chunk's gradient beside its per-row outputs."""

    kd: _Kd | None
    cross_entropy: _CrossEntropy | None
    label: Tensor  # [n, 1]
    choice: Tensor  # [n, 1]
    poison: Tensor  # [n]


def _rows_of(
    student: Tensor, teacher: SparseTeacher, labels: Tensor, weights: RowWeights, options: Options
) -> tuple[DistillOutput, _Parts]:
    vocab, temperature = options.vocab_size, options.temperature
    z = student[:, :vocab]
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    zeros = torch.zeros(len(labels), dtype=dtype, device=z.device)
    valid, label, poison = read_labels(labels, weights, vocab, zeros)
    chosen, choice, hard_poison = _read_choice(teacher, weights, vocab)
    poison = poison * hard_poison

    # x is z with a column too many, which empty slots read and write; where every token is kept it is all the rest.
    x = torch.empty(len(z), vocab + 1, dtype=dtype, device=z.device)
    x[:, :vocab] = z
    x[:, vocab] = _LOWEST
    z_label, z_choice = x.gather(1, label)[:, 0], x.gather(1, choice)[:, 0]
    kept = None
    if weights.kd is not None:
        slots = _read_slots(teacher, vocab, dtype)
        poison = poison * slots.poison
        kept = _Kept(slots, x.gather(1, slots.ids))
        x.scatter_(1, slots.ids, -float("inf"))
        x[:, vocab] = _LOWEST
    rest_top, rest_best = x.max(-1)
    top, best = _best_of_both(rest_top, rest_best, kept)
    above = torch.where(rest_top > _LOWEST, rest_top - top, -float("inf"))

    kd = cross_entropy = None
    divergence, nll, hard_nll = zeros, zeros, zeros
    plain = isinstance(temperature, float) and temperature == 1.0
    if kept is not None:
        rest_t = torch.softmax(x if plain else x / temperature, -1)
        # A softmax is at least 1 / V at its top, so the log of its sum can be read off there.
        rest_log_sum = above / temperature - rest_t.gather(1, rest_best[:, None])[:, 0].log()
        buckets = torch.cat([(kept.logits - top[:, None]) / temperature, rest_log_sum[:, None]], 1)
        log_q = buckets - torch.logsumexp(buckets, -1, keepdim=True)
        # Near 0 a difference of logarithms would be all rounding.
        kept_q = log_q[:, :-1].exp().sum(-1)
        log_q[:, -1] = torch.where(kept_q < 0.5, torch.log1p(-kept_q), log_q[:, -1])
        divergence, pull = _divergence_and_pull(log_q, kept.slots.probs, teacher, options)
        kd = _Kd(rest_t, pull[:, -1], kept.slots.ids, pull[:, :-1])
    if any(w is not None for w in (weights.truth, weights.span, weights.hard)):
        rest_1 = kd.rest if kd is not None and plain else torch.softmax(x, -1)
        buckets = (above - rest_1.gather(1, rest_best[:, None])[:, 0].log())[:, None]
        if kept is not None:
            buckets = torch.cat([kept.logits - top[:, None], buckets], 1)
        log_sum = torch.logsumexp(buckets, -1)
        q = (buckets - log_sum[:, None]).exp()
        cross_entropy = _CrossEntropy(rest_1, q[:, -1], q[:, :-1])
        if weights.truth is not None or weights.span is not None:
            nll = torch.where(valid, log_sum - (z_label - top), 0.0) * poison
        if weights.hard is not None:
            hard_nll = torch.where(chosen, log_sum - (z_choice - top), 0.0)

    entropy = teacher.entropy.to(dtype)
    used = weights_as_used(weights, entropy, options.entropy, zeros)
    loss = used.kd * temperature**2 * divergence + (used.truth + used.span) * nll + used.hard * hard_nll
    hits = best == labels, best == teacher.argmax
    output = DistillOutput(loss * poison, divergence, nll, hard_nll, entropy, *hits, used)
    return output, _Parts(kd, cross_entropy, label, choice, poison)


def _best_of_both(rest_top: Tensor, rest_best: Tensor, kept: _Kept | None) -> tuple[Tensor, Tensor]:
    """Find the max of the whole row and its lowest column; slots are sorted, so the first of theirs is the lowest."""
    if kept is None:
        return rest_top, rest_best
    kept_top, slot = kept.logits.max(-1)
    kept_best = kept.slots.ids.gather(1, slot[:, None])[:, 0]
    ahead = (kept_top > rest_top) | ((kept_top == rest_top) & (kept_best < rest_best))
    return torch.maximum(kept_top, rest_top), torch.where(ahead, kept_best, rest_best)


def _write_gradient(grad: Tensor, used: UsedWeights, weights: RowWeights, parts: _Parts, options: Options) -> None:
    """Write grad_scale * dL/dz into grad[:, :vocab] and zeros past the vocabulary. Consumes the tensors in `parts`."""
    vocab, scale = options.vocab_size, parts.poison * options.grad_scale
    kd_factor, ce, hard = used.kd * options.temperature * scale, (used.truth + used.span) * scale, used.hard * scale
    grad[:, vocab:] = 0
    kd, cross_entropy = parts.kd, parts.cross_entropy
    terms = []
    if kd is not None:
        terms.append((kd.rest, kd_factor * kd.rest_pull))
    if cross_entropy is not None:
        terms.append((cross_entropy.rest, (ce + hard) * cross_entropy.rest_q))
    if not terms:
        grad[:, :vocab] = (parts.poison - 1)[:, None]
        return
    if len(terms) == 2 and terms[0][0] is terms[1][0]:
        terms = [(terms[0][0], terms[0][1] + terms[1][1])]
    total = terms[0][0].mul_(terms[0][1][:, None])
    for of_rest, factor in terms[1:]:
        total.addcmul_(of_rest, factor[:, None])
    if kd is not None:
        of_slots = kd.slot_pull * kd_factor[:, None]
        if cross_entropy is not None:
            of_slots.addcmul_(cross_entropy.slot_q, (ce + hard)[:, None])
        total.scatter_(1, kd.slot_ids, of_slots)
    if weights.truth is not None or weights.span is not None:
        total.scatter_add_(1, parts.label, -ce[:, None])
    if weights.hard is not None:
        total.scatter_add_(1, parts.choice, -hard[:, None])
    grad[:, :vocab] = total[:, :vocab]


def _divergence_and_pull(
    log_q: Tensor, probs: Tensor, teacher: SparseTeacher, options: Options
) -> tuple[Tensor, Tensor]:
    """Compute D [n] over buckets and G [n, K + 1], the rest last, from the student's log q of them."""
    if teacher.kind == "sampled":
        p = torch.cat([probs, torch.zeros_like(probs[:, :1])], 1)
        divergence = torch.where(p == 0, 0.0, -p * log_q).sum(-1) - teacher.entropy_t
        return divergence, log_q.exp() * p.sum(-1, keepdim=True) - p
    log_p = torch.cat([probs.log(), teacher.log_tail.to(probs.dtype)[:, None]], 1).clamp_(min=LOG_P_FLOOR)
    p = log_p.exp()
    divergence, gradient = divergences.evaluate(options.divergence, log_p, p, log_q, options.beta, buckets=True)
    return divergence, gradient(log_q.exp(), 1.0)
