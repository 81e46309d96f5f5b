"""Device functions of each divergence: sums while a row is swept, D, and the gradient, over columns and over buckets.

A divergence of the Triton kernels has a number, KIND (kernels/divergences.py), and its branch in each function here,
chosen when a kernel is compiled. sweeps.row_divergence makes D of a row's sums, by a sweep of its own where they do not
suffice. Formulas are those of kernels/divergences.py.
"""

import triton.language as tl

from kernels.divergences import kind_of
from kernels.fused.language import FLOOR, LOG2E, TINY, exps, jit, log_of_rest, one_less_exp

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
def tile_logs(z, z_top, z_log_dt, u, u_top, u_log_dt, inv_t, keep):
    """Compute log q_T, log p_T (floored) and p_T of a tile; columns past the vocabulary have probability 0."""
    log_q = (z - z_top) * inv_t - z_log_dt
    log_p = tl.maximum((u - u_top) * inv_t - u_log_dt, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    p = tl.where(keep, tl.exp2(log_p * LOG2E), 0.0)
    return log_q, log_p, p


@jit
def log_mixture(p, q, beta):
    """Compute log(beta p + (1 - beta) q), finite where both have underflowed, since it is then multiplied by 0."""
    return tl.log(tl.maximum(beta * p + (1.0 - beta) * q, TINY, propagate_nan=tl.PropagateNan.ALL))


@jit
def tile_divergence(log_q, log_p, p, beta, keep, KIND: tl.constexpr, AXIS: tl.constexpr):
    """Sum a tile over AXIS: KL(p || .) and KL(q || .), against each other or, for jsd, against the mixture."""
    if KIND == FORWARD_KL:
        return tl.sum(tl.where(p == 0.0, 0.0, p * (log_p - log_q)), AXIS), 0.0
    else:
        log_q = tl.maximum(log_q, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        q = tl.where(keep, tl.exp2(log_q * LOG2E), 0.0)
        if KIND == REVERSE_KL:
            return 0.0, tl.sum(q * (log_q - log_p), AXIS)
        else:
            log_m = log_mixture(p, q, beta)
            return tl.sum(p * (log_p - log_m), AXIS), tl.sum(q * (log_q - log_m), AXIS)


@jit
def tile_pull(x, y, et, z_dt, u_dt, kd, kl_q, inv_t, beta, KIND: tl.constexpr, T: tl.constexpr):
    """Compute kd * dD/ds of any columns, s = z / T.

    x = z - max, y = u - max, et = e^(x/T); z_dt and u_dt are the sums of e^(x/T) and e^(y/T), kl_q is KL(q || p or m).
    """
    if KIND == FORWARD_KL:
        _, teacher = exps(y, inv_t, T)
        return (kd / z_dt) * et - (kd / u_dt) * teacher
    else:
        log_q = x * inv_t - tl.log(z_dt)
        if KIND == REVERSE_KL:
            other = tl.maximum(y * inv_t - tl.log(u_dt), FLOOR, propagate_nan=tl.PropagateNan.ALL)
            factor = kd / z_dt
        else:
            _, teacher = exps(y, inv_t, T)
            other = log_mixture(teacher / u_dt, et / z_dt, beta)
            factor = (1.0 - beta) * kd / z_dt
        # The term is 0 where q is 0, also if log q is -inf; NaN stays NaN.
        return factor * tl.where(et == 0.0, 0.0, et * (log_q - other - kl_q))


@jit
def log_bucket_mixture(log_q, log_p, beta):
    """Compute log(beta p + (1 - beta) q) to full precision: the rest's is near 0, and a divergence is its remainder."""
    ahead = log_q - log_p
    share = tl.where(ahead > 0.0, beta, 1.0 - beta)  # of the smaller of the two
    larger = tl.maximum(log_q, log_p, propagate_nan=tl.PropagateNan.ALL)
    return larger + log_of_rest(share * one_less_exp(tl.abs(ahead)))


@jit
def bucket_divergence(log_q, log_p, p, beta, inside, KIND: tl.constexpr):
    """Sum over buckets KL(p || .) and KL(q || .), as tile_divergence over columns."""
    if KIND != JSD:
        return tile_divergence(log_q, log_p, p, beta, inside, KIND, 0)
    else:
        log_q = tl.maximum(log_q, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        q = tl.where(inside, tl.exp(log_q), 0.0)
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
