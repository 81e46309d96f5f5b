"""Device functions that the launches of the dense kernel share: sweeps over a part, built from the tiles of tiles.py.

A *part* is a range of columns [start, stop) of one row: the whole row where one program has it (dense.py), a slice
where several do (cooperative.py). `measure` gives a part's statistics, `merge_parts` joins them, rows.py makes of a
row's statistics its outputs and the factors of its gradient, `sweep_gradient` writes a part of that.

A tile is masked by whole groups of 16 bytes, one comparison for each: so every access is 16 bytes wide however many
columns the vocabulary has, so long as rows start at multiples of 16 elements. What is left of a row, less than a group,
is a narrow tile of its own: one column a group.
"""

import triton.language as tl

from kernels.fused.divergence_tiles import FORWARD_KL, REVERSE_KL, exact_terms
from kernels.fused.language import FLOOR, LN2, exps, fetch_ahead, fp32_of, jit
from kernels.fused.tiles import (
    BLOCKED,
    CROSS,
    NO_COLUMN,
    U_LEAST,
    U_SUM_T,
    U_TOP,
    Z_SUM_T,
    Z_TOP,
    add_tile,
    merge_all,
    no_columns,
    starts_line,
    tile_columns,
)

_INF = tl.constexpr(float("inf"))
# Below LOWEST, so never a max, and finite, so that 0 times it is 0.
PADDING = tl.constexpr(-2.0e30)


@jit
def padding_of(logits):
    """Return the filling of a tile past its part, in the logits' own dtype; `widened` turns it into PADDING."""
    if logits.dtype.element_ty == tl.float16:
        return -65504.0
    else:
        return PADDING


@jit
def widened(x, keep):
    """Widen a tile to fp32, with PADDING where it is not kept.

    fp16 has no such number, and may have rows of nothing above its least.
    """
    if x.dtype == tl.float16:
        return tl.where(keep, x.to(tl.float32), PADDING)
    else:
        return x.to(tl.float32)


