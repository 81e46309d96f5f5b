"""Device functions every Triton loss kernel here is made of: the algebra of a *part* of a row.

A part is a tile of columns, or several. Statistics of a part, merge of two parts, divergence terms and gradient of a
tile: a kernel adds only who reads which columns, and how parts reach each other. Exponents are taken of (x - max) and
divided by T afterwards: the subtraction is where rounding would hurt, and one max serves every temperature. The
formulas are those of kernels/reference.py.

Statistics are kept for each *group* of 16 bytes: the columns that one thread loads at once. A group has its own max, so
a sweep needs no shuffle and no barrier until its end, for one exponential more a group (1/8 a logit in bf16). A part
that is one tile in registers has one max for all of it (whole_part).
"""

import triton
import triton.language as tl

from kernels.contract import LOG_P_FLOOR
from kernels.divergences import kind_of

FORWARD_KL, REVERSE_KL, JSD = (tl.constexpr(kind_of(name)) for name in ("forward_kl", "reverse_kl", "jsd"))
FLOOR = tl.constexpr(LOG_P_FLOOR)
# Below every logit that is not -inf, and finite: a tile that is masked out as a whole must not make inf - inf.
LOWEST = tl.constexpr(-1.0e30)
TINY = tl.constexpr(1.1754944e-38)  # smallest normal fp32
LOG2E = tl.constexpr(1.4426950408889634)  # 2^x is the instruction; e^x costs more than a multiplication on top

