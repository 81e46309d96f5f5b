"""Device functions of each divergence: sums while a row is swept, D, and the gradient, over columns and over buckets.

A divergence of the Triton kernels has a number, KIND (kernels/divergences.py), and its branch in each function here,
chosen when a kernel is compiled. sweeps.row_divergence makes D of a row's sums, by a sweep of its own where they do not
suffice. Formulas are those of kernels/divergences.py.
"""

import triton.language as tl

from kernels.divergences import kind_of
from kernels.fused.language import FLOOR, FLOOR_BITS, LN2, LOG2E, TINY, bits_of, jit, log2_of, log_of_rest, one_less_exp

FORWARD_KL, REVERSE_KL, JSD = (tl.constexpr(kind_of(name)) for name in ("forward_kl", "reverse_kl", "jsd"))


@jit
def add_cross(cross, x, y, z_et, u_et, z_fall, u_fall, z_ft, u_ft, z_dt_old, u_dt_old, KIND: tl.constexpr):
    """Update CROSS by one more tile [groups, any]; *_fall and *_ft are what a new max does to the sums so far."""
    if KIND == FORWARD_KL:
        cross = (cross + u_dt_old * (u_fall - z_fall)) * u_ft + tl.sum(u_et * (y - x), 1)
    elif KIND == REVERSE_KL:
        cross = (cross + z_dt_old * (z_fall - u_fall)) * z_ft + tl.sum(z_et * (x - y), 1)
    return cross


@jit
def moved_cross(cross, z_fall, u_fall, z_ft, u_ft, z_dt, u_dt, KIND: tl.constexpr):
    """Rescale CROSS of groups or parts to the maxima of all of them; merge_all adds them up."""
    if KIND == FORWARD_KL:
        return (cross + u_dt * (u_fall - z_fall)) * u_ft
    else:
        return (cross + z_dt * (z_fall - u_fall)) * z_ft


@jit
def exact_terms(x, y, z_bits, u_bits, inv_t, beta, KIND: tl.constexpr, T: tl.constexpr, PTX: tl.constexpr):
    """Sum each group's KL(p || m) and KL(q || p or m), in bits, both normalisers known (reverse_kl and jsd).

    x = z - max, y = u - max; z_bits and u_bits are log2 of the sums of e^(x/T) and e^(y/T). The floor under log p, and
    under log q, makes a column of -inf one of probability 0.
    """
    log_q = tl.maximum(bits_of(x, inv_t, T) - z_bits, FLOOR_BITS, propagate_nan=tl.PropagateNan.ALL)
    log_p = tl.maximum(bits_of(y, inv_t, T) - u_bits, FLOOR_BITS, propagate_nan=tl.PropagateNan.ALL)
    q = tl.exp2(log_q)
    if KIND == REVERSE_KL:
        return 0.0, tl.sum(q * (log_q - log_p), 1)
    else:
        p = tl.exp2(log_p)
        log_m = log_mixture(p * beta + q * (1.0 - beta), PTX)
        return tl.sum(p * (log_p - log_m), 1), tl.sum(q * (log_q - log_m), 1)


@jit
def log_mixture(m, PTX: tl.constexpr):
    """Compute log2 m, finite where both probabilities have underflowed, since it is then multiplied by 0."""
    return log2_of(tl.maximum(m, TINY, propagate_nan=tl.PropagateNan.ALL), PTX)


@jit
def pull_factors(z_dt, u_dt, kd, kl_q, beta, KIND: tl.constexpr):
    """List what tile_pull multiplies and adds, once a row: reciprocals and logarithms of the sums of e^(x/T), e^(y/T).

    Return (of_q, offset, of_p, mix_q, u_bits). forward_kl: the pull is of_q e^(x/T) - of_p e^(y/T). The others':
    e^(x/T) (of_q (x/T - other) - offset), in bits, where other is y/T or log2(mix_q e^(x/T) + of_p e^(y/T)).
    """
    if KIND == FORWARD_KL:
        return kd / z_dt, 0.0, kd / u_dt, 0.0, 0.0
    else:
        u_bits = tl.log2(u_dt)
        offset = tl.log2(z_dt) + kl_q * LOG2E
        if KIND == REVERSE_KL:
            of_q = kd / z_dt * LN2
            return of_q, of_q * offset, 0.0, 0.0, u_bits
        else:
            of_q = (1.0 - beta) * kd / z_dt * LN2
            return of_q, of_q * offset, beta / u_dt, (1.0 - beta) / z_dt, u_bits


@jit
def tile_pull(q_bits, p_bits, factors, KIND: tl.constexpr, PTX: tl.constexpr):
    """Compute e^(x/T), a and b of any columns: kd * dD/ds is a e^(x/T) - b, s = z / T.

    q_bits is x/T in bits, x = z - max, p_bits the same of the teacher; factors are those of pull_factors.
    """
    of_q, offset, of_p, mix_q, u_bits = factors
    if KIND == FORWARD_KL:
        return tl.exp2(q_bits), of_q, of_p * tl.exp2(p_bits)
    else:
        # Finite, so that the term is 0 where q is; NaN stays NaN.
        q_bits = tl.maximum(q_bits, FLOOR_BITS, propagate_nan=tl.PropagateNan.ALL)
        et = tl.exp2(q_bits)
        if KIND == REVERSE_KL:
            other = tl.maximum(p_bits - u_bits, FLOOR_BITS, propagate_nan=tl.PropagateNan.ALL)
        else:
            other = log_mixture(mix_q * et + of_p * tl.exp2(p_bits), PTX)
        return et, of_q * (q_bits - other) - offset, 0.0


@jit
def log_bucket_mixture(log_q, log_p, beta):
    """Compute log(beta p + (1 - beta) q) to full precision: the rest's is near 0, and a divergence is its remainder."""
    ahead = log_q - log_p
    share = tl.where(ahead > 0.0, beta, 1.0 - beta)  # of the smaller of the two
    larger = tl.maximum(log_q, log_p, propagate_nan=tl.PropagateNan.ALL)
    return larger + log_of_rest(share * one_less_exp(tl.abs(ahead)))


@jit
def bucket_divergence(log_q, log_p, p, beta, inside, KIND: tl.constexpr):
    """Sum over buckets KL(p || .) and KL(q || .): against each other or, for jsd, against the mixture."""
    if KIND == FORWARD_KL:
        return tl.sum(tl.where(p == 0.0, 0.0, p * (log_p - log_q)), 0), 0.0
    else:
        log_q = tl.maximum(log_q, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        q = tl.where(inside, tl.exp(log_q), 0.0)
        if KIND == REVERSE_KL:
            return 0.0, tl.sum(q * (log_q - log_p), 0)
        else:
            log_m = log_bucket_mixture(log_q, log_p, beta)
            return tl.sum(p * (log_p - log_m), 0), tl.sum(q * (log_q - log_m), 0)


@jit
def bucket_pull(log_q, log_p, p, mass, kl_q, beta, KIND: tl.constexpr):
    """Compute dD/ds of a bucket as a whole, s = z / T."""
    if KIND == FORWARD_KL:
        return mass * tl.exp(log_q) - p
    else:
        log_q = tl.maximum(log_q, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        q = tl.exp(log_q)
        if KIND == REVERSE_KL:
            return q * (log_q - log_p - kl_q)
        else:
            return (1.0 - beta) * q * (log_q - log_bucket_mixture(log_q, log_p, beta) - kl_q)
