"""Several programs a row: the streamed and the cooperative form of the dense kernel (forms.py says which is for what).

A row is cut into parts. A program takes a part, publishes its statistics (kernels/fused/sweeps.py), and needs those of
all parts of a row before it can write its slice of that row's gradient. Parts are taken in order from a counter.

Streamed: a turn is the statistics of a part of row i and then the gradient of that part of row i - lag. So a program
only ever waits for turns taken before its own, and a taken turn publishes before it waits: whoever holds the earliest
unfinished turn is running and waits for nobody. The form cannot deadlock, however few programs are resident and
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
import triton
import triton.language as tl

from kernels.fused import launches as forms
from kernels.fused.launches import Launch
from kernels.fused.rows import BETA, TEMPERATURE, UNSPECIALIZED, row_terms, store_row
from kernels.fused.sweeps import (
    PADDING,
    gradient_of_tile,
    measure,
    merge_parts,
    padding_of,
    publish,
    row_divergence,
    special_columns,
    store_special,
    sweep_gradient,
    sweep_statistics,
    widened,
    zero_padding,
)
from kernels.fused.tiles import NUM_STATS, U_COLUMN, Z_COLUMN, gradient_factors, tile_columns, whole_part

NCCL_SMS = 16  # left to NCCL's kernels where there is more than one rank


@triton.jit
def _arrive(stats, partials, counters, row, part, NUM_PARTS: tl.constexpr):
    """Publish a part, then count it: the release orders every thread's stores, which the barrier gathered, before
    it.
    """
    publish(stats, partials + row * (NUM_STATS * NUM_PARTS) + part, NUM_PARTS)
    tl.debug_barrier()
    tl.atomic_add(counters + 1 + row, 1, sem="release", scope="gpu")


@triton.jit
def _gather(partials, counters, row, num_parts, inv_t, KIND: tl.constexpr, T: tl.constexpr, NUM_PARTS: tl.constexpr):
    """A row's statistics once all its parts have arrived."""
    arrived = tl.atomic_add(counters + 1 + row, 0, sem="acquire", scope="gpu")
    while arrived < num_parts:
        arrived = tl.atomic_add(counters + 1 + row, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
    return merge_parts(partials + row * (NUM_STATS * NUM_PARTS), num_parts, inv_t, KIND, T, NUM_PARTS)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "lag"))
