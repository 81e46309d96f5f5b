"""Divergences between the teacher's distribution p and the student's q, one registration each.

    forward_kl   KL(p||q)                               dD/ds = q - p
    reverse_kl   KL(q||p)                               dD/ds = q (log q - log p - KL(q||p))
    jsd          beta KL(p||m) + (1-beta) KL(q||m)      dD/ds = (1-beta) q (log q - log m - KL(q||m)),
                 m = beta p + (1-beta) q

The gradients by s = z / T follow from dD/ds_j = q_j (dD/dq_j - sum_k q_k dD/dq_k). jsd is the generalized
Jensen-Shannon divergence of Agarwal et al. 2024, "On-Policy Distillation of Language Models", equation 1.

Another divergence needs a formula in PyTorch and no more; autograd differentiates it, a chunk of rows at a time:

    def total_variation(log_p, p, log_q):
        return 0.5 * (p - log_q.exp()).abs().sum(-1)

    register_divergence(Divergence("total_variation", dense=total_variation, sparse=total_variation))

The losses then take divergence="total_variation". They compute it by the reference (impl="auto" or "reference");
impl="triton" refuses a divergence that the kernels have no code for (kernels/fused/divergence_tiles.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.contract import LOG_P_FLOOR, Scalar

# gradient(q, factor) -> factor * dD/ds [n, C]; q = e^(log q) [n, C], factor [n, 1] or a number.
Gradient = Callable[[Tensor, Tensor | float], Tensor]
# formula(log_p, p, log_q), or formula(log_p, p, log_q, beta) -> D [n], or (D [n], Gradient).
Formula = Callable[..., Tensor | tuple[Tensor, Gradient]]


class Divergence(NamedTuple):
    """A divergence D(p, q) by row, in nats, without T^2 and without weights: the losses multiply by both.

    `dense` gets log p_T, p_T and log q_T over the vocabulary [n, V], `sparse` the same over the K + 1 buckets of a topk
    teacher [n, K + 1] (the last bucket is all other tokens). Both are fp32, or fp64 for fp64 logits, on the logits'
    device; log p is at least LOG_P_FLOOR, log q may be -inf. They return D [n], differentiable by log q. A formula that
    returns (D, gradient) has its gradient in closed form and is not differentiated; see Gradient.
    """

    name: str
    dense: Formula
    sparse: Formula | None = None  # None: refused with a topk teacher
    needs_beta: bool = False  # a number in [0, 1], the fourth argument of both formulas
    named_betas: tuple[tuple[float, str], ...] = ()  # betas at which another divergence is meant
    kind: int | None = None  # KIND of the Triton kernels; None: they have no code for it


_registered: dict[str, Divergence] = {}


def register_divergence(divergence: Divergence) -> None:
    """Make a divergence known to all losses by its name.

    Raises:
        ValueError: the name is taken, or is no identifier.
    """
    if not divergence.name.isidentifier():
        raise ValueError(f"divergence name {divergence.name!r} is no identifier: use letters, digits and _")
    if divergence.name in _registered:
        raise ValueError(f"divergence {divergence.name!r} is registered already: choose another name")
    _registered[divergence.name] = divergence


def unregister_divergence(name: str) -> None:
    """Forget a divergence, for tests that register one."""
    del _registered[name]


def names() -> tuple[str, ...]:
    """List the registered divergences, those of this package first."""
    return tuple(_registered)


def find(name: str) -> Divergence:
    """Return the divergence of that name. Raises ValueError for a name that is not registered."""
    if name not in _registered:
        raise ValueError(f"unknown divergence {name!r}: choose one of {', '.join(names())}")
    return _registered[name]


def names_by_kind() -> tuple[str, ...]:
    """List the divergences of the Triton kernels; the place of a name is its KIND."""
    kinds = {found.kind: found.name for found in _registered.values() if found.kind is not None}
    return tuple(kinds[kind] for kind in sorted(kinds))


def kind_of(name: str) -> int:
    """Return the KIND of the Triton kernels. Raises ValueError where they have no code for the divergence."""
    kind = find(name).kind
    if kind is None:
        raise ValueError(
            f"impl='triton' has no kernel for divergence {name!r}: use impl='auto' or 'reference', or one of "
            f"{', '.join(names_by_kind())}"
        )
    return kind


def resolve(name: str, beta: Scalar | None) -> tuple[str, Scalar | None]:
    """Check a divergence and its beta; at a beta that means another divergence, return that one.

    jsd is special-cased as elsewhere in the field: beta 0 is forward_kl and beta 1 reverse_kl, where the formula's own
    limits are 0. A beta that is a tensor on a device is not read.

    Raises:
        ValueError: an unknown divergence; a beta missing, out of [0, 1], or given to a divergence that takes none.
    """
    found = find(name)
    if not found.needs_beta:
        if beta is not None:
            takers = [repr(other.name) for other in _registered.values() if other.needs_beta]
            raise ValueError(
                f"beta belongs to divergence={' or '.join(takers)} only; remove it, or replace {name!r} by {takers[0]}"
            )
        return name, None
    meant = dict(found.named_betas)
    if beta is None:
        ends = " and ".join(f"{end}{f' ({meant[end]})' if end in meant else ''}" for end in (0, 1))
        raise ValueError(f"divergence={name!r} needs beta between {ends}, for example beta=0.5")
    if isinstance(beta, float):
        if not 0.0 <= beta <= 1.0:
            ends = ", ".join(f"{value:g} is {other}" for value, other in found.named_betas)
            raise ValueError(f"beta is {beta}; it must lie in [0, 1]" + (f" ({ends})" if ends else ""))
        if beta in meant:
            return meant[beta], None
    return name, beta


def evaluate(
    name: str, log_p: Tensor, p: Tensor, log_q: Tensor, beta: Scalar | None, *, buckets: bool = False
) -> tuple[Tensor, Gradient]:
    """Return D [n] and its gradient by s = z / T, from columns [n, V] or buckets [n, K + 1].

    A gradient that is not in closed form evaluates the formula again, for autograd, when it is asked for.
    """
    divergence = find(name)
    formula = divergence.sparse if buckets else divergence.dense
    if formula is None:
        raise ValueError(f"divergence {name!r} has no formula for a topk teacher: register it with Divergence(sparse=)")
    arguments = () if beta is None else (beta,)
    found = formula(log_p, p, log_q, *arguments)
    value, gradient = found if isinstance(found, tuple) else (found, None)
    if value.shape != log_q.shape[:1]:
        raise ValueError(
            f"the formula of divergence {name!r} returned shape {list(value.shape)}: return one value a row, "
            f"[{len(log_q)}], a sum over the last dimension"
        )
    if gradient is not None:
        return value, gradient

    def by_autograd(q: Tensor, factor: Tensor | float) -> Tensor:
        with torch.enable_grad():
            at = log_q.detach().requires_grad_()
            found = formula(log_p, p, at, *arguments)
            total = (found if isinstance(found, Tensor) else found[0]).sum()
        if not total.requires_grad:  # autograd does not record inside a custom operator, which is what is compiled
            raise RuntimeError(
                f"divergence {name!r} has no gradient in closed form, and its formula was not differentiable here. "
                "Under torch.compile let it return (D, gradient), or call the loss outside of the compiled function; "
                "elsewhere let D depend on log_q without detach()"
            )
        (slope,) = torch.autograd.grad(total, at)
        return (slope - q * slope.sum(-1, keepdim=True)) * factor

    return value, by_autograd


def _forward_kl(log_p: Tensor, p: Tensor, log_q: Tensor) -> tuple[Tensor, Gradient]:
    def gradient(q: Tensor, factor: Tensor | float) -> Tensor:
        return (q * factor).addcmul_(p, torch.as_tensor(factor), value=-1)

    return _forward_value(log_p, p, log_q), gradient


def _forward_kl_of_buckets(log_p: Tensor, p: Tensor, log_q: Tensor) -> tuple[Tensor, Gradient]:
    """Compute _forward_kl from a cache's rounded probabilities, whose sum is not quite 1."""

    def gradient(q: Tensor, factor: Tensor | float) -> Tensor:
        return (q * p.sum(-1, keepdim=True) - p) * factor

    return _forward_value(log_p, p, log_q), gradient


