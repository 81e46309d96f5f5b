"""The streamed and the cooperative launch of the dense kernel, with several programs a row (see launches.py).

A row is cut into parts. A program takes a part, publishes its statistics (kernels/fused/parts.py), and needs those of
all parts of a row before it can write its slice of that row's gradient. Parts are taken in order from a counter.

Streamed: a turn is the statistics of a part of row i and then the gradient of that part of row i - lag. So a program
only ever waits for turns taken before its own, and a taken turn publishes before it waits: whoever holds the earliest
unfinished turn is running and waits for nobody. The launch cannot deadlock, however few programs are resident and
whatever else holds the device, and a single program does it all: the interpreter, which runs programs one after
another, tests it as it is.

Cooperative: a part of row i waits for later parts of row i, so all programs must be resident together. That is what
launch_cooperative_grid asserts: the launch fails, or (behind NCCL kernels that hold SMs) is late, but it never spins
against programs that are not there. The grid is what the compiled kernel's registers allow, less the SMs that NCCL
takes.
"""

from __future__ import annotations

import warnings

import torch
import triton.language as tl

from kernels.fused import launches
from kernels.fused.gradients import (
    gradient_factors,
    gradient_of_tile,
    special_columns,
    store_special,
    sweep_gradient,
    zero_padding,
)
from kernels.fused.language import jit
from kernels.fused.launches import Launch
from kernels.fused.parts import arrive, gather
from kernels.fused.rows import BETA, TEMPERATURE, UNSPECIALIZED, row_terms, store_row
from kernels.fused.sweeps import PADDING, measure, padding_of, row_divergence, sweep_statistics, widened
from kernels.fused.tiles import NUM_STATS, U_COLUMN, Z_COLUMN, tile_columns, whole_part


