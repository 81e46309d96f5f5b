"""Triton kernel for a teacher that gives every logit: per-row loss parts and the gradient, one program a row.

Sweeps over a row, `BLOCK` columns at a time (S student, T teacher; bytes a logit in bf16, before L2 helps):

    1. statistics    both rows' max and sums of exponentials, online, and of forward_kl and reverse_kl
                     the divergence itself: without gradient this is all             read S, T            4
    2. divergence    jsd: log m mixes both normalisers, so KL(q || m) has to wait for them
                     (and reverse_kl's rows in which the floor under log p bites)    read S, T            4
    3. gradient      from the last tile to the first, so that what was read last is
                     still in L2                                                     read S, T, write dS  6

Row form (here): one program a row, of as many warps as leave few rows on an SM, so that sweep 3 finds what it can in
L2. A row of 151936 is 608 KB in bf16: 132 of them are more than an H100's L2 holds. kernels/fused/cooperative.py has
the forms in which several programs share a row; kernels/fused/launches.py says which form runs, and how it is laid out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.contract import DistillOutput, Options, RowWeights
from kernels.divergences import kind_of
from kernels.fused import cooperative
from kernels.fused import launches as forms
from kernels.fused.rows import BETA, TEMPERATURE, UNSPECIALIZED, row_terms, store_row
from kernels.fused.sweeps import (
    measure,
    row_divergence,
    special_columns,
    store_special,
    sweep_gradient,
    sweep_statistics,
    zero_padding,
)
from kernels.fused.tiles import U_COLUMN, Z_COLUMN, gradient_factors

_SCALE_BLOCK, _SCALE_WARPS = 4096, 8
_INTERPRETER_BLOCK = 32768  # the interpreter pays by the operation, not by the lane


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _dense_kernel(
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
):
    """One row a program: outputs of row i in column i of `floats` and `hits`, gradient over row i of `grad`.

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
    HINT: tl.constexpr = "evict_last" if HAS_GRAD else "evict_first"
    row = tl.program_id(0).to(tl.int64)
    z_row = student + row * student_stride
    u_row = teacher + row * teacher_stride
    g_row = grad + row * grad_stride
    label = tl.load(labels + row)

    # 1. statistics
    stats = sweep_statistics(z_row, u_row, 0, vocab, inv_t, KIND, T, HAS_TEACHER, HAS_KD, BLOCK, GROUP, HINT)
    stats = measure(stats, z_row, u_row, 0, vocab, label, inv_t, KIND, T, HAS_TEACHER, HAS_KD, HAS_HARD, BLOCK, GROUP)

    # 2. divergence
    divergence, kl_q = 0.0, 0.0
    if HAS_KD:
        divergence, kl_q = row_divergence(z_row, u_row, stats, vocab, inv_t, beta, KIND, BLOCK, GROUP)
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
        factors = gradient_factors(stats, kd, ce + hard, kl_q)
        special = special_columns(
            z_row, u_row, 0, vocab, label, choice, factors, ce, hard, inv_t, beta, KIND, T, HAS_KD, LABEL, HAS_HARD
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
            beta,
            KIND,
            T,
            HAS_KD,
            LABEL or HAS_HARD,
            BLOCK,
            GROUP,
        )
        zero_padding(g_row, vocab, width, BLOCK // GROUP)
        tl.debug_barrier()
        store_special(g_row, label, choice, special, LABEL, HAS_HARD)


@triton.jit(do_not_specialize=("num_rows", "factor"))
def _scale_kernel(grad, factor, num_rows, width, stride, BLOCK: tl.constexpr):
    WIDE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
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


INTERPRETED = not isinstance(_dense_kernel, triton.runtime.JITFunction)


def dense_rows(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    weights: RowWeights,
    options: Options,
    grad: Tensor | None,
    form: str | None = None,
) -> DistillOutput:
    """As reference.dense_rows, by the kernel: `loss` is [N], grad [N, Vs] is written if given (any float dtype).

    `form` asks for one of forms.FORMS, for tests and measurements; None leaves the choice to forms.choose.
    """
    num_rows, width = student_logits.shape
    device = student_logits.device
    floats = torch.empty(8, num_rows, dtype=torch.float32, device=device)
    hits = torch.empty(2, num_rows, dtype=torch.uint8, device=device)
    if num_rows > 0:
        given = [None if w is None else w.to(torch.float32).contiguous() for w in weights]
        # A pointer that no compiled branch reads still has to point somewhere.
        kd, truth, span, hard = (floats if w is None else w for w in given)
        teacher = student_logits if teacher_logits is None else teacher_logits
        target = student_logits if grad is None else grad
        vocab = options.vocab_size
        kind = 0 if weights.kd is None else kind_of(options.divergence)
        launch = forms.choose(device, student_logits, teacher_logits, vocab, kind, grad is not None, form)
        runtime = (
            student_logits,
            teacher,
            target,
            labels.contiguous(),
            kd,
            truth,
            span,
            hard,
            _scalars(options, device),
            floats,
            hits,
            num_rows,
            vocab,
            width,
            student_logits.stride(0),
            teacher.stride(0),
            target.stride(0),
        )
        constants = compiled_in(weights, options)
        constants |= dict(KIND=kind, HAS_TEACHER=teacher_logits is not None, GROUP=launch.group)
        with torch.no_grad(), _on(device):
            if launch.form == "row" or not cooperative.run(_interpretable(launch), runtime, constants):
                launch = _interpretable(forms.row_launch(launch.device, launch.row_bytes, launch.group, kind))
                compiler = forms.options_of(launch)
                _dense_kernel[(num_rows,)](
                    *runtime, **constants, HAS_GRAD=grad is not None, BLOCK=launch.block, **compiler
                )
        if grad is not None and grad.data_ptr() == student_logits.data_ptr():
            torch.autograd.graph.increment_version(student_logits)
    return output_of(floats, hits, weights)


def output_of(floats: Tensor, hits: Tensor, weights: RowWeights) -> DistillOutput:
    """What a kernel wrote, by name. Span weights are used as they are given."""
    label_hit, teacher_hit = hits.view(torch.bool)
    span = torch.zeros_like(floats[0]) if weights.span is None else weights.span.to(torch.float32)
    *rows, kd, truth, hard = floats
    return DistillOutput(*rows, label_hit, teacher_hit, RowWeights(kd, truth, span, hard))


def compiled_in(weights: RowWeights, options: Options) -> dict:
    """The choices that a kernel is compiled for: T (0: read at run time), which terms are on."""
    temperature = options.temperature if weights.kd is not None else 1.0  # nothing else is tempered
    constant = isinstance(temperature, float) and temperature in (1.0, 2.0, 3.0, 4.0)
    return dict(
        T=int(temperature) if constant else 0,
        HAS_KD=weights.kd is not None,
        HAS_TRUTH=weights.truth is not None,
        HAS_SPAN=weights.span is not None,
        HAS_HARD=weights.hard is not None,
        HAS_ENTROPY=options.entropy is not None,
    )


def _interpretable(launch: forms.Launch) -> forms.Launch:
    return launch._replace(block=_INTERPRETER_BLOCK) if INTERPRETED else launch


def scale_unless_one(grad: Tensor, factor: Tensor) -> None:
    """grad *= factor in place, where the factor is read by the device and 1 costs one small launch."""
    flat = grad.view(1, -1) if grad.dim() == 1 else grad
    if flat.numel() == 0:
        return
    with _on(grad.device):
        _scale_kernel[(min(len(flat), 2048),)](
            flat, factor, len(flat), flat.shape[1], flat.stride(0), BLOCK=_SCALE_BLOCK, num_warps=_SCALE_WARPS
        )


def _on(device: torch.device):
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


def _scalars(options: Options, device: torch.device) -> Tensor:
    """The run-time numbers as one fp32 vector on the device, put there without the host waiting for it."""
    e = options.entropy
    ends = (0.0,) * 8 if e is None else (e.h_min, e.h_max, *e.kd, *e.truth, *e.hard)
    beta = 0.0 if options.beta is None else options.beta
    values = (options.temperature, beta, options.grad_scale, *ends)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A graph would copy from host memory that is long freed when it is replayed; these numbers become part of its
        # launches.
        parts = (
            v.to(torch.float32) if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float32, device=device)
            for v in values
        )
        return torch.stack(tuple(parts))
    vector = torch.tensor([0.0 if isinstance(v, Tensor) else v for v in values], dtype=torch.float32)
    vector = vector.to(device, non_blocking=True)
    for index, value in enumerate(values):
        if isinstance(value, Tensor):
            vector[index] = value
    return vector