def _forward_value(log_p: Tensor, p: Tensor, log_q: Tensor) -> Tensor:
    # The term is 0 where p is 0, even if log q is -inf; where p is NaN the row is NaN. In place: on a CPU a new [n, V]
    # costs as much as the arithmetic.
    return (log_p - log_q).mul_(p).masked_fill_(p == 0, 0.0).sum(-1)


def _reverse_kl(log_p: Tensor, p: Tensor, log_q: Tensor) -> tuple[Tensor, Gradient]:
    floored = log_q.clamp(min=LOG_P_FLOOR)
    kl_q = (floored.exp() * (floored - log_p)).sum(-1, keepdim=True)
    return kl_q[:, 0], _gradient_against(log_p, log_q, kl_q)


def _jsd(log_p: Tensor, p: Tensor, log_q: Tensor, beta: Scalar) -> tuple[Tensor, Gradient]:
    floored = log_q.clamp(min=LOG_P_FLOOR)
    q = floored.exp()
    # log m from the larger of the two: finite where both underflow to 0, and exact where m is near 1.
    ahead = floored - log_p
    log_m = torch.where(
        ahead > 0,
        floored + torch.log1p(beta * torch.expm1(-ahead.clamp(min=0))),
        log_p + torch.log1p((1 - beta) * torch.expm1(ahead.clamp(max=0))),
    )
    kl_q = (q * (floored - log_m)).sum(-1, keepdim=True)
    kl_p = (p * (log_p - log_m)).sum(-1)
    return beta * kl_p + (1 - beta) * kl_q[:, 0], _gradient_against(log_m, log_q, kl_q, 1 - beta)


def _gradient_against(log_other: Tensor, log_q: Tensor, kl_q: Tensor, share: Scalar = 1.0) -> Gradient:
    """Make the gradient share * q (log q - log_other - kl_q), with kl_q [n, 1] = KL(q || other)."""

    def gradient(q: Tensor, factor: Tensor | float) -> Tensor:
        # The term is 0 where q is 0: with this floor exp(log q) is 0 in every dtype, and the product stays finite.
        slope = log_q.clamp(min=LOG_P_FLOOR).sub_(log_other).sub_(kl_q).mul_(q)
        return slope.mul_(factor * share)

    return gradient


register_divergence(Divergence("forward_kl", dense=_forward_kl, sparse=_forward_kl_of_buckets, kind=0))
register_divergence(Divergence("reverse_kl", dense=_reverse_kl, sparse=_reverse_kl, kind=1))
register_divergence(
    Divergence(
        "jsd", dense=_jsd, sparse=_jsd, needs_beta=True, named_betas=((0.0, "forward_kl"), (1.0, "reverse_kl")), kind=2
    )
)
