"""Device functions of the dense kernels that write a part's gradient, from a row's statistics and factors."""

import triton.language as tl

from kernels.fused.divergence_tiles import FORWARD_KL, pull_factors, tile_pull
from kernels.fused.language import LOG2E, bits_of, exps, fetch_ahead, fp32_of, fused_bits, jit, power
from kernels.fused.tiles import NO_COLUMN, U_SUM_T, U_TOP, Z_SUM, Z_SUM_T, Z_TOP, starts_line, tile_columns


@jit
def gradient_factors(stats, kd, ce, kl_q, beta, KIND: tl.constexpr):
    """List the `factors` of tile_gradient from a row's statistics: both maxima, the factor of e^x, pull_factors."""
    pull = pull_factors(stats[Z_SUM_T], stats[U_SUM_T], kd, kl_q, beta, KIND)
    return stats[Z_TOP], stats[U_TOP], ce / stats[Z_SUM], pull


@jit
def shift_factors(factors, inv_t, T: tl.constexpr):
    """Return factors for exponents of one instruction a logit (tile_gradient, SHIFTED), and a flag: they are right.

    z r - shift is rounded once, of shift = fp32(max r), r = log2(e) / T. The max itself is then e = max r - shift off
    0, as is every column: their powers of 2 are too large by 2^e in common, which is taken out of the factors. Of
    maxima so large that e is no small number there is none (the flag).
    """
    z_top, u_top, of_e1, pull = factors
    of_q, offset, of_p, mix_q, u_bits = pull
    z_shift, u_shift = bits_of(z_top, inv_t, T), bits_of(u_top, inv_t, T)
    z_off, u_off = tl.exp2(fused_bits(z_top, z_shift, T)), tl.exp2(fused_bits(u_top, u_shift, T))
    near = (tl.abs(z_shift) < 1048576.0) & (tl.abs(u_shift) < 1048576.0)
    return (z_shift, u_shift, of_e1 / power(z_off, T), (of_q / z_off, offset, of_p / u_off, mix_q, u_bits)), near


@jit
def tile_gradient(
    z,
    u,
    factors,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    SHIFTED: tl.constexpr,  # factors are those of shift_factors
    PTX: tl.constexpr,
):
    """Compute dL/dz of any columns, but for the -1 at the label and at the teacher's choice.

    kd and cross-entropy have e^(x/T) in common, as e^x is a power of it at a constant T: one product for both.
    """
    z_top, u_top, of_e1, pull = factors
    if KD:
        if SHIFTED:
            q_bits, p_bits = fused_bits(z, z_top, T), fused_bits(u, u_top, T)
        else:
            q_bits, p_bits = bits_of(z - z_top, inv_t, T), bits_of(u - u_top, inv_t, T)
        et, of_et, less = tile_pull(q_bits, p_bits, pull, KIND, PTX)
        if CE and T == 1:
            of_et += of_e1
        elif CE and T != 0:
            of_et += of_e1 * power(et, T - 1)
        g = et * of_et - less
        if CE and T == 0:
            g += of_e1 * tl.exp2((z - z_top) * LOG2E)
    else:
        e1, _ = exps(z - z_top, inv_t, T)
        g = of_e1 * e1
    return g


@jit
def gradient_of_tile(
    z,
    u,
    factors,
    poison,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    SHIFTED: tl.constexpr,
    PTX: tl.constexpr,
):
    """Compute tile_gradient of a tile as it was read."""
    z = fp32_of(z, PTX)
    if KD or CE:
        return tile_gradient(z, fp32_of(u, PTX), factors, inv_t, KIND, T, KD, CE, SHIFTED, PTX)
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
        at_label = _at_column(student, teacher, label, factors, inv_t, KIND, T, KD)
        at_label -= label_factor + tl.where(same & HARD, choice_factor, 0.0)
    if has_choice:
        at_choice = _at_column(student, teacher, choice, factors, inv_t, KIND, T, KD)
        at_choice -= choice_factor + tl.where(same & LABEL, label_factor, 0.0)
    return has_label, at_label, has_choice, at_choice


