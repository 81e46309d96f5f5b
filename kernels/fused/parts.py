"""Device functions by which the programs of a row exchange the statistics of its parts, through device memory."""

import triton.language as tl

from kernels.fused.language import LOWEST, jit
from kernels.fused.tiles import (
    BLOCKED,
    CROSS,
    MOMENT,
    NUM_STATS,
    U_COLUMN,
    U_LEAST,
    U_SUM,
    U_SUM_T,
    U_TOP,
    Z_CHOICE,
    Z_COLUMN,
    Z_LABEL,
    Z_SUM,
    Z_SUM_T,
    Z_TOP,
    merge_all,
)

_INF = tl.constexpr(float("inf"))


@jit
def publish(stats, out, NUM_PARTS: tl.constexpr):
    """Store statistics of a part into its column of out[NUM_STATS, NUM_PARTS], fp32 (columns fit: vocab < 2^24)."""
    for field in tl.static_range(NUM_STATS):  # pyright: ignore[reportGeneralTypeIssues]  triton types it as no iterator
        tl.store(out + field * NUM_PARTS, stats[field] * 1.0)


@jit
def merge_parts(parts, num_parts, inv_t, KIND: tl.constexpr, T: tl.constexpr, NUM_PARTS: tl.constexpr):
    """Merge one row's statistics from those its parts published, read past L1: other programs wrote them."""
    part = tl.arange(0, NUM_PARTS)
    here = part < num_parts
    z_top = _field(parts, Z_TOP, part, here, LOWEST, NUM_PARTS)
    z_column = _field(parts, Z_COLUMN, part, here, 0.0, NUM_PARTS).to(tl.int32)
    z_d1 = _field(parts, Z_SUM, part, here, 0.0, NUM_PARTS)
    z_dt = _field(parts, Z_SUM_T, part, here, 0.0, NUM_PARTS)
    u_tops = _field(parts, U_TOP, part, here, LOWEST, NUM_PARTS)
    u_columns = _field(parts, U_COLUMN, part, here, -1.0, NUM_PARTS).to(tl.int32)
    u_d1 = _field(parts, U_SUM, part, here, 0.0, NUM_PARTS)
    u_dt = _field(parts, U_SUM_T, part, here, 0.0, NUM_PARTS)
    moment = _field(parts, MOMENT, part, here, 0.0, NUM_PARTS)
    cross = _field(parts, CROSS, part, here, 0.0, NUM_PARTS)
    low = _field(parts, U_LEAST, part, here, _INF, NUM_PARTS)
    stats = (z_top, z_column, z_d1, z_dt, u_tops, u_columns, u_d1, u_dt, moment, cross, low)
    z_top, z_column, z_d1, z_dt, u_top, u_column, u_d1, u_dt, moment, cross, low = merge_all(stats, inv_t, KIND, T)
    z_choices = _field(parts, Z_CHOICE, part, here, 0.0, NUM_PARTS)
    # A part without a max has a column all the same.
    z_choice = tl.sum(tl.where((u_columns == u_column) & (u_tops == u_top), z_choices, 0.0), 0)
    z_label = tl.sum(_field(parts, Z_LABEL, part, here, 0.0, NUM_PARTS), 0)
    blocked = tl.max(_field(parts, BLOCKED, part, here, float("-inf"), NUM_PARTS), 0)
    return (z_top, z_column, z_d1, z_dt, u_top, u_column, u_d1, u_dt, moment, cross, low, z_choice, z_label, blocked)


@jit
def _field(parts, field: tl.constexpr, part, here, other, NUM_PARTS: tl.constexpr):
    return tl.load(parts + field * NUM_PARTS + part, mask=here, other=other, cache_modifier=".cg")


@jit
def arrive(stats, partials, counters, row, part, NUM_PARTS: tl.constexpr):
    """Publish a part, then count it: the release orders every thread's stores, which the barrier gathered, before
    it.
    """
    publish(stats, partials + row * (NUM_STATS * NUM_PARTS) + part, NUM_PARTS)
    tl.debug_barrier()
    tl.atomic_add(counters + 1 + row, 1, sem="release", scope="gpu")


@jit
def gather(partials, counters, row, num_parts, inv_t, KIND: tl.constexpr, T: tl.constexpr, NUM_PARTS: tl.constexpr):
    """Wait until all parts of a row have arrived; return the row's statistics."""
    arrived = tl.atomic_add(counters + 1 + row, 0, sem="acquire", scope="gpu")
    while arrived < num_parts:
        arrived = tl.atomic_add(counters + 1 + row, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
    return merge_parts(partials + row * (NUM_STATS * NUM_PARTS), num_parts, inv_t, KIND, T, NUM_PARTS)
