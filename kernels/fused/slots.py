"""Device functions of the sparse kernel: buckets (a kept token each, and the rest), and sweeps over the rest.

Layout, masks and statistics of tiles are those of kernels/fused/sweeps.py and kernels/fused/tiles.py; formulas those of
kernels/reference_sparse.py.
"""

import triton.language as tl

from kernels.contract import NO_TOKEN
from kernels.fused.language import FLOOR, exps, fetch_ahead, fp32_of, jit, power
from kernels.fused.sweeps import first_column
from kernels.fused.tiles import NO_COLUMN, add_tile, no_columns, starts_line, tile_columns, tile_max

EMPTY = tl.constexpr(NO_TOKEN)


@jit
def read_buckets(slot, ids, probs, logits, num_slots, z_top, log_sum, inv_t, rest_log_q, rest_log_p, rest_p):
    """Read token, logit, log q_T, log p_T (floored), p_T of buckets: `num_slots` is the rest, later ones are empty."""
    token = tl.load(ids + slot, mask=slot < num_slots, other=EMPTY)
    z = tl.load(logits + slot, mask=slot < num_slots, other=float("-inf"))
    p = tl.load(probs + slot, mask=token != EMPTY, other=0.0)
    is_rest = slot == num_slots
    log_q = tl.where(is_rest, rest_log_q, (z - z_top) * inv_t - log_sum)
    log_p = tl.where(is_rest, rest_log_p, tl.log(p))
    log_p = tl.maximum(log_p, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    return token, z, log_q, log_p, tl.where(is_rest, rest_p, p)


@jit
def _without_slots(z, cols, stop, at, taken, slot_ids, num_slots):
    """Take the slots' columns before `stop` out of a tile; `taken` is the id of slot `at`, the first not yet met."""
    while taken < stop:
        z = tl.where(cols == taken, float("-inf"), z)
        at += 1
        taken = tl.load(slot_ids + at, mask=at < num_slots, other=NO_COLUMN)
    return z, at, taken


@jit
def rest_statistics(
    student,
    slot_ids,
    at,
    num_slots,
    vocab,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
    AGAIN: tl.constexpr,  # what is read here is read again soon
):
    """Compute the max of the columns that no slot names, its column, and sums e^(z-max), e^((z-max)/T).

    Where there is no such column they are (LOWEST, any, 0, 0).
    """
    tl.static_assert(BLOCK >= GROUP * GROUP, "the columns that fill no group take a group each")
    offsets, groups = tile_columns(BLOCK, GROUP), tl.arange(0, BLOCK // GROUP)
    whole = vocab // GROUP * GROUP
    stats = no_columns(BLOCK // GROUP)
    taken = tl.load(slot_ids + at, mask=at < num_slots, other=NO_COLUMN)
    AHEAD: tl.constexpr = 2 * BLOCK
    most = tl.where(starts_line(groups * GROUP, student), vocab - AHEAD - groups * GROUP, -NO_COLUMN)
    for first in range(0, whole, BLOCK):
        if PTX:
            fetch_ahead(student + first + groups * GROUP + AHEAD, first, most, AGAIN)
        keep = first + groups[:, None] * GROUP < whole
        z = tl.load(
            student + first + offsets,
            mask=keep,
            other=float("-inf"),
            eviction_policy="evict_last" if AGAIN else "evict_first",
        )
        z = fp32_of(z, PTX)
        stop = tl.minimum(first + BLOCK, whole)
        z, at, taken = _without_slots(z, first + offsets, stop, at, taken, slot_ids, num_slots)
        stats = add_tile(stats, z, z, keep, first, inv_t, KIND, T, False, False)
    # The columns that fill no group, one a group.
    cols = whole + groups[:, None]
    z = tl.load(student + cols, mask=cols < vocab, other=float("-inf")).to(tl.float32)
    z, at, taken = _without_slots(z, cols, vocab, at, taken, slot_ids, num_slots)
    start = whole + groups - groups * GROUP  # less what is added for a whole group below
    tops, starts, d1, dt, _, _, _, _, _, _, _ = add_tile(stats, z, z, cols < vocab, start, inv_t, KIND, T, False, False)
    top, group = tile_max(tops, starts + groups * GROUP)
    f1, ft = exps(tops - top, inv_t, T)
    return top, first_column(student, group, top, vocab, GROUP), tl.sum(d1 * f1, 0), tl.sum(dt * ft, 0)


@jit
def rest_gradient(
    z, rest_top, rest_kd, rest_ce, poison, inv_t, T: tl.constexpr, KD: tl.constexpr, CE: tl.constexpr, PTX: tl.constexpr
):
    """Compute dL/dz of columns of the rest, but for the -1 of label and choice.

    A slot's column may lie above the rest's max, and get infinity here; it is written again later.
    """
    e1, et = exps(fp32_of(z, PTX) - rest_top, inv_t, T)
    if KD and CE:
        if T == 0:
            return rest_kd * et + rest_ce * e1
        elif T == 1:
            return (rest_kd + rest_ce) * et
        else:
            return (rest_kd + rest_ce * power(et, T - 1)) * et
    elif KD:
        return rest_kd * et
    elif CE:
        return rest_ce * e1
    else:
        return e1 * 0.0 + (poison - 1.0)  # no term at all: zeros, or NaN for a bad row


@jit
def sweep_rest_gradient(
    student,
    grad,
    vocab,
    rest_top,
    rest_kd,
    rest_ce,
    poison,
    inv_t,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
):
    """Write a row's gradient as if every column were rest, last tile first: what was read last is still near."""
    offsets, groups = tile_columns(BLOCK, GROUP), tl.arange(0, BLOCK // GROUP)
    whole = vocab // GROUP * GROUP
    num_tiles = tl.cdiv(whole, BLOCK)
    AHEAD: tl.constexpr = 2 * BLOCK
    least = tl.where(starts_line(groups * GROUP, student), AHEAD - 1, NO_COLUMN)
    for index in range(num_tiles):
        first = (num_tiles - 1 - index) * BLOCK
        if PTX:
            fetch_ahead(student + first + groups * GROUP - AHEAD, least, first, False)
        keep = first + groups[:, None] * GROUP < whole
        z = tl.load(student + first + offsets, mask=keep, other=0.0, eviction_policy="evict_first")
        g = rest_gradient(z, rest_top, rest_kd, rest_ce, poison, inv_t, T, KD, CE, PTX)
        tl.store(grad + first + offsets, g.to(grad.dtype.element_ty), mask=keep, eviction_policy="evict_first")
    cols = whole + tl.arange(0, GROUP)
    z = tl.load(student + cols, mask=cols < vocab, other=0.0)
    g = rest_gradient(z, rest_top, rest_kd, rest_ce, poison, inv_t, T, KD, CE, False)
    tl.store(grad + cols, g.to(grad.dtype.element_ty), mask=cols < vocab)
