"""Device functions every Triton loss kernel here is made of: the algebra of a *part* of a row.

A part is a tile of columns, or several. Statistics of a part, merge of two parts, divergence terms and gradient of a
tile: a kernel adds only who reads which columns, and how parts reach each other. Exponents are taken of (x - max) and
divided by T afterwards: the subtraction is where rounding would hurt, and one max serves every temperature. Sums are
rescaled by one scalar a tile, never a lane. The formulas are those of kernels/reference.py.
"""

import triton
import triton.language as tl

from kernels.contract import DIVERGENCES, LOG_P_FLOOR

FORWARD_KL, REVERSE_KL = (tl.constexpr(DIVERGENCES.index(name)) for name in ("forward_kl", "reverse_kl"))  # else jsd
FLOOR = tl.constexpr(LOG_P_FLOOR)
# Below every logit that is not -inf, and finite: a tile that is masked out as a whole must not make inf - inf.
LOWEST = tl.constexpr(-1.0e30)
TINY = tl.constexpr(1.1754944e-38)  # smallest normal fp32


@triton.jit
def power(x, T: tl.constexpr):
    """x^T for T in {1, 2, 3, 4}: e^s from e^(s/T) with multiplications in place of a second exponential."""
    if T == 1:
        return x
    elif T == 2:
        return x * x
    elif T == 3:
        return x * x * x
    else:
        return (x * x) * (x * x)


@triton.jit
def exps(x, inv_t, T: tl.constexpr):
    """e^x and e^(x/T); T = 0 stands for a temperature known only at run time."""
    if T == 0:
        return tl.exp(x), tl.exp(x * inv_t)
    else:
        tempered = tl.exp(x * inv_t)
        return power(tempered, T), tempered


@triton.jit
def merge_max(best, arg, other_best, other_arg):
    """Max and its lowest column over two parts."""
    takes = (other_best > best) | ((other_best == best) & (other_arg < arg))
    return tl.where(takes, other_best, best), tl.where(takes, other_arg, arg)


@triton.jit
def tile_max(x, cols):
    best = tl.max(x, 0)
    arg = tl.min(tl.where(x == best, cols, 2147483647), 0)
    return best, arg


@triton.jit
def student_part(top, d1, dt, z, inv_t, T: tl.constexpr):
    """Add a tile to (max, sum e^(z-max), sum e^((z-max)/T)); `top` already covers the tile, the sums do not."""
    e1, et = exps(z - top, inv_t, T)
    return d1 + tl.sum(e1, 0), dt + tl.sum(et, 0)


@triton.jit
def teacher_part(top, d1, dt, moment, u, inv_t, T: tl.constexpr):
    """As for the student, and sum e^(u-max) (u-max), from which the entropy comes without cancellation."""
    x = u - top
    e1, et = exps(x, inv_t, T)
    return d1 + tl.sum(e1, 0), dt + tl.sum(et, 0), moment + tl.sum(tl.where(e1 > 0.0, e1 * x, 0.0), 0)


@triton.jit
def rescale(old, new, d1, dt, inv_t, T: tl.constexpr):
    f1, ft = exps(old - new, inv_t, T)
    return d1 * f1, dt * ft, f1


@triton.jit
def tile_logs(z, z_top, z_log_dt, u, u_top, u_log_dt, inv_t, keep):
    """log q_T, log p_T (floored) and p_T of a tile; what lies past the vocabulary has probability 0."""
    log_q = (z - z_top) * inv_t - z_log_dt
    log_p = tl.maximum((u - u_top) * inv_t - u_log_dt, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    p = tl.where(keep, tl.exp(log_p), 0.0)
    return log_q, log_p, p


@triton.jit
def log_mixture(p, q, beta):
    """log(beta p + (1 - beta) q), finite where both have underflowed, since it is then multiplied by 0."""
    return tl.log(tl.maximum(beta * p + (1.0 - beta) * q, TINY, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def tile_divergence(log_q, log_p, p, beta, keep, KIND: tl.constexpr):
    """A tile's sums of KL(p || .) and KL(q || .), against each other or, for jsd, against the mixture."""
    if KIND == FORWARD_KL:
        return tl.sum(tl.where(p > 0.0, p * (log_p - log_q), 0.0), 0), 0.0
    else:
        log_q = tl.maximum(log_q, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        q = tl.where(keep, tl.exp(log_q), 0.0)
        if KIND == REVERSE_KL:
            return 0.0, tl.sum(q * (log_q - log_p), 0)
        else:
            log_m = log_mixture(p, q, beta)
            return tl.sum(p * (log_p - log_m), 0), tl.sum(q * (log_q - log_m), 0)


@triton.jit
def tile_kd_gradient(log_q, log_p, p, kl_q, beta, keep, KIND: tl.constexpr):
    """dD/ds of a tile, s = z / T (formulas: kernels/reference.py)."""
    if KIND == FORWARD_KL:
        return tl.where(keep, tl.exp(log_q), 0.0) - p
    else:
        log_q = tl.maximum(log_q, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        q = tl.where(keep, tl.exp(log_q), 0.0)
        if KIND == REVERSE_KL:
            return q * (log_q - log_p - kl_q)
        else:
            return (1.0 - beta) * q * (log_q - log_mixture(p, q, beta) - kl_q)


@triton.jit
def entropy_factor(n, ends):
    """An entropy factor: linear from its value at n = 0 to its value at n = 1."""
    first = tl.load(ends)
    return first + (tl.load(ends + 1) - first) * n
