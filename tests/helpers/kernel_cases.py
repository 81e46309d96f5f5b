"""Inputs, an independent eager peer and the parity rule, shared by the kernel tests and the GPU suite.

The rule (QuACK's): error of ours against fp64 <= 2 x error of PyTorch in the same dtype against fp64 + eps, errors
taken relative to the size of the quantity itself, because gradients scaled by 1/N vanish beside an absolute tolerance.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from kernels import EntropyWeighting, RowWeights, distill_loss
from kernels.checks import resolve_options
from kernels.contract import Options, Settings
from kernels.reference import definition

DIVERGENCES = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3)]
ENTROPY = EntropyWeighting(h_min=1.0, h_max=5.0, kd=(0.4, 0.6), truth=(0.5, 0.1), hard=(0.1, 0.3))
VOCABULARIES = (127, 1000, 4096, 32000, 50257, 65537, 128256, 151936, 152064, 262144)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROWS = ("divergence", "nll", "hard_nll", "teacher_entropy")


class Case(NamedTuple):
    student: torch.Tensor
    teacher: torch.Tensor
    labels: torch.Tensor
    weights: RowWeights


def make_case(num_rows, width, teacher_width=None, vocab=None, dtype=torch.float32, spread=3.0, device="cpu"):
    teacher_width = width if teacher_width is None else teacher_width
    student = (torch.randn(num_rows, width, device=device) * spread).to(dtype)
    teacher = (torch.randn(num_rows, teacher_width, device=device) * spread).to(dtype)
    labels = torch.randint(0, vocab or min(width, teacher_width), (num_rows,), device=device)
    weights = torch.rand(4, num_rows, device=device)
    weights[:, ::3] = 0  # rows without weight are in every case
    return Case(student, teacher, labels, RowWeights(*weights))


def options_for(case: Case, **settings) -> Options:
    return resolve_options(case.student.device, (case.student.shape[1], case.teacher.shape[1]), Settings(**settings))


def peer(student, teacher, labels, weights, options):
    """Write what a PyTorch user would, in the logits' own dtype until the row sums. Knows nothing of our code."""
    z, u = student[:, : options.vocab_size], teacher[:, : options.vocab_size]
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    z, u, t = z.to(wide), u.to(wide), options.temperature
    log_q, log_p = F.log_softmax(z / t, -1), F.log_softmax(u / t, -1).clamp(min=-1e4)
    q, p = log_q.exp(), log_p.exp()
    if options.divergence == "forward_kl":
        d = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    elif options.divergence == "reverse_kl":
        d = (q * (log_q - log_p)).sum(-1)
    else:
        b = options.beta
        m = b * p + (1 - b) * q
        d = b * (torch.xlogy(p, p) - torch.xlogy(p, m)).sum(-1) + (1 - b) * (torch.xlogy(q, q) - torch.xlogy(q, m)).sum(
            -1
        )
    nll = F.cross_entropy(z, labels, reduction="none")
    hard_nll = F.cross_entropy(z, u.argmax(-1), reduction="none")
    entropy = torch.special.entr(F.softmax(u, -1)).sum(-1)
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


def run_definition(case: Case, options: Options):
    """fp64 truth: output and gradient by autograd."""
    student = case.student.double().requires_grad_()
    output = definition(student, case.teacher.double(), case.labels, case.weights, options)
    (grad,) = torch.autograd.grad(output.loss, student)
    return output, grad


def run_peer(case: Case, options: Options):
    student = case.student.clone().requires_grad_()
    parts = peer(student, case.teacher, case.labels, case.weights, options)
    (grad,) = torch.autograd.grad(parts["loss"], student)
    return parts, grad


def run_ours(case: Case, impl: str, upstream=1.0, **settings):
    student = case.student.clone().requires_grad_()
    output = distill_loss(student, case.teacher, case.labels, case.weights, impl=impl, **settings)
    (grad,) = torch.autograd.grad(output.loss * upstream, student)
    return output, grad


def poison_new_memory(monkeypatch):
    """torch.empty hands out NaN (or 113 as an integer), so that an element nobody writes shows."""

    def poisoned(make):
        def wrapper(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 113)

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


def assert_within(ours, theirs, truth, eps=2e-6, what=""):
    """The parity rule for one tensor."""
    scale = truth.double().abs().max().clamp(min=1e-30)
    error = (ours.double() - truth.double()).abs().max() / scale
    if not theirs.isfinite().all():  # eager jsd on saturated rows: it earns what rounding the truth costs, and no more
        theirs = truth.to(theirs.dtype)
    allowed = 2 * (theirs.double() - truth.double()).abs().max() / scale + eps
    assert error <= allowed, f"{what}: relative error {error:.3g}, allowed {allowed:.3g}"


def assert_parity(case: Case, output, grad, **settings):
    """Loss, every row output and the gradient against fp64, by the rule."""
    options = options_for(case, **settings)
    truth, truth_grad = run_definition(case, options)
    theirs, their_grad = run_peer(case, options)
    assert_within(output.loss.detach(), theirs["loss"].detach(), truth.loss.detach(), what="loss")
    for name in ROWS:
        reference_row = getattr(truth, name).detach()
        # KL near 0 is a difference of numbers near 1: nothing computed in fp32 is better than this.
        floor = 1.0 if reference_row.abs().max() < 1.0 else 0.0
        assert_within(
            getattr(output, name),
            theirs[name].detach() if reference_row.any() else reference_row,
            reference_row,
            eps=2e-6 + floor * 1e-5,
            what=name,
        )
    assert output.label_hit.equal(truth.label_hit) and output.teacher_hit.equal(truth.teacher_hit)
    for name, used, expected in zip(RowWeights._fields, output.weights, truth.weights):
        torch.testing.assert_close(used.double(), expected, rtol=1e-5, atol=1e-6, msg=lambda m: f"weights.{name}: {m}")  # noqa: B023
    assert_within(grad, their_grad, truth_grad, what="gradient")
