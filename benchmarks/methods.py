# type: ignore  # pyright checks kd, kernels and launch (pyproject.toml)
"""Workloads that loss_kernels.py compares, and the ways to compute them.

A way takes a workload's data and gives the loss of leaves that require gradient; the benchmark runs it backward. Row
weights are 1/N times the terms' shares, so that a peer that only knows means does the same work. `eager` is what a
PyTorch user writes when only these terms are wanted (tests/benchmarks/test_benchmarks.py holds it to the peer of the
kernel tests).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import (
    DenseTeacher,
    Head,
    RowWeights,
    SparseTeacher,
    distill_loss,
    linear_distill_loss,
    sparse_distill_loss,
)

# kd, truth, span. A term alone weighs 1: then no peer has to multiply its gradient once more.
SHARES = {"kd": (1.0, 0.0, 0.0), "kd+ce": (0.5, 0.375, 0.125), "ce": (0.0, 0.75, 0.25)}
OVERWRITES = ("ours (in place)", "liger")  # ways after which the student's logits are gone
_SPREAD = 3.0  # standard deviation of the logits


class NotInstalledError(Exception):
    """A peer whose package is missing."""


class Workload(NamedTuple):
    family: str  # dense, sparse, linear (dense teacher), linear_sparse
    terms: str  # kd, kd+ce, ce
    divergence: str
    beta: float | None
    temperature: float
    num_rows: int
    vocab: int
    dtype: str
    hidden: int = 0  # of student and teacher, linear only
    kept: int = 0  # K, sparse only

    def name(self) -> str:
        extra = "".join(f" {k}={v}" for k, v in (("beta", self.beta), ("H", self.hidden), ("K", self.kept)) if v)
        return (
            f"{self.family} {self.terms} {self.divergence} T={self.temperature:g}{extra} "
            f"{self.num_rows}x{self.vocab} {self.dtype}"
        )


class Data(NamedTuple):
    work: Workload
    leaves: list[Tensor]  # student logits; or hidden and weight
    teacher: Tensor | SparseTeacher | DenseTeacher | None
    labels: Tensor
    weights: RowWeights


Way = Callable[[Data, list[Tensor]], Tensor]


def make_data(work: Workload, device: torch.device, seed: int = 0) -> Data:
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype, n, v = getattr(torch, work.dtype), work.num_rows, work.vocab

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, device=device, generator=generator, dtype=dtype).mul_(scale)

    labels = torch.randint(0, v, (n,), device=device, generator=generator)
    kd, truth, span = (torch.full((n,), share / n, device=device) if share else None for share in SHARES[work.terms])
    weights = RowWeights(kd, truth, span, None)
    if work.family in ("dense", "sparse"):
        leaves, teacher = [normal(n, v, scale=_SPREAD)], None
        if work.family == "dense" and kd is not None:
            teacher = normal(n, v, scale=_SPREAD)
    else:
        scale = _SPREAD / work.hidden**0.5
        leaves, teacher = [normal(n, work.hidden), normal(v, work.hidden, scale=scale)], None
        if work.family == "linear" and kd is not None:
            teacher = DenseTeacher(normal(n, work.hidden), Head(normal(v, work.hidden, scale=scale)))
    if work.kept:
        teacher = _sparse_teacher(work, n, v, device, generator)
    return Data(work, [leaf.requires_grad_() for leaf in leaves], teacher, labels, weights)


def _sparse_teacher(work: Workload, n: int, v: int, device: torch.device, generator) -> SparseTeacher:
    """Kept tokens of a peaked distribution with a tenth of its mass in the tail; made without [N, V]."""
    ids = (torch.arange(work.kept, device=device) * (v // work.kept)).repeat(n, 1)
    ids += torch.randint(0, v // work.kept, (n, work.kept), device=device, generator=generator)
    probs = 0.9 * torch.softmax(torch.randn(n, work.kept, device=device, generator=generator) * 2, -1)
    rows = torch.full((n,), 2.0, device=device)
    return SparseTeacher(ids.int(), probs, torch.full_like(rows, 0.1).log(), rows, rows, ids[:, 0].int(), "topk")


def settings(work: Workload) -> dict:
    return dict(temperature=work.temperature, divergence=work.divergence, beta=work.beta)


def ours(impl: str, inplace: bool = False) -> Way:
    def loss(data: Data, leaves: list[Tensor]) -> Tensor:
        work, rest = data.work, (data.teacher, data.labels, data.weights)
        if work.family == "dense":
            return distill_loss(leaves[0], *rest, **settings(work), inplace=inplace, impl=impl).loss
        if work.family == "sparse":
            return sparse_distill_loss(leaves[0], *rest, **settings(work), inplace=inplace, impl=impl).loss
        return linear_distill_loss(leaves[0], Head(leaves[1]), *rest, **settings(work), impl=impl).loss

    return loss


def eager(data: Data, leaves: list[Tensor]) -> Tensor:
    """Whole logits, softmax in at least fp32. Sums over the rows given, divided by the workload's number of rows."""
    work, teacher = data.work, data.teacher
    kd, *ce = SHARES[work.terms]
    logits = leaves[0] if len(leaves) == 1 else F.linear(*leaves)
    z = logits if logits.dtype == torch.float64 else logits.float()
    total = z.new_zeros(())
    if kd:
        log_q = F.log_softmax(z / work.temperature, -1)
        if isinstance(teacher, SparseTeacher):
            divergence = _bucket_divergence(log_q, teacher)
        else:
            u = F.linear(teacher.hidden, teacher.head.weight) if isinstance(teacher, DenseTeacher) else teacher
            log_p = F.log_softmax(u.to(z.dtype) / work.temperature, -1)
            divergence = _divergence(log_q, log_p, work)
        total = total + divergence * (kd * work.temperature**2)
    if any(ce):
        total = total + F.cross_entropy(z, data.labels, reduction="sum") * sum(ce)
    return total / work.num_rows


