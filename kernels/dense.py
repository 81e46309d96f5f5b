"""Triton kernel for a teacher that gives every logit: per-row loss parts and the gradient, one program a row.

Sweeps over a row, `BLOCK` columns at a time (S student, T teacher; bytes a logit in bf16, before L2 helps):

    1. statistics    both rows' max and sums of exponentials, online                 read S, T      4
    2. divergence    reverse_kl and jsd only: KL(q || p or m) enters their gradient,
                     and needs both normalisers first                                read S, T      4
    3. gradient      from the last tile to the first, so that what sweep 1 or 2 read
                     last is still in L2; forward_kl's value is summed on the way    read S, T, write dS   6

What is computed of a tile, and how two parts of a row merge, is in kernels/tiles.py: a form with several programs a row
needs only another way to pass parts around.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.contract import DIVERGENCES, IGNORE_INDEX, DistillOutput, Options, RowWeights
from kernels.tiles import (
    FORWARD_KL,
    LOWEST,
    REVERSE_KL,
    entropy_factor,
    merge_max,
    rescale,
    student_part,
    teacher_part,
    tile_divergence,
    tile_kd_gradient,
    tile_logs,
    tile_max,
)

_IGNORE = tl.constexpr(IGNORE_INDEX)
_BLOCK, _NUM_WARPS = 4096, 8  # wider tiles spill registers; narrower ones do not fill the memory pipes
_INTERPRETER_BLOCK = 32768  # the interpreter pays by the operation, not by the lane


@triton.jit
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
    KIND: tl.constexpr,
    T: tl.constexpr,  # 1 to 4, or 0: read it from scalars
    HAS_TEACHER: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_SPAN: tl.constexpr,
    HAS_HARD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
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
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    grad += row * grad_stride
    offsets = tl.arange(0, BLOCK)
    if T == 0:
        temperature = tl.load(scalars)
    else:
        temperature = T * 1.0
    inv_t = 1.0 / temperature
    beta = tl.load(scalars + 1)

    # 1. statistics
    z_top, z_arg, z_d1, z_dt = LOWEST, 0, 0.0, 0.0
    u_top, u_arg, u_d1, u_dt, u_moment = LOWEST, 0, 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        cols = start + offsets
        keep = cols < vocab
        z = tl.load(student + cols, mask=keep, other=float("-inf")).to(tl.float32)
        tile_top, tile_arg = tile_max(z, cols)
        old = z_top
        z_top, z_arg = merge_max(z_top, z_arg, tile_top, tile_arg)
        z_d1, z_dt, _ = rescale(old, z_top, z_d1, z_dt, inv_t, T)
        z_d1, z_dt = student_part(z_top, z_d1, z_dt, z, inv_t, T)
        if HAS_TEACHER:
            u = tl.load(teacher + cols, mask=keep, other=float("-inf")).to(tl.float32)
            tile_top, tile_arg = tile_max(u, cols)
            old = u_top
            u_top, u_arg = merge_max(u_top, u_arg, tile_top, tile_arg)
            u_moment = u_moment + u_d1 * (old - u_top)
            u_d1, u_dt, factor = rescale(old, u_top, u_d1, u_dt, inv_t, T)
            u_d1, u_dt, u_moment = teacher_part(u_top, u_d1, u_dt, u_moment * factor, u, inv_t, T)
    z_log_d1, z_log_dt = tl.log(z_d1), tl.log(z_dt)
    u_log_dt = tl.log(u_dt)

    # 2. divergence, where its own value is part of the gradient
    kl_p, kl_q = 0.0, 0.0
    if HAS_KD and KIND != FORWARD_KL:
        for start in range(0, vocab, BLOCK):
            cols = start + offsets
            keep = cols < vocab
            z = tl.load(student + cols, mask=keep, other=float("-inf")).to(tl.float32)
            u = tl.load(teacher + cols, mask=keep, other=float("-inf")).to(tl.float32)
            log_q, log_p, p = tile_logs(z, z_top, z_log_dt, u, u_top, u_log_dt, inv_t, keep)
            tile_p, tile_q = tile_divergence(log_q, log_p, p, beta, keep, KIND)
            kl_p += tile_p
            kl_q += tile_q

    # The row's weights, and NaN for a label that no tokenizer gave
    label = tl.load(labels + row)
    valid = (label >= 0) & (label < vocab)
    truth, span, kd, hard, asked, entropy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if HAS_TRUTH:
        truth = tl.load(truth_weight + row)
    if HAS_SPAN:
        span = tl.load(span_weight + row)
    if HAS_KD:
        kd = tl.load(kd_weight + row)
    if HAS_HARD:
        hard = tl.load(hard_weight + row)
    poison = tl.where(valid | ((label == _IGNORE) & (truth + span == 0.0)), 1.0, float("nan"))
    if HAS_TEACHER:
        entropy = tl.log(u_d1) - u_moment / u_d1
    if HAS_ENTROPY:
        h_min = tl.load(scalars + 3)
        n = (entropy - h_min) / (tl.load(scalars + 4) - h_min)
        n = tl.minimum(tl.maximum(n, 0.0, propagate_nan=tl.PropagateNan.ALL), 1.0, propagate_nan=tl.PropagateNan.ALL)
        kd = kd * entropy_factor(n, scalars + 5)
        truth = truth * entropy_factor(n, scalars + 7)
        hard = hard * entropy_factor(n, scalars + 9)

    nll, hard_nll = 0.0, 0.0
    if HAS_TRUTH or HAS_SPAN:
        z_label = tl.load(student + label, mask=valid, other=0.0).to(tl.float32)
        nll = tl.where(valid, z_log_d1 - (z_label - z_top), 0.0) * poison
    if HAS_HARD:
        hard_nll = z_log_d1 - (tl.load(student + u_arg).to(tl.float32) - z_top)

    # Everything that still has to be read of `student` by position has been read: `grad` may be the same memory.
    tl.debug_barrier()

    # 3. gradient, last tile first; forward_kl is summed here, where both logarithms are at hand
    if HAS_GRAD or (HAS_KD and KIND == FORWARD_KL):
        scale = tl.load(scalars + 2) * poison
        kd_factor = kd * temperature * scale  # d(T^2 D)/dz = T^2 dD/ds / T
        ce_factor = (truth + span) * scale
        hard_factor = hard * scale
        num_tiles = tl.cdiv(width, BLOCK)
        for index in range(0, num_tiles):
            cols = (num_tiles - 1 - index) * BLOCK + offsets
            keep = cols < vocab
            z = tl.load(student + cols, mask=keep, other=float("-inf")).to(tl.float32)
            g = tl.zeros([BLOCK], tl.float32) + (poison - 1.0)
            if HAS_KD:
                u = tl.load(teacher + cols, mask=keep, other=float("-inf")).to(tl.float32)
                log_q, log_p, p = tile_logs(z, z_top, z_log_dt, u, u_top, u_log_dt, inv_t, keep)
                if KIND == FORWARD_KL:
                    tile_p, _ = tile_divergence(log_q, log_p, p, beta, keep, KIND)
                    kl_p += tile_p
                if HAS_GRAD:
                    g += kd_factor * tile_kd_gradient(log_q, log_p, p, kl_q, beta, keep, KIND)
            if HAS_GRAD:
                if HAS_TRUTH or HAS_SPAN or HAS_HARD:
                    g += (ce_factor + hard_factor) * tl.exp(z - z_top - z_log_d1)
                if HAS_TRUTH or HAS_SPAN:
                    g -= tl.where(cols == label, ce_factor, 0.0)
                if HAS_HARD:
                    g -= tl.where(cols == u_arg, hard_factor, 0.0)
                tl.store(grad + cols, tl.where(keep, g, 0.0).to(grad.dtype.element_ty), mask=cols < width)

    if KIND == FORWARD_KL:
        divergence = kl_p
    elif KIND == REVERSE_KL:
        divergence = kl_q
    else:
        divergence = beta * kl_p + (1.0 - beta) * kl_q
    loss = kd * temperature * temperature * divergence + (truth + span) * nll + hard * hard_nll

    out = floats + row
    tl.store(out, loss * poison)
    tl.store(out + num_rows, divergence)
    tl.store(out + num_rows * 2, nll)
    tl.store(out + num_rows * 3, hard_nll)
    tl.store(out + num_rows * 4, entropy)
    tl.store(out + num_rows * 5, kd)
    tl.store(out + num_rows * 6, truth)
    tl.store(out + num_rows * 7, hard)
    tl.store(hits + row, (z_arg == label).to(tl.uint8))
    tl.store(hits + num_rows + row, ((z_arg == u_arg) & HAS_TEACHER).to(tl.uint8))


@triton.jit
def _scale_kernel(grad, factor, num_rows, width, stride, BLOCK: tl.constexpr):
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        row = tl.program_id(0).to(tl.int64)
        while row < num_rows:
            for start in range(0, width, BLOCK):
                cols = start + tl.arange(0, BLOCK)
                keep = cols < width
                at = grad + row * stride + cols
                value = tl.load(at, mask=keep, other=0.0).to(tl.float32) * by
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
) -> DistillOutput:
    """As reference.dense_rows, by the kernel: `loss` is [N], grad [N, Vs] is written if given (any float dtype)."""
    num_rows, width = student_logits.shape
    device = student_logits.device
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if logits is not None and logits.stride(1) != 1 and logits.numel() > 0:
            raise ValueError(f"{name} has columns {logits.stride(1)} apart: call .contiguous() on it first")
    floats = torch.empty(8, num_rows, dtype=torch.float32, device=device)
    hits = torch.empty(2, num_rows, dtype=torch.uint8, device=device)
    if num_rows > 0:
        given = [None if w is None else w.to(torch.float32).contiguous() for w in weights]
        # A pointer that no compiled branch reads still has to point somewhere.
        kd, truth, span, hard = (floats if w is None else w for w in given)
        temperature = options.temperature
        constant_t = isinstance(temperature, float) and temperature in (1.0, 2.0, 3.0, 4.0)
        teacher = student_logits if teacher_logits is None else teacher_logits
        target = student_logits if grad is None else grad
        with torch.no_grad(), _on(device):
            _dense_kernel[(num_rows,)](
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
                options.vocab_size,
                width,
                student_logits.stride(0),
                teacher.stride(0),
                target.stride(0),
                KIND=DIVERGENCES.index(options.divergence),
                T=int(temperature) if constant_t else 0,
                HAS_TEACHER=teacher_logits is not None,
                HAS_KD=weights.kd is not None,
                HAS_TRUTH=weights.truth is not None,
                HAS_SPAN=weights.span is not None,
                HAS_HARD=weights.hard is not None,
                HAS_ENTROPY=options.entropy is not None,
                HAS_GRAD=grad is not None,
                BLOCK=_INTERPRETER_BLOCK if INTERPRETED else _BLOCK,
                num_warps=_NUM_WARPS,
            )
        if grad is not None and grad.data_ptr() == student_logits.data_ptr():
            torch.autograd.graph.increment_version(student_logits)
    label_hit, teacher_hit = hits.view(torch.bool)
    span_used = torch.zeros_like(floats[0]) if weights.span is None else weights.span.to(torch.float32)
    loss, divergence, nll, hard_nll, entropy, kd, truth, hard = floats
    used = RowWeights(kd, truth, span_used, hard)
    return DistillOutput(loss, divergence, nll, hard_nll, entropy, label_hit, teacher_hit, used)


def scale_unless_one(grad: Tensor, factor: Tensor) -> None:
    """grad *= factor in place, where the factor is read by the device and 1 costs one small launch."""
    flat = grad.view(1, -1) if grad.dim() == 1 else grad
    if flat.numel() == 0:
        return
    with _on(grad.device):
        _scale_kernel[(min(len(flat), 2048),)](
            flat, factor, len(flat), flat.shape[1], flat.stride(0), BLOCK=_BLOCK, num_warps=_NUM_WARPS
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
    vector = torch.tensor([0.0 if isinstance(v, Tensor) else v for v in values], dtype=torch.float32)
    vector = vector.to(device, non_blocking=True)
    for index, value in enumerate(values):
        if isinstance(value, Tensor):
            vector[index] = value
    return vector
