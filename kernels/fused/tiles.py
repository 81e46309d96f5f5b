"""Device functions every Triton loss kernel here is made of: the algebra of a *part* of a row.

A part is a tile of columns, or several. Statistics of a part, merge of two parts, divergence terms and gradient of a
tile: a kernel adds only who reads which columns, and how parts reach each other. Exponents are taken of (x - max) and
divided by T afterwards: the subtraction is where rounding would hurt, and one max serves every temperature. The
formulas are those of kernels/reference.py.

Statistics are kept for each *group* of 16 bytes: the columns that one thread loads at once. A group has its own max, so
a sweep needs no shuffle and no barrier until its end, for one exponential more a group (1/8 a logit in bf16). A part
that is one tile in registers has one max for all columns (whole_part).
"""

import triton.language as tl

from kernels.fused.divergence_tiles import REVERSE_KL, add_cross, moved_cross
from kernels.fused.language import LINE_BYTES, LOWEST, exps, jit

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

NO_COLUMN = tl.constexpr(2147483647)  # past every column


@jit
def merge_max(best, arg, other_best, other_arg):
    """Merge the max of two parts, with its lowest column."""
    takes = (other_best > best) | ((other_best == best) & (other_arg < arg))
    return tl.where(takes, other_best, best), tl.where(takes, other_arg, arg)


@jit
def tile_max(x, cols):
    best = tl.max(x, 0)
    arg = tl.min(tl.where(x == best, cols, NO_COLUMN), 0)
    return best, arg


@jit
def tile_columns(BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Return [BLOCK / GROUP, GROUP] column offsets: a row of this is one group, and lies in one thread."""
    return tl.arange(0, BLOCK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@jit
def starts_line(lanes, logits):
    """Tell the groups, one of each line, whose threads ask L2 for it; `lanes` are the groups' first columns."""
    return lanes % (LINE_BYTES * 8 // logits.dtype.element_ty.primitive_bitwidth) == 0


@jit
def no_columns(NUM: tl.constexpr):
    """Return statistics of NUM groups (or parts) without a column: Z_TOP to U_LEAST."""
    zero = tl.zeros([NUM], tl.float32)
    top = zero + LOWEST
    first = tl.zeros([NUM], tl.int32)
    return top, first, zero, zero, top, first, zero, zero, zero, zero, zero + float("inf")


@jit
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
            cross = add_cross(cross, x, y, z_et, u_et, z_fall, u_fall, z_ft, u_ft, z_dt_old, u_dt, KIND)
            if KIND == REVERSE_KL:
                if u.shape[1] == 4:  # fp32, of which triton 3.7 compiles no tl.min here; -u costs an instruction
                    low = tl.minimum(low, -tl.max(tl.where(keep, -u, float("-inf")), 1))
                else:
                    low = tl.minimum(low, tl.min(tl.where(keep, u, float("inf")), 1))
        u_d1, u_dt = _two_sums(u_d1, u_dt, f1, u_ft, e1, u_et, T)
    return z_top, z_at, z_d1, z_dt, u_top, u_at, u_d1, u_dt, moment, cross, low


@jit
def _two_sums(d1, dt, f1, ft, e1, et, T: tl.constexpr):
    d1 = d1 * f1 + tl.sum(e1, 1)
    if T == 1:
        dt = d1
    else:
        dt = dt * ft + tl.sum(et, 1)
    return d1, dt


@jit
def merge_all(stats, inv_t, KIND: tl.constexpr, T: tl.constexpr):
    """Merge one statistic of many (groups of a part, or parts of a row); the columns of a max are here whole columns.

    Example, T = 1, two parts of a row's teacher: max 1 with sum 1.5, and max 0 with sum 2. Merged: max 1, sum
    1.5 + 2 / e = 2.2358.
    """
    z_tops, z_columns, z_d1, z_dt, u_tops, u_columns, u_d1, u_dt, moment, cross, low = stats
    z_top, z_column = tile_max(z_tops, z_columns)
    u_top, u_column = tile_max(u_tops, u_columns)
    z_fall, u_fall = z_tops - z_top, u_tops - u_top
    z_f1, z_ft = exps(z_fall, inv_t, T)
    u_f1, u_ft = exps(u_fall, inv_t, T)
    cross = moved_cross(cross, z_fall, u_fall, z_ft, u_ft, z_dt, u_dt, KIND)
    moment = tl.sum((moment + u_d1 * u_fall) * u_f1, 0)
    z_d1, z_dt = tl.sum(z_d1 * z_f1, 0), tl.sum(z_dt * z_ft, 0)
    u_d1, u_dt = tl.sum(u_d1 * u_f1, 0), tl.sum(u_dt * u_ft, 0)
    return z_top, z_column, z_d1, z_dt, u_top, u_column, u_d1, u_dt, moment, tl.sum(cross, 0), tl.min(low, 0)


@jit
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
    """Compute merge_all's fields of a part that is one tile in registers (forward_kl): one max for all columns, one 2^x
    a logit.
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
