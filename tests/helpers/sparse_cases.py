"""Inputs for the sparse loss, an independent eager peer and the parity rule of kernel_cases for them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from helpers.kernel_cases import ROWS, assert_within, make_case
from kernels import RowWeights, SparseTeacher, sparse_distill_loss
from kernels.checks import resolve_options
from kernels.contract import Options, Settings
from kernels.reference_sparse import sparse_definition


class SparseCase(NamedTuple):
    student: torch.Tensor
    teacher: SparseTeacher
    labels: torch.Tensor
    weights: RowWeights


def topk_of(logits, k, temperature=1.0, dtype=torch.float32):
    """The k best of teacher logits [N, V], by fp64 softmax: no code of ours."""
    log_p, log_p_t = (F.log_softmax(logits.double() / t, -1) for t in (1.0, temperature))
    ids = log_p.topk(k).indices
    others = log_p_t.scatter(1, ids, -float("inf")).logsumexp(-1)
    entropy, entropy_t = (torch.special.entr(x.exp()).sum(-1) for x in (log_p, log_p_t))
    probs = log_p_t.gather(1, ids).exp()
    floats = (x.to(dtype) for x in (probs, others, entropy, entropy_t))
    return SparseTeacher(ids.int(), *floats, logits.argmax(-1).int(), "topk")


def draws_of(logits, num_draws, temperature=1.0, dtype=torch.float32):
    """Independent draws from teacher logits [N, V] as counts over the union of all rows' tokens, with empty slots."""
    p = F.softmax(logits.double() / temperature, -1)
    drawn = torch.multinomial(p, num_draws, replacement=True)
    counts = torch.zeros_like(p).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=p.dtype))
    counts, ids = counts.sort(-1, descending=True)
    full = topk_of(logits, 1, temperature, dtype)
    width = int((counts > 0).sum(-1).max())
    return full._replace(
        ids=ids[:, :width].int(),
        probs=(counts[:, :width] / num_draws).to(dtype),
        kind="sampled",
        log_tail=torch.full_like(full.log_tail, -float("inf")),
    )


def make_sparse(num_rows, width, k, temperature=1.0, dtype=torch.float32, kind="topk", device="cpu", **sizes):
    """A case, and the dense one that its teacher was taken from."""
    case = make_case(num_rows, width, dtype=dtype, device=device, **sizes)
    shown = case.teacher[:, : sizes.get("vocab") or width]
    teacher = topk_of(shown, k, temperature) if kind == "topk" else draws_of(shown, k, temperature)
    return SparseCase(case.student, teacher, case.labels, case.weights), case


def options_for(case: SparseCase, **settings) -> Options:
    return resolve_options(case.student.device, (case.student.shape[1], None), Settings(**settings))


def peer(student, teacher, labels, weights, options):
    """Write what a PyTorch user would in fp32 (fp64 for fp64). Knows nothing of our code."""
    z = student[:, : options.vocab_size]
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    z, t, ids = z.to(wide), options.temperature, teacher.ids.long()
    log_q, live = F.log_softmax(z / t, -1), teacher.probs > 0
    padded = F.pad(log_q, (0, 1), value=-1e5)
    ids = torch.where(live, ids, z.shape[1])
    kept = torch.zeros_like(padded, dtype=torch.bool).scatter(1, ids, True)
    log_q = torch.cat([padded.gather(1, ids), padded.masked_fill(kept, -1e5).logsumexp(1, keepdim=True)], 1).clamp(
        min=-1e4
    )
    log_p = torch.cat([teacher.probs.to(wide).log(), teacher.log_tail.to(wide)[:, None]], 1).clamp(min=-1e4)
    q, p = log_q.exp(), log_p.exp()
    if teacher.kind == "sampled":
        d = -(p * log_q).sum(-1) - teacher.entropy_t
    elif options.divergence == "forward_kl":
        d = (p * (log_p - log_q)).sum(-1)
    elif options.divergence == "reverse_kl":
        d = (q * (log_q - log_p)).sum(-1)
    else:
        b = options.beta
        m = b * p + (1 - b) * q
        d = b * (torch.xlogy(p, p) - torch.xlogy(p, m)).sum(-1) + (1 - b) * (torch.xlogy(q, q) - torch.xlogy(q, m)).sum(
            -1
        )
    nll = F.cross_entropy(z, labels, reduction="none")
    hard_nll = F.cross_entropy(z, teacher.argmax.long(), reduction="none")
    entropy = teacher.entropy.to(wide)
    kd, truth, span, hard = (torch.zeros_like(nll) if w is None else w.to(wide) for w in weights)
    if options.entropy is not None:
        e = options.entropy
        n = ((entropy - e.h_min) / (e.h_max - e.h_min)).clamp(0, 1)
        kd, truth, hard = (
            w * torch.lerp(*(torch.full_like(n, x) for x in ends), n)
            for w, ends in ((kd, e.kd), (truth, e.truth), (hard, e.hard))
        )
    loss = (kd * d * t * t + truth * nll + span * nll + hard * hard_nll).sum()
    return {"loss": loss, "divergence": d, "nll": nll, "hard_nll": hard_nll, "teacher_entropy": entropy}


def run_peer(case: SparseCase, options: Options):
    student = case.student.clone().requires_grad_()
    parts = peer(student, *case[1:], options)
    (grad,) = torch.autograd.grad(parts["loss"], student)
    return parts, grad


def run_definition(case: SparseCase, options: Options):
    """fp64 truth: output and gradient by autograd."""
    student = case.student.double().requires_grad_()
    output = sparse_definition(student, *case[1:], options)
    (grad,) = torch.autograd.grad(output.loss, student)
    return output, grad


def run_ours(case: SparseCase, impl: str, upstream=1.0, **settings):
    student = case.student.clone().requires_grad_()
    output = sparse_distill_loss(student, *case[1:], impl=impl, **settings)
    (grad,) = torch.autograd.grad(output.loss * upstream, student)
    return output, grad


def assert_parity(case: SparseCase, output, grad, **settings):
    """Loss, every row output and the gradient against fp64, by the rule."""
    options = options_for(case, **settings)
    truth, truth_grad = run_definition(case, options)
    theirs, their_grad = run_peer(case, options)
    assert_within(output.loss.detach(), theirs["loss"].detach(), truth.loss.detach(), what="loss")
    for name in ROWS:
        true_row = getattr(truth, name).detach()
        # A divergence near 0 is a difference of numbers near 1: nothing computed in fp32 is better than this.
        floor = 1e-5 if true_row.abs().max() < 1.0 else 0.0
        their_row = theirs[name].detach() if true_row.any() else true_row  # a term that is off is 0 here
        assert_within(getattr(output, name), their_row, true_row, eps=2e-6 + floor, what=name)
    assert output.label_hit.equal(truth.label_hit) and output.teacher_hit.equal(truth.teacher_hit)
    for name, used, expected in zip(RowWeights._fields, output.weights, truth.weights):
        torch.testing.assert_close(used.double(), expected, rtol=1e-5, atol=1e-6, msg=lambda m: f"weights.{name}: {m}")  # noqa: B023
    assert_within(grad, their_grad, truth_grad, what="gradient")
