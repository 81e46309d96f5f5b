"""Triton kernel for a teacher that gives every logit: per-row loss parts and the gradient, one program a row.

Sweeps over a row, `BLOCK` columns at a time (S student, T teacher; bytes a logit in bf16, before L2 helps):

    1. statistics    both rows' max and sums of exponentials, online, and of forward_kl and reverse_kl
                     the divergence itself: without gradient this is all             read S, T            4
    2. divergence    jsd: log m mixes both normalisers, so KL(q || m) has to wait for them
                     (and reverse_kl's rows in which the floor under log p bites)    read S, T            4
    3. gradient      from the last tile to the first, so that what was read last is
                     still in L2                                                     read S, T, write dS  6

Row launch (here): one program a row, of as many warps as leave few rows on an SM, so that sweep 3 finds what it can in
L2. A row of 151936 is 608 KB in bf16: 132 of them are more than an H100's L2 holds. kernels/fused/cooperative.py has
the launches in which several programs share a row; kernels/fused/launches.py chooses among them and lays them out.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from kernels.contract import DistillOutput, Options, RowWeights
from kernels.divergences import kind_of
from kernels.fused import cooperative, launches
from kernels.fused.gradients import gradient_factors, special_columns, store_special, sweep_gradient, zero_padding
from kernels.fused.language import jit
from kernels.fused.rows import BETA, TEMPERATURE, UNSPECIALIZED, fp32, output_of, row_terms, scalars_of, store_row
from kernels.fused.sweeps import measure, row_divergence, sweep_statistics
from kernels.fused.tiles import U_COLUMN, Z_COLUMN

SCALE_BLOCK, SCALE_WARPS = 4096, 8


@jit(do_not_specialize=UNSPECIALIZED)
def dense_kernel(
    student,  # [N, Vs], row stride student_stride
    teacher,  # [N, Vt], row stride teacher_stride
    grad,  # [N, Vs], row stride grad_stride; may be student itself
    labels,  # [N]
    kd_weight,  # [N] fp32, as are the three below
    truth_weight,
    span_weight,
    hard_weight,
    scalars,  # [11] fp32: T, beta, grad_scale, h_min, h_max, kd ends, truth ends, hard ends
    floats,  # [8, N] fp32 out: loss, divergence, nll, hard_nll, entropy, kd, truth, hard as used
    hits,  # [2, N] uint8 out: label, teacher
    num_rows,
    vocab,
    width,  # Vs
    student_stride,
    teacher_stride,
    grad_stride,
    KIND: tl.constexpr,  # divergences.kind_of
    T: tl.constexpr,  # 1 to 4, or 0: read it from scalars
    HAS_TEACHER: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_SPAN: tl.constexpr,
    HAS_HARD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,  # columns in 16 bytes
    PTX: tl.constexpr,  # may be compiled for NVIDIA alone
):
    """Process one row a program: outputs of row i in column i of `floats` and `hits`, gradient over row i of `grad`.

    Worked example: one row, V = 2, T = 1, forward_kl, all with weight 1: kd and truth.
    z = (ln 3, 0), u = (0, 0), y = 0. So q = (3/4, 1/4), p = (1/2, 1/2).
      divergence = 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3) = 0.143841
      nll        = -ln(3/4)               = 0.287682,   loss = 0.431523
      entropy    = ln 2                   = 0.693147
      dz         = (q - p) + (q - (1, 0)) = (1/4, -1/4) + (-1/4, 1/4) = (0, 0)
    With temperature 2 and kd alone: q_2 = (sqrt 3, 1) / (1 + sqrt 3) = (0.633975, 0.366025), p_2 = (1/2, 1/2),
      divergence = 1/2 ln(1 / (4 * 0.633975 * 0.366025)) = 0.037253,   loss = 4 * 0.037253 = 0.149010
      dz         = 2 (q_2 - p_2) = (0.267949, -0.267949)
    """
    if T == 0:
        temperature = tl.load(scalars + TEMPERATURE)
    else:
        temperature = T * 1.0
    inv_t = 1.0 / temperature
    beta = tl.load(scalars + BETA)
    LABEL: tl.constexpr = HAS_TRUTH or HAS_SPAN
    row = tl.program_id(0).to(tl.int64)
    z_row = student + row * student_stride
    u_row = teacher + row * teacher_stride
    g_row = grad + row * grad_stride
    label = tl.load(labels + row)

    # 1. statistics
    stats = sweep_statistics(
        z_row,
        u_row,
        0,
        vocab,
        inv_t,
        KIND,
        T,
        HAS_TEACHER,
        HAS_KD,
        BLOCK,
        GROUP,
        (2 if HAS_TEACHER else 4) * BLOCK,
        PTX,
        HAS_GRAD,
    )
    stats = measure(stats, z_row, u_row, 0, vocab, label, inv_t, KIND, T, HAS_TEACHER, HAS_KD, HAS_HARD, BLOCK, GROUP)

    # 2. divergence
    divergence, kl_q = 0.0, 0.0
    if HAS_KD:
        divergence, kl_q = row_divergence(
            z_row, u_row, stats, vocab, inv_t, beta, KIND, T, BLOCK, GROUP, 2 * BLOCK, PTX
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
    store_row(
        outputs,
        stats[Z_COLUMN] == label,
        (stats[Z_COLUMN] == stats[U_COLUMN]) & HAS_TEACHER,
        floats,
        hits,
        num_rows,
        row,
    )

    # 3. gradient
    if HAS_GRAD:
        choice = stats[U_COLUMN]
        factors = gradient_factors(stats, kd, ce + hard, kl_q, beta, KIND)
        special = special_columns(
            z_row, u_row, 0, vocab, label, choice, factors, ce, hard, inv_t, KIND, T, HAS_KD, LABEL, HAS_HARD
        )
        # All that is read of `student` by position has been read: `grad` may be the same memory.
        tl.debug_barrier()
        sweep_gradient(
            z_row,
            u_row,
            g_row,
            0,
            vocab,
            factors,
            poison,
            inv_t,
            KIND,
            T,
            HAS_KD,
            LABEL or HAS_HARD,
            BLOCK,
            GROUP,
            2,  # it has registers for two groups a thread
            (2 if HAS_KD else 4) * BLOCK,
            PTX,
        )
        zero_padding(g_row, vocab, width, BLOCK // GROUP)
        tl.debug_barrier()
        store_special(g_row, label, choice, special, LABEL, HAS_HARD)


@jit(do_not_specialize=("num_rows", "factor"))
def scale_kernel(grad, factor, num_rows, width, stride, BLOCK: tl.constexpr):
    # A type is a constant to the compiler.
    WIDE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32  # pyright: ignore[reportAssignmentType]
    by = tl.load(factor).to(WIDE)
    if by != 1.0:
        row = tl.program_id(0).to(tl.int64)
        while row < num_rows:
            for start in range(0, width, BLOCK):
                cols = start + tl.arange(0, BLOCK)
                keep = cols < width
                at = grad + row * stride + cols
                value = tl.load(at, mask=keep, other=0.0).to(WIDE) * by
                tl.store(at, value.to(grad.dtype.element_ty), mask=keep)
            row += tl.num_programs(0)


def dense_rows(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    weights: RowWeights,
    options: Options,
    grad: Tensor | None,
    launch: str | None = None,
) -> DistillOutput:
    """Do as reference.dense_rows, by the kernel: `loss` is [N], grad [N, Vs] is written if given (any float dtype).

    `launch` asks for one of launches.LAUNCHES, for tests and measurements; None leaves the choice to launches.choose.
    """
    num_rows, width = student_logits.shape
    device = student_logits.device
    floats = torch.empty(8, num_rows, dtype=torch.float32, device=device)
    hits = torch.empty(2, num_rows, dtype=torch.uint8, device=device)
    if num_rows > 0:
        # A pointer that no compiled branch reads still has to point somewhere.
        kd, truth, span, hard = (floats if w is None else fp32(w) for w in weights)
        teacher = student_logits if teacher_logits is None else teacher_logits
        target = student_logits if grad is None else grad
        vocab = options.vocab_size
        kind = 0 if weights.kd is None else kind_of(options.divergence)
        layout = launches.choose(device, student_logits, teacher_logits, vocab, kind, grad is not None, launch)
        runtime = (
            student_logits,
            teacher,
            target,
            labels.contiguous(),
            kd,
            truth,
            span,
            hard,
            scalars_of(options, device),
            floats,
            hits,
            num_rows,
            vocab,
            width,
            student_logits.stride(0),
            teacher.stride(0),
            target.stride(0),
        )
        constants = launches.compiled_in(weights, options)
        constants |= dict(KIND=kind, HAS_TEACHER=teacher_logits is not None, GROUP=layout.group)
        constants |= dict(PTX=launches.takes_ptx(layout.device.arch))
        with torch.no_grad(), launches.on_device(device):
            split = layout.name != "row"
            if not (split and cooperative.run(launches.interpretable(layout), runtime, constants)):
                layout = launches.row_launch(layout.device, layout.row_bytes, layout.group, kind)
                constants |= dict(HAS_GRAD=grad is not None, BLOCK=launches.interpretable(layout).block)
                dense_kernel[(num_rows,)](*runtime, **constants, **launches.options_of(layout))
        if grad is not None and grad.data_ptr() == student_logits.data_ptr():
            torch.autograd.graph.increment_version(student_logits)
    return output_of(floats, hits, weights)


def scale_unless_one(grad: Tensor, factor: Tensor) -> None:
    """Multiply grad by factor in place; the factor is read by the device and 1 costs one small launch."""
    flat = grad.view(1, -1) if grad.dim() == 1 else grad
    if flat.numel() == 0:
        return
    with launches.on_device(grad.device):
        scale_kernel[(min(len(flat), 2048),)](
            flat, factor, len(flat), flat.shape[1], flat.stride(0), BLOCK=SCALE_BLOCK, num_warps=SCALE_WARPS
        )