def _streamed_kernel(
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
    TILES: tl.constexpr,  # tiles a part
    NUM_PARTS: tl.constexpr,  # power of two, at least the number of parts
):
    """Example: 2 parts a row, lag 1. Turns 0 and 1 measure row 0; turns 2 and 3 measure row 1 and write row 0; ..."""
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
                z_row, u_row, start, stop, inv_t, KIND, T, HAS_TEACHER, HAS_KD, BLOCK, GROUP, "evict_last"
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
            _arrive(stats, partials, counters, row, part, NUM_PARTS)
        row -= lag
        if row >= 0:
            z_row = student + row * student_stride
            u_row = teacher + row * teacher_stride
            g_row = grad + row * grad_stride
            label = tl.load(labels + row)
            stats = _gather(partials, counters, row, num_parts, inv_t, KIND, T, NUM_PARTS)
            divergence = 0.0
            if HAS_KD:
                divergence, _ = row_divergence(z_row, u_row, stats, vocab, inv_t, beta, KIND, BLOCK, GROUP)
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
            factors = gradient_factors(stats, kd, ce + hard, 0.0)
            special = special_columns(
                z_row,
                u_row,
                start,
                stop,
                label,
                choice,
                factors,
                ce,
                hard,
                inv_t,
                beta,
                KIND,
                T,
                HAS_KD,
                LABEL,
                HAS_HARD,
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
                beta,
                KIND,
                T,
                HAS_KD,
                LABEL or HAS_HARD,
                BLOCK,
                GROUP,
            )
            if stop == vocab:
                zero_padding(g_row, vocab, width, BLOCK // GROUP)
            tl.debug_barrier()
            store_special(g_row, label, choice, special, LABEL, HAS_HARD)
        turn = tl.atomic_add(counters, 1, sem="relaxed")


@triton.jit
def _cut(x, columns, stop):
    """A tile whose last group reaches past the vocabulary, within the row (see `run`), with nothing there. fp16 has no
    finite number for that: for its -inf `measure` sums the part anew, which is exact and slow, in the one part that has
    it."""
    if x.dtype == tl.float16:
        past = float("-inf")
    else:
        past = PADDING
    return tl.where(columns < stop, x, past).to(x.dtype)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _cooperative_kernel(
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
    NUM_PARTS: tl.constexpr,
):
    """A part is one tile: read once, measured, kept in registers until its row's statistics are known, written."""
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
        _arrive(stats, partials, counters, row, part, NUM_PARTS)
        stats = _gather(partials, counters, row, num_parts, inv_t, KIND, T, NUM_PARTS)
        divergence = 0.0
        if HAS_KD:
            divergence, _ = row_divergence(z_row, u_row, stats, vocab, inv_t, beta, KIND, BLOCK, GROUP)
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
        factors = gradient_factors(stats, kd, ce + hard, 0.0)
        special = special_columns(
            z_row, u_row, start, stop, label, choice, factors, ce, hard, inv_t, beta, KIND, T, HAS_KD, LABEL, HAS_HARD
        )
        tl.debug_barrier()
        g = gradient_of_tile(z, u, factors, poison, inv_t, beta, KIND, T, HAS_KD, CE).to(grad.dtype.element_ty)
        tl.store(g_row + start + offsets, g, mask=keep, eviction_policy="evict_first")
        tl.debug_barrier()
        if stop == vocab:
            zero_padding(g_row, vocab, width, BLOCK // GROUP)
        store_special(g_row, label, choice, special, LABEL, HAS_HARD)
        turn = tl.atomic_add(counters, 1, sem="relaxed")


def run(launch: Launch, runtime: tuple, constants: dict) -> bool:
    """Launch the form on the current stream. False where the device refuses it: nothing has run then.

    Counters and partials are new for each launch, so launches on two streams never meet.
    """
    device, num_rows, vocab = runtime[0].device, runtime[11], runtime[12]
    num_parts = -(-vocab // (launch.block * launch.tiles))
    if (num_rows + launch.lag) * num_parts >= (1 << 31) - (1 << 16):  # every program takes one turn too many
        return _not(launch, f"{num_rows} rows of {num_parts} parts are more turns than an int32 counts")
    shape = forms.split_shape(launch, vocab)
    partials = torch.empty(num_rows, NUM_STATS.value, shape["NUM_PARTS"], dtype=torch.float32, device=device)
    counters = torch.zeros(1 + num_rows, dtype=torch.int32, device=device)
    if (
        launch.form == "cooperative"
        and min(runtime[0].shape[1], runtime[1].shape[1]) < -(-vocab // launch.group) * launch.group
    ):
        return _not(
            launch,
            f"the last {launch.group} columns reach past a row of {runtime[0].shape[1]} and {runtime[1].shape[1]}",
        )
    options = dict(**constants, BLOCK=launch.block, **shape, **forms.options_of(launch))
    if launch.form == "streamed":
        programs = min(launch.programs, (num_rows + launch.lag) * num_parts)
        _streamed_kernel[(programs,)](*runtime, partials, counters, launch.lag, **options)
        return True
    arguments = (*runtime, partials, counters)
    if device.type == "cuda":
        options["launch_cooperative_grid"] = True
    programs = launch.programs or resident_programs(_cooperative_kernel, arguments, options, launch)
    if programs < num_parts:
        return _not(launch, f"{programs} programs are resident on {launch.device.arch}, a row needs {num_parts}")
    try:
        _cooperative_kernel[(min(programs, num_rows * num_parts),)](*arguments, **options)
    except RuntimeError as error:
        if "cooperative" not in str(error).lower():
            raise
        return _not(launch, str(error))
    return True


def resident_programs(kernel, arguments: tuple, options: dict, launch: Launch) -> int:
    """Programs of the *compiled* kernel that the device holds at once, less what NCCL needs."""
    compiled = kernel.warmup(*arguments, grid=(1,), **options)
    compiled._init_handles()  # loads it, which is what tells its registers
    return programs_held(
        compiled.n_regs, compiled.metadata.shared, launch.num_warps, launch.device.num_sms - _nccl_sms()
    )


def programs_held(num_regs: int, shared: int, num_warps: int, num_sms: int) -> int:
    """By registers (65536 an SM, given out 256 a warp), threads (2048) and shared memory (at least 164 KB less 1
    each).
    """
    by_registers = 65536 // (-(-num_regs * 32 // 256) * 256) // num_warps
    by_threads = 2048 // (32 * num_warps)
    by_shared = (164 << 10) // (shared + 1024)
    return max(0, min(by_registers, by_threads, by_shared)) * max(0, num_sms)


def _nccl_sms() -> int:
    many = torch.distributed.is_available() and torch.distributed.is_initialized()
    return NCCL_SMS if many and torch.distributed.get_world_size() > 1 else 0


_warned = set()


def _not(launch: Launch, reason: str) -> bool:
    """False, said once with its reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"the {launch.form} dense kernel does not fit ({reason}); using one program a row", stacklevel=3)
    return False