@jit(do_not_specialize=(*UNSPECIALIZED, "lag"))
def streamed_kernel(
    student,
    teacher,
    grad,
    labels,
    kd_weight,
    truth_weight,
    span_weight,
    hard_weight,
    scalars,
    floats,
    hits,
    num_rows,
    vocab,
    width,
    student_stride,
    teacher_stride,
    grad_stride,  # as in dense.py
    partials,  # [N, NUM_STATS, NUM_PARTS] fp32
    counters,  # [1 + N] int32 zeros: turns taken, then parts arrived of each row
    lag,  # rows, at least 1
    KIND: tl.constexpr,
    T: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_SPAN: tl.constexpr,
    HAS_HARD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
    TILES: tl.constexpr,  # tiles a part
    NUM_PARTS: tl.constexpr,  # power of two, at least the number of parts
):
    """Measure rows, then write them, by turns.

    Example: 2 parts a row, lag 1. Turns 0 and 1 measure row 0; turns 2 and 3 measure row 1 and write row 0; ...
    """
    if T == 0:
        temperature = tl.load(scalars + TEMPERATURE)
    else:
        temperature = T * 1.0
    inv_t = 1.0 / temperature
    beta = tl.load(scalars + BETA)
    LABEL: tl.constexpr = HAS_TRUTH or HAS_SPAN
    PART: tl.constexpr = BLOCK * TILES
    num_parts = tl.cdiv(vocab, PART)
    turn = tl.atomic_add(counters, 1, sem="relaxed")
    while turn < (num_rows + lag) * num_parts:
        part = turn % num_parts
        start = part * PART
        stop = tl.minimum(start + PART, vocab)
        row = (turn // num_parts).to(tl.int64)
        if row < num_rows:
            z_row = student + row * student_stride
            u_row = teacher + row * teacher_stride
            stats = sweep_statistics(
                z_row, u_row, start, stop, inv_t, KIND, T, HAS_TEACHER, HAS_KD, BLOCK, GROUP, BLOCK, PTX, True
            )
            stats = measure(
                stats,
                z_row,
                u_row,
                start,
                stop,
                tl.load(labels + row),
                inv_t,
                KIND,
                T,
                HAS_TEACHER,
                HAS_KD,
                HAS_HARD,
                BLOCK,
                GROUP,
            )
            arrive(stats, partials, counters, row, part, NUM_PARTS)
        row -= lag
        if row >= 0:
            z_row = student + row * student_stride
            u_row = teacher + row * teacher_stride
            g_row = grad + row * grad_stride
            label = tl.load(labels + row)
            stats = gather(partials, counters, row, num_parts, inv_t, KIND, T, NUM_PARTS)
            divergence = 0.0
            if HAS_KD:
                divergence, _ = row_divergence(
                    z_row, u_row, stats, vocab, inv_t, beta, KIND, T, BLOCK, GROUP, BLOCK, PTX
                )
            outputs, kd, ce, hard, poison = row_terms(
                stats,
                divergence,
                row,
                label,
                vocab,
                temperature,
                scalars,
                kd_weight,
                truth_weight,
                span_weight,
                hard_weight,
                HAS_TEACHER,
                HAS_KD,
                HAS_TRUTH,
                HAS_SPAN,
                HAS_HARD,
                HAS_ENTROPY,
            )
            if part == 0:
                store_row(
                    outputs,
                    stats[Z_COLUMN] == label,
                    (stats[Z_COLUMN] == stats[U_COLUMN]) & HAS_TEACHER,
                    floats,
                    hits,
                    num_rows,
                    row,
                )
            choice = stats[U_COLUMN]
            factors = gradient_factors(stats, kd, ce + hard, 0.0, beta, KIND)
            special = special_columns(
                z_row, u_row, start, stop, label, choice, factors, ce, hard, inv_t, KIND, T, HAS_KD, LABEL, HAS_HARD
            )
            tl.debug_barrier()
            sweep_gradient(
                z_row,
                u_row,
                g_row,
                start,
                stop,
                factors,
                poison,
                inv_t,
                KIND,
                T,
                HAS_KD,
                LABEL or HAS_HARD,
                BLOCK,
                GROUP,
                1,
                BLOCK,
                PTX,
            )
            if stop == vocab:
                zero_padding(g_row, vocab, width, BLOCK // GROUP)
            tl.debug_barrier()
            store_special(g_row, label, choice, special, LABEL, HAS_HARD)
        turn = tl.atomic_add(counters, 1, sem="relaxed")


@jit
def _cut(x, columns, stop):
    """Empty the end of a tile whose last group reaches past the vocabulary, within the row (see `run`). fp16 has no
    finite number for that: for its -inf `measure` sums the part anew, which is exact and slow, in the one part that has
    it."""
    if x.dtype == tl.float16:
        past = float("-inf")
    else:
        past = PADDING
    return tl.where(columns < stop, x, past).to(x.dtype)


@jit(do_not_specialize=UNSPECIALIZED)
def cooperative_kernel(
    student,
    teacher,
    grad,
    labels,
    kd_weight,
    truth_weight,
    span_weight,
    hard_weight,
    scalars,
    floats,
    hits,
    num_rows,
    vocab,
    width,
    student_stride,
    teacher_stride,
    grad_stride,  # as in dense.py
    partials,
    counters,  # as above
    KIND: tl.constexpr,
    T: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_SPAN: tl.constexpr,
    HAS_HARD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
    NUM_PARTS: tl.constexpr,
):
    """Read a part, one tile, once; keep it in registers until its row's statistics are known; write its gradient."""
    if T == 0:
        temperature = tl.load(scalars + TEMPERATURE)
    else:
        temperature = T * 1.0
    inv_t = 1.0 / temperature
    beta = tl.load(scalars + BETA)
    LABEL: tl.constexpr = HAS_TRUTH or HAS_SPAN
    CE: tl.constexpr = LABEL or HAS_HARD
    offsets = tile_columns(BLOCK, GROUP)
    groups = tl.arange(0, BLOCK // GROUP)[:, None]
    num_parts = tl.cdiv(vocab, BLOCK)
    turn = tl.atomic_add(counters, 1, sem="relaxed")
    while turn < num_rows * num_parts:
        part = turn % num_parts
        start = part * BLOCK
        stop = tl.minimum(start + BLOCK, vocab)
        row = (turn // num_parts).to(tl.int64)
        z_row = student + row * student_stride
        u_row = teacher + row * teacher_stride
        g_row = grad + row * grad_stride
        label = tl.load(labels + row)
        keep = start + groups * GROUP < stop
        z = tl.load(z_row + start + offsets, mask=keep, other=padding_of(student), eviction_policy="evict_first")
        u = z
        if HAS_TEACHER:
            u = tl.load(u_row + start + offsets, mask=keep, other=padding_of(teacher), eviction_policy="evict_first")
        if stop % GROUP != 0:
            z, u = _cut(z, start + offsets, stop), _cut(u, start + offsets, stop)
        stats = whole_part(widened(z, keep), widened(u, keep), start, inv_t, T, HAS_TEACHER, HAS_KD, BLOCK, GROUP)
        stats = measure(
            stats, z_row, u_row, start, stop, label, inv_t, KIND, T, HAS_TEACHER, HAS_KD, HAS_HARD, BLOCK, GROUP
        )
        arrive(stats, partials, counters, row, part, NUM_PARTS)
        stats = gather(partials, counters, row, num_parts, inv_t, KIND, T, NUM_PARTS)
        divergence = 0.0
        if HAS_KD:
            divergence, _ = row_divergence(z_row, u_row, stats, vocab, inv_t, beta, KIND, T, BLOCK, GROUP, BLOCK, PTX)
        outputs, kd, ce, hard, poison = row_terms(
            stats,
            divergence,
            row,
            label,
            vocab,
            temperature,
            scalars,
            kd_weight,
            truth_weight,
            span_weight,
            hard_weight,
            HAS_TEACHER,
            HAS_KD,
            HAS_TRUTH,
            HAS_SPAN,
            HAS_HARD,
            HAS_ENTROPY,
        )
        if part == 0:
            store_row(
                outputs,
                stats[Z_COLUMN] == label,
                (stats[Z_COLUMN] == stats[U_COLUMN]) & HAS_TEACHER,
                floats,
                hits,
                num_rows,
                row,
            )
        choice = stats[U_COLUMN]
        factors = gradient_factors(stats, kd, ce + hard, 0.0, beta, KIND)
        special = special_columns(
            z_row, u_row, start, stop, label, choice, factors, ce, hard, inv_t, KIND, T, HAS_KD, LABEL, HAS_HARD
        )
        tl.debug_barrier()
        g = gradient_of_tile(z, u, factors, poison, inv_t, KIND, T, HAS_KD, CE, False, False).to(grad.dtype.element_ty)
        tl.store(g_row + start + offsets, g, mask=keep, eviction_policy="evict_first")
        tl.debug_barrier()
        if stop == vocab:
            zero_padding(g_row, vocab, width, BLOCK // GROUP)
        store_special(g_row, label, choice, special, LABEL, HAS_HARD)
        turn = tl.atomic_add(counters, 1, sem="relaxed")


def run(launch: Launch, runtime: tuple, constants: dict) -> bool:
    """Launch on the current stream. Return False where the device refuses: nothing has run then.

    Counters and partials are new for each launch, so launches on two streams never meet.
    """
    device, num_rows, vocab = runtime[0].device, runtime[11], runtime[12]
    num_parts = -(-vocab // (launch.block * launch.tiles))
    if (num_rows + launch.lag) * num_parts >= (1 << 31) - (1 << 16):  # every program takes one turn too many
        return _not(launch, f"{num_rows} rows of {num_parts} parts are more turns than an int32 counts")
    shape = launches.split_shape(launch, vocab)
    partials = torch.empty(num_rows, NUM_STATS.value, shape["NUM_PARTS"], dtype=torch.float32, device=device)
    counters = torch.zeros(1 + num_rows, dtype=torch.int32, device=device)
    if (
        launch.name == "cooperative"
        and min(runtime[0].shape[1], runtime[1].shape[1]) < -(-vocab // launch.group) * launch.group
    ):
        return _not(
            launch,
            f"the last {launch.group} columns reach past a row of {runtime[0].shape[1]} and {runtime[1].shape[1]}",
        )
    options = dict(**constants, BLOCK=launch.block, **shape, **launches.options_of(launch))
    if launch.name == "streamed":
        programs = min(launch.programs, (num_rows + launch.lag) * num_parts)
        streamed_kernel[(programs,)](*runtime, partials, counters, launch.lag, **options)
        return True
    arguments = (*runtime, partials, counters)
    if device.type == "cuda":
        options["launch_cooperative_grid"] = True
    programs = launch.programs or resident_programs(cooperative_kernel, arguments, options, launch)
    if programs < num_parts:
        return _not(launch, f"{programs} programs are resident on {launch.device.arch}, a row needs {num_parts}")
    try:
        cooperative_kernel[(min(programs, num_rows * num_parts),)](*arguments, **options)
    except RuntimeError as error:
        if "cooperative" not in str(error).lower():
            raise
        return _not(launch, str(error))
    return True


def resident_programs(kernel, arguments: tuple, options: dict, launch: Launch) -> int:
    """Count the programs of the *compiled* kernel that the device holds at once, less what NCCL needs."""
    compiled = kernel.warmup(*arguments, grid=(1,), **options)
    compiled._init_handles()  # loads it, which is what tells its registers
    return launches.programs_held(
        compiled.n_regs, compiled.metadata.shared, launch.num_warps, launch.device.num_sms - launches.nccl_sms()
    )


refusals: set[str] = set()  # reasons warned of in this process


def _not(launch: Launch, reason: str) -> bool:
    """Return False, and say why, once."""
    if reason not in refusals:
        refusals.add(reason)
        warnings.warn(f"the {launch.name} dense kernel does not fit ({reason}); using one program a row", stacklevel=3)
    return False