# Places in the tuple of a part's or a row's statistics. x = z - max of the student, y = u - max of the teacher.
NUM_STATS = tl.constexpr(14)
(
    Z_TOP,  # max of the student's logits
    Z_COLUMN,  # its lowest column (of groups: the start of the tile it was first seen in)
    Z_SUM,  # sum e^x
    Z_SUM_T,  # sum e^(x/T)
    U_TOP,  # the same four of the teacher
    U_COLUMN,
    U_SUM,
    U_SUM_T,
    MOMENT,  # sum e^y y, from which the teacher's entropy comes without cancellation
    CROSS,  # sum e^(y/T) (y - x), so that forward_kl needs no second sweep (reverse_kl: x and y change places)
    U_LEAST,  # least logit of the teacher (reverse_kl)
    Z_CHOICE,  # from here on of a part or a row only (sweeps.measure): the student's logit at the teacher's choice
    Z_LABEL,  # its logit at the label; 0 in a part that does not have it
    BLOCKED,  # largest logit of the teacher where the student's is -inf
) = (tl.constexpr(place) for place in range(NUM_STATS.value))


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
        return tl.exp2(x * LOG2E), tl.exp2(x * (inv_t * LOG2E))
    else:
        tempered = tl.exp2(x * (LOG2E / T))
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
def tile_logs(z, z_top, z_log_dt, u, u_top, u_log_dt, inv_t, keep):
    """log q_T, log p_T (floored) and p_T of a tile; what lies past the vocabulary has probability 0."""
    log_q = (z - z_top) * inv_t - z_log_dt
    log_p = tl.maximum((u - u_top) * inv_t - u_log_dt, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    p = tl.where(keep, tl.exp2(log_p * LOG2E), 0.0)
    return log_q, log_p, p


@triton.jit
def log_mixture(p, q, beta):
    """log(beta p + (1 - beta) q), finite where both have underflowed, since it is then multiplied by 0."""
    return tl.log(tl.maximum(beta * p + (1.0 - beta) * q, TINY, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def tile_divergence(log_q, log_p, p, beta, keep, KIND: tl.constexpr, AXIS: tl.constexpr = 0):
    """A tile's sums over AXIS of KL(p || .) and KL(q || .), against each other or, for jsd, against the mixture."""
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


@triton.jit
def tile_columns(BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """[BLOCK / GROUP, GROUP] column offsets: a row of this is one group, and lies in one thread."""
    return tl.arange(0, BLOCK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def no_columns(NUM: tl.constexpr):
    """Statistics of NUM groups (or parts) without a column: Z_TOP to U_LEAST."""
    zero = tl.zeros([NUM], tl.float32)
    top = zero + LOWEST
    first = tl.zeros([NUM], tl.int32)
    return top, first, zero, zero, top, first, zero, zero, zero, zero, zero + float("inf")


@triton.jit
def add_tile(
    stats, z, u, keep, start, inv_t, KIND: tl.constexpr, T: tl.constexpr, TEACHER: tl.constexpr, KD: tl.constexpr
):
    """Take a tile [groups, any] into the groups' statistics; columns that are not kept hold padding already.

    `stats` holds the fields Z_TOP to U_LEAST. A logit of -inf makes CROSS or MOMENT NaN or inf: nothing is spent here
    on what is rare.
    """
    z_top, z_at, z_d1, z_dt, u_top, u_at, u_d1, u_dt, moment, cross, low = stats
    best = tl.max(z, 1)
    z_at = tl.where(best > z_top, start, z_at)
    z_fall = z_top
    z_top = tl.maximum(z_top, best)
    z_fall = z_fall - z_top
    f1, z_ft = exps(z_fall, inv_t, T)
    x = z - z_top[:, None]
    e1, z_et = exps(x, inv_t, T)
    z_dt_old = z_dt
    z_d1, z_dt = _two_sums(z_d1, z_dt, f1, z_ft, e1, z_et, T)
    if TEACHER:
        best = tl.max(u, 1)
        u_at = tl.where(best > u_top, start, u_at)
        u_fall = u_top
        u_top = tl.maximum(u_top, best)
        u_fall = u_fall - u_top
        f1, u_ft = exps(u_fall, inv_t, T)
        y = u - u_top[:, None]
        e1, u_et = exps(y, inv_t, T)
        moment = (moment + u_d1 * u_fall) * f1 + tl.sum(e1 * y, 1)
        if KD:
            if KIND == FORWARD_KL:
                cross = (cross + u_dt * (u_fall - z_fall)) * u_ft + tl.sum(u_et * (y - x), 1)
            elif KIND == REVERSE_KL:
                cross = (cross + z_dt_old * (z_fall - u_fall)) * z_ft + tl.sum(z_et * (x - y), 1)
                low = tl.minimum(low, tl.min(tl.where(keep, u, float("inf")), 1))
        u_d1, u_dt = _two_sums(u_d1, u_dt, f1, u_ft, e1, u_et, T)
    return z_top, z_at, z_d1, z_dt, u_top, u_at, u_d1, u_dt, moment, cross, low


@triton.jit
def _two_sums(d1, dt, f1, ft, e1, et, T: tl.constexpr):
    d1 = d1 * f1 + tl.sum(e1, 1)
    if T == 1:
        dt = d1
    else:
        dt = dt * ft + tl.sum(et, 1)
    return d1, dt


@triton.jit
def merge_all(stats, inv_t, KIND: tl.constexpr, T: tl.constexpr):
    """One statistic of many (groups of a part, or parts of a row); the columns of a max are here whole columns.

    Example, T = 1, two parts of a row's teacher: max 1 with sum 1.5, and max 0 with sum 2. Merged: max 1, sum
    1.5 + 2 / e = 2.2358.
    """
    z_tops, z_columns, z_d1, z_dt, u_tops, u_columns, u_d1, u_dt, moment, cross, low = stats
    z_top, z_column = tile_max(z_tops, z_columns)
    u_top, u_column = tile_max(u_tops, u_columns)
    z_fall, u_fall = z_tops - z_top, u_tops - u_top
    z_f1, z_ft = exps(z_fall, inv_t, T)
    u_f1, u_ft = exps(u_fall, inv_t, T)
    if KIND == FORWARD_KL:
        cross = (cross + u_dt * (u_fall - z_fall)) * u_ft
    else:
        cross = (cross + z_dt * (z_fall - u_fall)) * z_ft
    moment = tl.sum((moment + u_d1 * u_fall) * u_f1, 0)
    z_d1, z_dt = tl.sum(z_d1 * z_f1, 0), tl.sum(z_dt * z_ft, 0)
    u_d1, u_dt = tl.sum(u_d1 * u_f1, 0), tl.sum(u_dt * u_ft, 0)
    return z_top, z_column, z_d1, z_dt, u_top, u_column, u_d1, u_dt, moment, tl.sum(cross, 0), tl.min(low, 0)


@triton.jit
def whole_part(
    z,
    u,
    start,
    inv_t,
    T: tl.constexpr,
    TEACHER: tl.constexpr,
    KD: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """merge_all's fields of a part that is one tile in registers (forward_kl): one max for all of it, one 2^x a
    logit.
    """
    columns = start + tl.arange(0, BLOCK // GROUP) * GROUP
    z_top, z_column = tile_max(tl.max(z, 1), columns)
    z_top = tl.maximum(z_top, LOWEST)  # finite where all of the part is -inf
    e1, et = exps(z - z_top, inv_t, T)
    z_d1 = tl.sum(tl.sum(e1, 1), 0)
    z_dt = z_d1
    if T != 1:
        z_dt = tl.sum(tl.sum(et, 1), 0)
    u_top, u_column, u_d1, u_dt, moment, cross = LOWEST, 0, 0.0, 0.0, 0.0, 0.0
    if TEACHER:
        u_top, u_column = tile_max(tl.max(u, 1), columns)
        u_top = tl.maximum(u_top, LOWEST)
        y = u - u_top
        e1, et = exps(y, inv_t, T)
        u_d1 = tl.sum(tl.sum(e1, 1), 0)
        u_dt = u_d1
        if T != 1:
            u_dt = tl.sum(tl.sum(et, 1), 0)
        moment = tl.sum(tl.sum(e1 * y, 1), 0)
        if KD:
            cross = tl.sum(tl.sum(et * (y - (z - z_top)), 1), 0)
    return z_top, z_column, z_d1, z_dt, u_top, u_column, u_d1, u_dt, moment, cross, 0.0


@triton.jit
def gradient_factors(stats, kd, ce, kl_q):
    """`factors` of tile_gradient from a row's statistics."""
    return kd, ce, stats[Z_TOP], stats[Z_SUM], stats[Z_SUM_T], stats[U_TOP], stats[U_SUM_T], kl_q


@triton.jit
def tile_gradient(z, u, factors, inv_t, beta, KIND: tl.constexpr, T: tl.constexpr, KD: tl.constexpr, CE: tl.constexpr):
    """dL/dz of any columns, but for the -1 at the label and at the teacher's choice. Shares e^(x/T) between all terms.

    `factors`: of kd and of all cross-entropies; the student's max, sum e^x, sum e^(x/T); the teacher's max and sum
    e^(y/T); KL(q || p or m).
    """
    kd, ce, z_top, z_d1, z_dt, u_top, u_dt, kl_q = factors
    x = z - z_top
    e1, et = exps(x, inv_t, T)
    if KD:
        y = u - u_top
        if KIND == FORWARD_KL:
            _, teacher = exps(y, inv_t, T)
            g = (kd / z_dt) * et - (kd / u_dt) * teacher
        else:
            log_q = x * inv_t - tl.log(z_dt)
            if KIND == REVERSE_KL:
                other = tl.maximum(y * inv_t - tl.log(u_dt), FLOOR, propagate_nan=tl.PropagateNan.ALL)
                factor = kd / z_dt
            else:
                _, teacher = exps(y, inv_t, T)
                other = log_mixture(teacher / u_dt, et / z_dt, beta)
                factor = (1.0 - beta) * kd / z_dt
            # Where q is 0 the term is 0, also if log q is -inf; NaN stays NaN.
            g = factor * tl.where(et == 0.0, 0.0, et * (log_q - other - kl_q))
        if CE:
            g += (ce / z_d1) * e1
    else:
        g = (ce / z_d1) * e1
    return g