@jit
def _at_column(student, teacher, column, factors, inv_t, KIND: tl.constexpr, T: tl.constexpr, KD: tl.constexpr):
    z = tl.load(student + column).to(tl.float32)
    u = z
    if KD:
        u = tl.load(teacher + column).to(tl.float32)
    return tile_gradient(z, u, factors, inv_t, KIND, T, KD, True, False, False)


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
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
    AHEAD: tl.constexpr,  # columns between what is asked of L2 and what is read: whole tiles
    PTX: tl.constexpr,
):
    """Write [start, stop) of a row's gradient, last tile first: what was read last is still near.

    Tiles of WIDE groups a thread, then what is less than one by BLOCK columns at a time.
    """
    SHIFTED: tl.constexpr = KD and KIND == FORWARD_KL and T != 0
    STEP: tl.constexpr = WIDE * BLOCK
    num_tiles = (stop - start) // STEP
    whole = start + num_tiles * STEP
    _write_rest(student, teacher, grad, whole, stop, factors, poison, inv_t, KIND, T, KD, CE, BLOCK, GROUP, PTX)
    quick = factors
    if SHIFTED:
        quick, near = shift_factors(factors, inv_t, T)
        if near == 0:
            _write_rest(
                student, teacher, grad, start, whole, factors, poison, inv_t, KIND, T, KD, CE, BLOCK, GROUP, PTX
            )
            num_tiles = 0
    offsets = tile_columns(STEP, GROUP)
    lanes = tl.arange(0, STEP // GROUP) * GROUP
    least = tl.where(starts_line(lanes, student), start + AHEAD - 1, NO_COLUMN)
    for index in range(num_tiles):
        first = start + (num_tiles - 1 - index) * STEP
        if PTX:  # L2 has lost some; what it still holds it asks no memory for
            fetch_ahead(student + first + lanes - AHEAD, least, first, False)
            if KD:
                fetch_ahead(teacher + first + lanes - AHEAD, least, first, False)
        z = tl.load(student + first + offsets, eviction_policy="evict_first")
        u = z
        if KD:
            u = tl.load(teacher + first + offsets, eviction_policy="evict_first")
        g = gradient_of_tile(z, u, quick, poison, inv_t, KIND, T, KD, CE, SHIFTED, PTX)
        tl.store(grad + first + offsets, g.to(grad.dtype.element_ty), eviction_policy="evict_first")


@jit
def _write_rest(
    student,
    teacher,
    grad,
    start,
    stop,
    factors,
    poison,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
):
    """Write the gradient of [start, stop): whole groups, then the columns that fill none."""
    offsets = tile_columns(BLOCK, GROUP)
    groups = tl.arange(0, BLOCK // GROUP)[:, None]
    for first in range(start, stop // GROUP * GROUP, BLOCK):
        keep = first + groups * GROUP + GROUP <= stop
        _write_masked(
            student + first, teacher + first, grad + first, offsets, keep, factors, poison, inv_t, KIND, T, KD, CE, PTX
        )
    last = stop // GROUP * GROUP
    if last < stop:
        few = last + tl.arange(0, GROUP)
        _write_masked(student, teacher, grad, few, few < stop, factors, poison, inv_t, KIND, T, KD, CE, False)


@jit
def _write_masked(
    student,
    teacher,
    grad,
    cols,
    keep,
    factors,
    poison,
    inv_t,
    KIND: tl.constexpr,
    T: tl.constexpr,
    KD: tl.constexpr,
    CE: tl.constexpr,
    PTX: tl.constexpr,
):
    z = tl.load(student + cols, mask=keep, eviction_policy="evict_first")
    u = z
    if KD:
        u = tl.load(teacher + cols, mask=keep, eviction_policy="evict_first")
    g = gradient_of_tile(z, u, factors, poison, inv_t, KIND, T, KD, CE, False, PTX)
    tl.store(grad + cols, g.to(grad.dtype.element_ty), mask=keep, eviction_policy="evict_first")


@jit
def zero_padding(grad, vocab, width, STEP: tl.constexpr):
    """Write zeros between the vocabulary and the logits' width, in rows of NaN as well."""
    for first in range(vocab, width, STEP):
        cols = first + tl.arange(0, STEP)
        tl.store(grad + cols, tl.zeros([STEP], grad.dtype.element_ty), mask=cols < width)
