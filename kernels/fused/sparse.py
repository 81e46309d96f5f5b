"""Triton kernel for a teacher that gives K tokens a row: per-row loss parts and the gradient, one program a row.

Formulas: kernels/reference_sparse.py. *Slots* are the teacher's K entries of a row, sorted by id; the *rest* is every
column that no slot names. Off the slots the gradient is one constant times e^(z/T) and another times e^z, so the
vocabulary is swept as for cross-entropy alone, whatever the divergence (bytes a logit in bf16, before L2 helps):

    1. slots         gather the K student logits, into memory of their own: z may be overwritten later
    2. statistics    of the rest: its max and sums of exponentials, online           read z             2
    3. slots         both distributions over K + 1 buckets, divergence, constants
    4. gradient      from the last tile to the first, as if every column were rest   read z, write dz   4
    5. specials      write the label's and the choice's column again, then the slots' K columns, each with its own
                     gradient

In 2, a slot's column is taken out of a tile by one comparison a lane; since slots are sorted, each is compared with one
tile only: K * BLOCK comparisons a row in all, without shared memory or a bit mask of the vocabulary. Layout and masks
(groups of 16 bytes, statistics of their own for each) are those of kernels/fused/sweeps.py, which also says why.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton.language as tl
from torch import Tensor

from kernels.contract import DistillOutput, Options, RowWeights, SparseTeacher
from kernels.divergences import kind_of
from kernels.fused import launches
from kernels.fused.divergence_tiles import FORWARD_KL, REVERSE_KL, bucket_divergence, bucket_pull
from kernels.fused.gradients import zero_padding
from kernels.fused.language import FLOOR, LOWEST, exps, jit, log_of_rest
from kernels.fused.rows import (
    BETA,
    GRAD_SCALE,
    TEMPERATURE,
    UNSPECIALIZED,
    fp32,
    output_of,
    row_weights,
    scalars_of,
    store_row,
    weigh_by_entropy,
)
from kernels.fused.slots import EMPTY, read_buckets, rest_gradient, rest_statistics, sweep_rest_gradient
from kernels.fused.tiles import merge_max, tile_max
from kernels.reference_sparse import sorted_slots

SLOT_BLOCKS = (
    128,
    1024,
)  # taken at once, the rest's bucket among them: one a thread, or several; more are taken in turns
_UNSPECIALIZED = (
    *UNSPECIALIZED,
    "slot_ids",
    "slot_probs",
    "slot_logits",
    "log_tail",
    "entropy_1",
    "entropy_t",
    "choices",
    "num_slots",
)


@jit(do_not_specialize=_UNSPECIALIZED)
def sparse_kernel(
    student,  # [N, Vs], row stride student_stride
    grad,  # [N, Vs], row stride grad_stride; may be student itself
    slot_ids,  # [N, K] int32, ascending; -1 is an empty slot
    slot_probs,  # [N, K] fp32
    slot_logits,  # [N, K] fp32, scratch
    log_tail,  # [N] fp32, as are the two entropies
    entropy_1,
    entropy_t,
    choices,  # [N] integers: the teacher's argmax
    labels,  # [N]
    kd_weight,  # [N] fp32, as are the three below
    truth_weight,
    span_weight,
    hard_weight,
    scalars,  # [11] fp32: T, beta, grad_scale, h_min, h_max, kd ends, truth ends, hard ends
    floats,  # [8, N] fp32 out: loss, divergence, nll, hard_nll, entropy, kd, truth, hard as used
    hits,  # [2, N] uint8 out: label, teacher
    num_rows,
    num_slots,  # K, or 0 where kd is off: then all columns are rest
    vocab,
    width,  # Vs
    student_stride,
    grad_stride,
    KIND: tl.constexpr,
    T: tl.constexpr,  # 1 to 4, or 0: read it from scalars
    SAMPLED: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_SPAN: tl.constexpr,
    HAS_HARD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,  # columns in 16 bytes
    PTX: tl.constexpr,  # may be compiled for NVIDIA alone
    SLOTS: tl.constexpr,
):
    """Process one row a program: outputs of row i in column i of `floats` and `hits`, gradient over row i of `grad`.

    Worked example: one row, V = 3, T = 1, K = 1: token 0 with p = 3/4, log_tail = ln 1/4; kd alone, weight 1.
    z = (ln 2, 0, 0), so q = (1/2, 1/4, 1/4) and the rest has 1/2.
      forward_kl   divergence = 3/4 ln(3/2) + 1/4 ln(1/2)        = 0.130812
                   dz         = (1/2 - 3/4; the rest's 1/2 - 1/4 shared evenly)   = (-1/4, 1/8, 1/8)
      reverse_kl   divergence = 1/2 ln(2/3) + 1/2 ln 2           = 0.143841
                   dz         = 1/2 (ln(2/3) - 0.143841), then the rest's 1/2 (ln 2 - 0.143841) shared evenly
                              = (-0.274653, 0.137327, 0.137327)
    As a sampled teacher, 3 of 4 draws on token 0 and one on token 1, entropy_t = 0.6:
      forward_kl   divergence = 3/4 ln 2 + 1/4 ln 4 - 0.6        = 0.266434
                   dz         = q - (3/4, 1/4, 0)                = (-1/4, 0, 1/4)
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    grad += row * grad_stride
    slot_ids += row * num_slots
    slot_probs += row * num_slots
    slot_logits += row * num_slots
    if T == 0:
        temperature = tl.load(scalars + TEMPERATURE)
    else:
        temperature = T * 1.0
    CE: tl.constexpr = HAS_TRUTH or HAS_SPAN or HAS_HARD
    inv_t = 1.0 / temperature
    beta = tl.load(scalars + BETA)
    slots = tl.arange(0, SLOTS)

    # 1. slots: logits, their max, what is wrong with them
    kept_top, kept_arg, num_empty, num_wrong = LOWEST, 0, 0, 0
    for first in range(0, num_slots, SLOTS):
        slot = first + slots
        inside = slot < num_slots
        token = tl.load(slot_ids + slot, mask=inside, other=EMPTY)
        before = tl.load(slot_ids + slot - 1, mask=inside & (slot > 0), other=EMPTY)
        p = tl.load(slot_probs + slot, mask=inside, other=0.0)
        known = (token >= 0) & (token < vocab)
        filled = inside & (token != EMPTY)
        wrong = filled & ((token == before) | (p < 0.0) | (known == 0))
        num_wrong += tl.sum(wrong.to(tl.int32), 0)
        num_empty += tl.sum((inside & (token == EMPTY)).to(tl.int32), 0)
        z = tl.load(student + token, mask=known, other=float("-inf")).to(tl.float32)
        tl.store(slot_logits + slot, z, mask=inside)
        tile_top, tile_arg = tile_max(z, token)
        kept_top, kept_arg = merge_max(kept_top, kept_arg, tile_top, tile_arg)

    # 2. statistics of the rest, relative to its own max: far below the slots it keeps its proportions
    rest_top, rest_arg, rest_d1, rest_dt = rest_statistics(
        student, slot_ids, num_empty, num_slots, vocab, inv_t, KIND, T, 2 * BLOCK, GROUP, PTX, HAS_GRAD
    )

    # 3. slots: the row's sums, then both distributions over the buckets
    tl.debug_barrier()
    z_top, z_arg = merge_max(kept_top, kept_arg, rest_top, rest_arg)
    above = rest_top - z_top
    f1, ft = exps(above, inv_t, T)
    z_d1, kept_dt = rest_d1 * f1, 0.0
    for first in range(0, num_slots, SLOTS):
        slot = first + slots
        z = tl.load(slot_logits + slot, mask=slot < num_slots, other=float("-inf"))
        e1, et = exps(z - z_top, inv_t, T)
        z_d1 += tl.sum(e1, 0)
        kept_dt += tl.sum(et, 0)
    z_dt = rest_dt * ft + kept_dt
    z_log_d1, z_log_dt = tl.log(z_d1), tl.log(z_dt)
    # A small rest's logarithm is a difference of logarithms; for a rest near 1 that would be all rounding.
    rest_log_q = above * inv_t + tl.log(rest_dt) - z_log_dt
    rest_log_q = tl.where(kept_dt < 0.5 * z_dt, log_of_rest(kept_dt / z_dt), rest_log_q)
    rest_log_p, rest_p = FLOOR, 0.0
    kl_p, kl_q, mass, rest_pull = 0.0, 0.0, 0.0, 0.0
    if HAS_KD:
        if not SAMPLED:
            rest_log_p = tl.maximum(tl.load(log_tail + row), FLOOR, propagate_nan=tl.PropagateNan.ALL)
            rest_p = tl.exp(rest_log_p)
        for first in range(0, num_slots + 1, SLOTS):
            slot = first + slots
            _, _, log_q, log_p, p = read_buckets(
                slot,
                slot_ids,
                slot_probs,
                slot_logits,
                num_slots,
                z_top,
                z_log_dt,
                inv_t,
                rest_log_q,
                rest_log_p,
                rest_p,
            )
            mass += tl.sum(p, 0)
            if SAMPLED:
                kl_p += tl.sum(tl.where(p == 0.0, 0.0, -p * log_q), 0)
            else:
                bucket_p, bucket_q = bucket_divergence(log_q, log_p, p, beta, slot <= num_slots, KIND)
                kl_p += bucket_p
                kl_q += bucket_q
        if SAMPLED:
            kl_p -= tl.load(entropy_t + row)
        rest_pull = bucket_pull(rest_log_q, rest_log_p, rest_p, mass, kl_q, beta, KIND)

    # The row's weights, and NaN for a label or a slot that no tokenizer gave
    label = tl.load(labels + row)
    valid, poison, kd, truth, span, hard = row_weights(
        row, label, vocab, kd_weight, truth_weight, span_weight, hard_weight, HAS_KD, HAS_TRUTH, HAS_SPAN, HAS_HARD
    )
    choice = tl.load(choices + row)
    chosen = (choice >= 0) & (choice < vocab)
    poison = tl.where((chosen | (hard == 0.0)) & (num_wrong == 0), poison, float("nan"))
    entropy = tl.load(entropy_1 + row)
    if HAS_ENTROPY:
        kd, truth, hard = weigh_by_entropy(kd, truth, hard, entropy, scalars)

    z_label = tl.load(student + label, mask=valid, other=0.0).to(tl.float32)
    z_choice = tl.load(student + choice, mask=chosen, other=0.0).to(tl.float32)
    nll, hard_nll = 0.0, 0.0
    if HAS_TRUTH or HAS_SPAN:
        nll = tl.where(valid, z_log_d1 - (z_label - z_top), 0.0) * poison
    if HAS_HARD:
        hard_nll = tl.where(chosen, z_log_d1 - (z_choice - z_top), 0.0)
    if KIND == FORWARD_KL:
        divergence = kl_p
    elif KIND == REVERSE_KL:
        divergence = kl_q
    else:
        divergence = beta * kl_p + (1.0 - beta) * kl_q
    loss = kd * temperature * temperature * divergence + (truth + span) * nll + hard * hard_nll
    outputs = (loss * poison, divergence, nll, hard_nll, entropy, kd, truth, hard)
    store_row(outputs, z_arg == label, z_arg == choice, floats, hits, num_rows, row)

    if HAS_GRAD:
        # 4. gradient of every column as part of the rest. Everything that has to be read of `student` by position has
        # been
        # read: `grad` may be the same memory.
        tl.debug_barrier()
        scale = tl.load(scalars + GRAD_SCALE) * poison
        kd_factor = kd * temperature * scale  # d(T^2 D)/dz = T^2 dD/ds / T
        ce_factor, hard_factor = (truth + span) * scale, hard * scale
        rest_kd = kd_factor * tl.where(rest_dt == 0.0, 0.0, rest_pull / rest_dt)
        rest_ce = (ce_factor + hard_factor) * tl.exp(above - z_log_d1)
        sweep_rest_gradient(
            student, grad, vocab, rest_top, rest_kd, rest_ce, poison, inv_t, T, HAS_KD, CE, 2 * BLOCK, GROUP, PTX
        )
        zero_padding(grad, vocab, width, BLOCK // GROUP)

        # 5. specials: label and choice as part of the rest, then slots, which may be one or the other
        tl.debug_barrier()
        both = tl.where(label == choice, 1.0, 0.0)
        if HAS_TRUTH or HAS_SPAN:
            at_label = rest_gradient(z_label, rest_top, rest_kd, rest_ce, poison, inv_t, T, HAS_KD, CE, False)
            tl.store(grad + label, (at_label - ce_factor - both * hard_factor).to(grad.dtype.element_ty), mask=valid)
        if HAS_HARD:
            at_choice = rest_gradient(z_choice, rest_top, rest_kd, rest_ce, poison, inv_t, T, HAS_KD, CE, False)
            tl.store(grad + choice, (at_choice - hard_factor - both * ce_factor).to(grad.dtype.element_ty), mask=chosen)
        tl.debug_barrier()
        for first in range(0, num_slots, SLOTS):
            slot = first + slots
            token, z, log_q, log_p, p = read_buckets(
                slot,
                slot_ids,
                slot_probs,
                slot_logits,
                num_slots,
                z_top,
                z_log_dt,
                inv_t,
                rest_log_q,
                rest_log_p,
                rest_p,
            )
            g = kd_factor * bucket_pull(log_q, log_p, p, mass, kl_q, beta, KIND)
            if CE:
                g += (ce_factor + hard_factor) * tl.exp(z - z_top - z_log_d1)
            g -= tl.where(token == label, ce_factor, 0.0) + tl.where(token == choice, hard_factor, 0.0)
            tl.store(grad + token, g.to(grad.dtype.element_ty), mask=(token >= 0) & (token < vocab))


def sparse_rows(
    student_logits: Tensor,
    teacher: SparseTeacher,
    labels: Tensor,
    weights: RowWeights,
    options: Options,
    grad: Tensor | None,
) -> DistillOutput:
    """Do as reference_sparse.sparse_rows, by the kernel: `loss` is [N], grad [N, Vs], if given, is written."""
    num_rows, width = student_logits.shape
    device = student_logits.device
    floats = torch.empty(8, num_rows, dtype=torch.float32, device=device)
    hits = torch.empty(2, num_rows, dtype=torch.uint8, device=device)
    if num_rows > 0:
        # A pointer that no compiled branch reads still has to point somewhere.
        kd, truth, span, hard = (floats if w is None else fp32(w) for w in weights)
        ids, probs, logits, num_slots = floats.view(torch.int32), floats, floats, 0
        if weights.kd is not None:
            ids, probs = sorted_slots(teacher)
            ids, probs, num_slots = ids.contiguous(), fp32(probs), ids.shape[1]  # sort keeps the strides it is given
            logits = torch.empty(num_rows, num_slots, dtype=torch.float32, device=device)
        target = student_logits if grad is None else grad
        vocab = options.vocab_size
        group = launches.group_of(student_logits.dtype)
        kind = kind_of(options.divergence) if num_slots else 0
        launch = launches.row_launch(launches.device_facts(device), vocab * student_logits.element_size(), group, kind)
        with torch.no_grad(), launches.on_device(device):
            sparse_kernel[(num_rows,)](
                student_logits,
                target,
                ids,
                probs,
                logits,
                fp32(teacher.log_tail),
                fp32(teacher.entropy),
                fp32(teacher.entropy_t),
                teacher.argmax.contiguous(),
                labels.contiguous(),
                kd,
                truth,
                span,
                hard,
                scalars_of(options, device),
                floats,
                hits,
                num_rows,
                num_slots,
                vocab,
                width,
                student_logits.stride(0),
                target.stride(0),
                KIND=kind,
                SAMPLED=num_slots > 0 and teacher.kind == "sampled",
                BLOCK=launches.interpretable(launch).block,
                GROUP=group,
                PTX=launches.takes_ptx(launch.device.arch),
                SLOTS=SLOT_BLOCKS[num_slots >= SLOT_BLOCKS[0]],
                HAS_GRAD=grad is not None,
                **launches.compiled_in(weights, options),
                **launches.options_of(launch),
            )
        if grad is not None and grad.data_ptr() == student_logits.data_ptr():
            torch.autograd.graph.increment_version(student_logits)
    return output_of(floats, hits, weights)


def launchable(arch: str, dtype: torch.dtype, kind: int | None, gradient: bool) -> Iterator[launches.Compiled]:
    """List as launches.launchable, with few slots and many (few without kd), and forward_kl of a sampled teacher."""
    for found in launches.launchable(arch, dtype, kind, gradient):
        for sampled in (False, True) if kind == kind_of("forward_kl") else (False,):
            for slots in SLOT_BLOCKS[: 1 if kind is None else 2] if found.kernel == "row" else ():
                yield found._replace(kernel="sparse", constants=found.constants | dict(SAMPLED=sampled, SLOTS=slots))