@jit
def sweep_statistics(
    student,
    teacher,
    start,
    stop,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    TEACHER: tl.constexpr,
    KD: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    AHEAD: tl.constexpr,  # columns between what is asked of L2 and what is read: whole tiles
    PTX: tl.constexpr,
    AGAIN: tl.constexpr,  # what is read here is read again soon
):
    """Compute merge_all's statistics of [start, stop), reading every logit once. No warp waits before the end."""
    tl.static_assert(BLOCK >= GROUP * GROUP, "the columns that fill no group take a group each")
    HINT: tl.constexpr = "evict_last" if AGAIN else "evict_first"  # pyright: ignore[reportAssignmentType]
    offsets = tile_columns(BLOCK, GROUP)
    lanes = tl.arange(0, BLOCK // GROUP) * GROUP
    stats = no_columns(BLOCK // GROUP)
    whole = start + (stop - start) // BLOCK * BLOCK
    most = tl.where(starts_line(lanes, student), stop - AHEAD - lanes, -NO_COLUMN)
    for first in range(start, whole, BLOCK):
        if PTX:
            fetch_ahead(student + first + lanes + AHEAD, first, most, AGAIN)
            if TEACHER:
                fetch_ahead(teacher + first + lanes + AHEAD, first, most, AGAIN)
        z = fp32_of(tl.load(student + first + offsets, eviction_policy=HINT), PTX)  # pyright: ignore[reportArgumentType]
        u = z
        if TEACHER:
            u = fp32_of(tl.load(teacher + first + offsets, eviction_policy=HINT), PTX)  # pyright: ignore[reportArgumentType]
        stats = add_tile(stats, z, u, True, first, inv_t, KIND, T, TEACHER, KD)
    z_tops, z_at, z_d1, z_dt, u_tops, u_at, u_d1, u_dt, moment, cross, low = _add_rest(
        stats, student, teacher, whole, stop, inv_t, KIND, T, TEACHER, KD, BLOCK, GROUP
    )
    stats = (z_tops, z_at + lanes, z_d1, z_dt, u_tops, u_at + lanes, u_d1, u_dt, moment, cross, low)
    return merge_all(stats, inv_t, KIND, T)


@jit
def _add_rest(
    stats,
    student,
    teacher,
    first,
    stop,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    TEACHER: tl.constexpr,
    KD: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Add [first, stop), less than a tile: whole groups, then the columns that fill none, a group each."""
    groups = tl.arange(0, BLOCK // GROUP)
    if first < stop:
        whole = first + tile_columns(BLOCK, GROUP)
        keep = first + groups[:, None] * GROUP + GROUP <= stop
        z = widened(tl.load(student + whole, mask=keep, other=padding_of(student)), keep)
        u = z
        if TEACHER:
            u = widened(tl.load(teacher + whole, mask=keep, other=padding_of(teacher)), keep)
        stats = add_tile(stats, z, u, keep, first, inv_t, KIND, T, TEACHER, KD)
    last = stop // GROUP * GROUP
    if last < stop:
        few = last + groups[:, None]
        inside = few < stop
        z = widened(tl.load(student + few, mask=inside, other=padding_of(student)), inside)
        u = z
        if TEACHER:
            u = widened(tl.load(teacher + few, mask=inside, other=padding_of(teacher)), inside)
        # A group's first column is taken to be its start + GROUP * its number.
        stats = add_tile(stats, z, u, inside, last + groups - groups * GROUP, inv_t, KIND, T, TEACHER, KD)
    return stats


@jit
def first_column(logits, group, best, stop, GROUP: tl.constexpr):
    """Find the column of `best`, known to lie in the group that starts there; any column of the group for NaN.

    NaN may also have left no group: 2^31 - 1, to which no lane may be added before it is compared.
    """
    lane = tl.arange(0, GROUP)
    x = tl.load(logits + group + lane, mask=(group < stop) & (lane < stop - group), other=float("-inf")).to(tl.float32)
    found = tl.min(tl.where(x == best, lane, GROUP), 0)
    return group + tl.where(found == GROUP, 0, found)


@jit
def _guarded_sums(
    student, teacher, start, stop, z_top, u_top, inv_t, T: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr
):
    """Sum `moment` and forward_kl's `cross` over a part with -inf in it; find the largest u where the student has -inf.

    Narrow tiles: this is rare, and its registers would be taken from every other sweep.
    """
    lanes = tl.arange(0, BLOCK // GROUP)
    moment, cross = tl.zeros([BLOCK // GROUP], tl.float32), tl.zeros([BLOCK // GROUP], tl.float32)
    blocked = moment + float("-inf")
    for first in range(start, stop, BLOCK // GROUP):
        keep = first + lanes < stop
        z = tl.load(student + first + lanes, mask=keep, other=0.0).to(tl.float32)
        u = tl.load(teacher + first + lanes, mask=keep, other=float("-inf")).to(tl.float32)
        x, y = z - z_top, u - u_top
        e1, et = exps(y, inv_t, T)
        moment += tl.where(e1 > 0.0, e1 * y, 0.0)
        cross += tl.where((et > 0.0) & (z > float("-inf")), et * (y - x), 0.0)
        blocked = tl.maximum(blocked, tl.where(z == float("-inf"), u, float("-inf")))
    return tl.sum(moment, 0), tl.sum(cross, 0), tl.max(blocked, 0)


@jit
def measure(
    stats,
    student,
    teacher,
    start,
    stop,
    label,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    TEACHER: tl.constexpr,
    KD: tl.constexpr,
    HARD: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Complete merge_all's statistics of a part: the maxima's exact columns, MOMENT and CROSS repaired where there is a
    -inf, and the fields Z_CHOICE to BLOCKED. Reads a few logits again: nothing may have been overwritten.
    """
    z_top, z_column, z_d1, z_dt, u_top, u_column, u_d1, u_dt, moment, cross, low = stats
    z_column = first_column(student, z_column, z_top, stop, GROUP)
    has_label = (label >= start) & (label < stop)
    z_label = tl.load(student + label, mask=has_label, other=0.0).to(tl.float32)
    z_choice, blocked = 0.0, float("-inf")
    if TEACHER:
        u_column = first_column(teacher, u_column, u_top, stop, GROUP)
        if HARD:
            # The largest has no column where all are NaN.
            z_choice = tl.load(student + u_column, mask=u_column < stop, other=0.0).to(tl.float32)
        suspect = moment * 0.0
        if KD and KIND == FORWARD_KL:
            suspect += cross * 0.0
        if suspect != 0.0:
            moment, cross, blocked = _guarded_sums(student, teacher, start, stop, z_top, u_top, inv_t, T, BLOCK, GROUP)
    return (z_top, z_column, z_d1, z_dt, u_top, u_column, u_d1, u_dt, moment, cross, low, z_choice, z_label, blocked)


@jit
def exact_divergence(
    student,
    teacher,
    stats,
    vocab,
    inv_t,
    beta,
    KIND: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    AHEAD: tl.constexpr,
    PTX: tl.constexpr,
):
    """Compute KL(p || .) and KL(q || .) of a whole row by a sweep with both normalisers known."""
    offsets = tile_columns(BLOCK, GROUP)
    groups = tl.arange(0, BLOCK // GROUP)
    lanes = groups * GROUP
    kl_p = tl.zeros([BLOCK // GROUP], tl.float32)
    kl_q = kl_p
    z_top, u_top = stats[Z_TOP], stats[U_TOP]
    z_bits, u_bits = tl.log2(stats[Z_SUM_T]), tl.log2(stats[U_SUM_T])
    whole = vocab // BLOCK * BLOCK
    most = tl.where(starts_line(lanes, student), vocab - AHEAD - lanes, -NO_COLUMN)
    for first in range(0, whole, BLOCK):
        if PTX:
            fetch_ahead(student + first + lanes + AHEAD, first, most, True)
            fetch_ahead(teacher + first + lanes + AHEAD, first, most, True)
        z = fp32_of(tl.load(student + first + offsets, eviction_policy="evict_last"), PTX)
        u = fp32_of(tl.load(teacher + first + offsets, eviction_policy="evict_last"), PTX)
        tile_p, tile_q = exact_terms(z - z_top, u - u_top, z_bits, u_bits, inv_t, beta, KIND, T, PTX)
        kl_p += tile_p
        kl_q += tile_q
    if whole < vocab:
        cols = whole + offsets
        keep = whole + lanes[:, None] + GROUP <= vocab
        z = tl.load(student + cols, mask=keep, other=float("-inf")).to(tl.float32)
        u = tl.load(teacher + cols, mask=keep, other=float("-inf")).to(tl.float32)
        tile_p, tile_q = exact_terms(z - z_top, u - u_top, z_bits, u_bits, inv_t, beta, KIND, T, PTX)
        kl_p += tile_p
        kl_q += tile_q
    cols = vocab // GROUP * GROUP + groups[:, None]
    z = tl.load(student + cols, mask=cols < vocab, other=float("-inf")).to(tl.float32)
    u = tl.load(teacher + cols, mask=cols < vocab, other=float("-inf")).to(tl.float32)
    tile_p, tile_q = exact_terms(z - z_top, u - u_top, z_bits, u_bits, inv_t, beta, KIND, T, PTX)
    return tl.sum(kl_p + tile_p, 0) * LN2, tl.sum(kl_q + tile_q, 0) * LN2


@jit
def row_divergence(
    student,
    teacher,
    stats,
    vocab,
    inv_t,
    beta,
    KIND: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    AHEAD: tl.constexpr,
    PTX: tl.constexpr,
):
    """Compute D, and KL(q || p or m), of a row: from `cross` where that is exact, else by a sweep of its own."""
    z_log_dt, u_log_dt = tl.log(stats[Z_SUM_T]), tl.log(stats[U_SUM_T])
    if KIND == FORWARD_KL:
        kl = stats[CROSS] * inv_t / stats[U_SUM_T] - u_log_dt + z_log_dt
        # A token that the student excludes costs infinity, unless the teacher gives probability 0 as well.
        excluded = tl.exp((stats[BLOCKED] - stats[U_TOP]) * inv_t - u_log_dt) > 0.0
        return tl.where(excluded, _INF, kl), 0.0
    elif KIND == REVERSE_KL:
        kl = stats[CROSS] * inv_t / stats[Z_SUM_T] - z_log_dt + u_log_dt
        # A teacher logit so low that the floor under log p holds it up (-inf is one), or sums that met a -inf.
        if ((stats[U_LEAST] - stats[U_TOP]) * inv_t - u_log_dt < FLOOR) | (kl * 0.0 != 0.0):
            _, kl = exact_divergence(student, teacher, stats, vocab, inv_t, beta, KIND, T, BLOCK, GROUP, AHEAD, PTX)
        return kl, kl
    else:
        kl_p, kl_q = exact_divergence(student, teacher, stats, vocab, inv_t, beta, KIND, T, BLOCK, GROUP, AHEAD, PTX)
        return beta * kl_p + (1.0 - beta) * kl_q, kl_q
