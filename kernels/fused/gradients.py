"""Device functions of the dense kernels that write a part's gradient, from a row's statistics and factors."""

import triton.language as tl

from kernels.fused.divergence_tiles import tile_pull
from kernels.fused.language import exps, jit
from kernels.fused.tiles import U_SUM_T, U_TOP, Z_SUM, Z_SUM_T, Z_TOP, tile_columns


@jit
def gradient_factors(stats, kd, ce, kl_q):
    """List the `factors` of tile_gradient from a row's statistics."""
    return kd, ce, stats[Z_TOP], stats[Z_SUM], stats[Z_SUM_T], stats[U_TOP], stats[U_SUM_T], kl_q


@jit
def tile_gradient(z, u, factors, inv_t, beta, KIND: tl.constexpr, T: tl.constexpr, KD: tl.constexpr, CE: tl.constexpr):
    """Compute dL/dz of any columns, but for the -1 at the label and at the teacher's choice.

    `factors`: of kd and of all cross-entropies; the student's max, sum e^x, sum e^(x/T); the teacher's max and sum
    e^(y/T); KL(q || p or m).
    """
    kd, ce, z_top, z_d1, z_dt, u_top, u_dt, kl_q = factors
    x = z - z_top
    e1, et = exps(x, inv_t, T)
    if KD:
        g = tile_pull(x, u - u_top, et, z_dt, u_dt, kd, kl_q, inv_t, beta, KIND, T)
        if CE:
            g += (ce / z_d1) * e1
    else:
        g = (ce / z_d1) * e1
    return g


@jit
def gradient_of_tile(
    z, u, factors, poison, inv_t, beta, KIND: tl.constexpr, T: tl.constexpr, KD: tl.constexpr, CE: tl.constexpr
):
    """Compute tile_gradient of a tile as it was read."""
    z = z.to(tl.float32)
    if KD or CE:
        return tile_gradient(z, u.to(tl.float32), factors, inv_t, beta, KIND, T, KD, CE)
    else:
        return tl.zeros_like(z) + (poison - 1.0)  # no term at all: zeros, or NaN for a bad label


@jit
def special_columns(
    student,
    teacher,
    start,
    stop,
    label,
    choice,
    factors,
    label_factor,
    choice_factor,
    inv_t,
    beta,
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    LABEL: tl.constexpr,
    HARD: tl.constexpr,
):
    """Compute the gradient at the label and at the teacher's choice, each with a flag: [start, stop) has it.

    These two columns are computed on their own, and stored after all others: a comparison for each of them in every
    lane would cost as much as an exponential. Reads logits that the gradient may overwrite, so it comes before.
    """
    has_label = (label >= start) & (label < stop) & LABEL
    has_choice = (choice >= start) & (choice < stop) & HARD
    same = label == choice
    at_label = tl.full([], 0.0, tl.float32)
    at_choice = at_label
    if has_label:
        at_label = _at_column(student, teacher, label, factors, inv_t, beta, KIND, T, KD)
        at_label -= label_factor + tl.where(same & HARD, choice_factor, 0.0)
    if has_choice:
        at_choice = _at_column(student, teacher, choice, factors, inv_t, beta, KIND, T, KD)
        at_choice -= choice_factor + tl.where(same & LABEL, label_factor, 0.0)
    return has_label, at_label, has_choice, at_choice


@jit
def _at_column(student, teacher, column, factors, inv_t, beta, KIND: tl.constexpr, T: tl.constexpr, KD: tl.constexpr):
    z = tl.load(student + column).to(tl.float32)
    u = z
    if KD:
        u = tl.load(teacher + column).to(tl.float32)
    return tile_gradient(z, u, factors, inv_t, beta, KIND, T, KD, True)


@jit
def store_special(grad, label, choice, special, LABEL: tl.constexpr, HARD: tl.constexpr):
    """Store what special_columns returned, over what the sweep wrote there."""
    has_label, at_label, has_choice, at_choice = special
    if LABEL:
        tl.store(grad + label, at_label.to(grad.dtype.element_ty), mask=has_label)
    if HARD:
        tl.store(grad + choice, at_choice.to(grad.dtype.element_ty), mask=has_choice)


@jit
def sweep_gradient(
    student,
    teacher,
    grad,
    start,
    stop,
    factors,
    poison,
    inv_t,
    beta,
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write [start, stop) of a row's gradient, last tile first: what was read last is still near."""
    offsets = tile_columns(BLOCK, GROUP)
    groups = tl.arange(0, BLOCK // GROUP)[:, None]
    write_rest(student, teacher, grad, stop, factors, poison, inv_t, beta, KIND, T, KD, CE, BLOCK, GROUP)
    num_tiles = tl.cdiv(stop - start, BLOCK)
    for index in range(num_tiles):
        first = start + (num_tiles - 1 - index) * BLOCK
        keep = first + groups * GROUP + GROUP <= stop
        z = tl.load(student + first + offsets, mask=keep, eviction_policy="evict_first")
        u = z
        if KD:
            u = tl.load(teacher + first + offsets, mask=keep, eviction_policy="evict_first")
        g = gradient_of_tile(z, u, factors, poison, inv_t, beta, KIND, T, KD, CE)
        tl.store(grad + first + offsets, g.to(grad.dtype.element_ty), mask=keep, eviction_policy="evict_first")


@jit
def write_rest(
    student,
    teacher,
    grad,
    stop,
    factors,
    poison,
    inv_t,
    beta,
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write the gradient of the columns before `stop` that fill no group."""
    first = stop // GROUP * GROUP
    if first < stop:
        cols = first + tl.arange(0, BLOCK // GROUP)
        keep = cols < stop
        z = tl.load(student + cols, mask=keep, other=0.0)
        u = z
        if KD:
            u = tl.load(teacher + cols, mask=keep, other=0.0)
        g = gradient_of_tile(z, u, factors, poison, inv_t, beta, KIND, T, KD, CE)
        tl.store(grad + cols, g.to(grad.dtype.element_ty), mask=keep)


@jit
def zero_padding(grad, vocab, width, STEP: tl.constexpr):
    """Write zeros between the vocabulary and the logits' width, in rows of NaN as well."""
    for first in range(vocab, width, STEP):
        cols = first + tl.arange(0, STEP)
        tl.store(grad + cols, tl.zeros([STEP], grad.dtype.element_ty), mask=cols < width)