def _divergence(log_q: Tensor, log_p: Tensor, work: Workload) -> Tensor:
    def kl(a: Tensor, b: Tensor) -> Tensor:
        return F.kl_div(b, a, log_target=True, reduction="sum")

    if work.divergence == "forward_kl":
        return kl(log_p, log_q)
    if work.divergence == "reverse_kl":
        return kl(log_q, log_p)
    log_m = (work.beta * log_p.exp() + (1 - work.beta) * log_q.exp()).log()
    return work.beta * kl(log_p, log_m) + (1 - work.beta) * kl(log_q, log_m)


def _bucket_divergence(log_q: Tensor, teacher: SparseTeacher) -> Tensor:
    """forward_kl over the kept tokens and one bucket for all others."""
    ids, p, log_tail = teacher.ids.long(), teacher.probs.to(log_q.dtype), teacher.log_tail.to(log_q.dtype)
    others = log_q.scatter(1, ids, -float("inf")).logsumexp(-1)
    return (p * (p.log() - log_q.gather(1, ids))).sum() + (log_tail.exp() * (log_tail - others)).sum()


def compiled() -> Way:
    torch._dynamo.reset()
    return torch.compile(eager, dynamic=False)


def liger(work: Workload) -> Way | None:
    """Return Liger's way to the same loss, or None where it has none. Raises NotInstalledError."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise NotInstalledError("not installed: liger-kernel")
    from liger_kernel import transformers as kernels_of_liger  # one that is broken says so itself

    kd, *ce = SHARES[work.terms]
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0}.get(work.divergence, work.beta)
    if work.family == "linear" and work.terms == "ce":
        cross_entropy = kernels_of_liger.LigerFusedLinearCrossEntropyLoss()
        return lambda data, x: cross_entropy(x[1], x[0], data.labels) * sum(ce)
    if work.family == "linear" and work.terms == "kd":
        fused = kernels_of_liger.LigerFusedLinearJSD(jsd_beta=beta, temperature=work.temperature)
        share = kd * work.temperature**2
        return lambda data, x: fused(x[0], x[1], data.teacher.hidden, data.teacher.head.weight, None) * share
    if work.family != "dense" or work.terms == "ce":
        return None
    cross_entropy = kernels_of_liger.LigerCrossEntropyLoss()
    if work.divergence == "forward_kl":
        divergence = kernels_of_liger.LigerKLDIVLoss(reduction="batchmean", log_target=True)
    else:
        divergence = kernels_of_liger.LigerJSD(beta=beta)

    def loss(data: Data, leaves: list[Tensor]) -> Tensor:
        t = work.temperature
        log_q, log_p = (F.log_softmax(x.float() / t, -1) for x in (leaves[0], data.teacher))
        total = divergence(log_q, log_p) * (kd * t * t)
        if any(ce):
            # Overwrites its input by the gradient: log_q was taken before, and OVERWRITES has the logits put back.
            total = total + cross_entropy(leaves[0], data.labels) * sum(ce)
        return total

    return loss


def bare_gemms(data: Data) -> None:
    """The products that no way through the head can save: logits of student and teacher, dX, dW, in one piece each."""
    hidden, weight = (leaf.detach() for leaf in data.leaves)
    logits = hidden @ weight.T
    if isinstance(data.teacher, DenseTeacher):
        data.teacher.hidden @ data.teacher.head.weight.T
    logits @ weight
    logits.T @ hidden


def methods(work: Workload, device: torch.device) -> dict[str, Callable[[], Way | None]]:
    """Name -> what makes the way, eager first: others are compared with it. None: this peer has no such loss."""
    if device.type != "cuda":
        return {"eager": lambda: eager, "ours (reference)": lambda: ours("reference")}
    found = {
        "eager": lambda: eager,
        "ours": lambda: ours("triton"),
        "torch.compile": compiled,
        "liger": lambda: liger(work),
    }
    if work.family in ("dense", "sparse"):
        found["ours (in place)"] = lambda: ours("triton", inplace=True)
    return found


def no_fallback() -> None:
    """Raise where the device refuses a split launch: the row launch takes its place then, whose time is another."""
    from kernels.fused import cooperative

    cooperative.refusals.clear()
    warnings.filterwarnings("error", message=r"the \w+ dense kernel does not fit")


def useful_bytes(work: Workload) -> int | None:
    """The least traffic that reads each logit once and writes its gradient once; None for the linear families."""
    operands = {"dense": 3 if "kd" in work.terms else 2, "sparse": 2}.get(work.family)
    return None if operands is None else operands * getattr(torch, work.dtype).itemsize * work.num_rows * work.vocab


def issued_bytes(work: Workload, launch: str) -> int | None:
    """Count the bytes that our kernel issues: every sweep's reads, and the gradient (kernels/README.md)."""
    useful = useful_bytes(work)
    if useful is None or launch == "cooperative":
        return useful
    operands = useful // (getattr(torch, work.dtype).itemsize * work.num_rows * work.vocab)
    statistics = 2 if work.family == "dense" and work.divergence == "jsd" else 1
    return useful // operands * (operands + statistics * (operands - 1))
