"""Rows, once their statistics are known: weights, loss and outputs on the device, and both ends of them on the host.

`scalars` is the vector of run-time numbers that scalars_of makes; formulas are those of
kernels/reference.py.
"""

import torch
import triton.language as tl
from torch import Tensor

from kernels.contract import IGNORE_INDEX, DistillOutput, Options, RowWeights, UsedWeights
from kernels.fused.language import jit
from kernels.fused.tiles import MOMENT, U_SUM, Z_CHOICE, Z_LABEL, Z_SUM, Z_TOP

# Places in `scalars`; each of the last three has two, at n = 0 and at n = 1.
TEMPERATURE, BETA, GRAD_SCALE, H_MIN, H_MAX, KD_ENDS, TRUTH_ENDS, HARD_ENDS = (
    tl.constexpr(place) for place in (0, 1, 2, 3, 4, 5, 7, 9)
)
_IGNORE = tl.constexpr(IGNORE_INDEX)
# Arguments of a kernel whose value and alignment must not choose among compilations, or a step with one row, a chunk
# that
# starts anywhere or a tokenizer of another size would wait for the compiler. Nothing that they could tell it is of use.
UNSPECIALIZED = (
    "labels",
    "kd_weight",
    "truth_weight",
    "span_weight",
    "hard_weight",
    "scalars",
    "floats",
    "hits",
    "num_rows",
    "vocab",
)


@jit
def row_weights(
    row,
    label,
    vocab,
    kd_weight,
    truth_weight,
    span_weight,
    hard_weight,
    KD: tl.constexpr,
    TRUTH: tl.constexpr,
    SPAN: tl.constexpr,
    HARD: tl.constexpr,
):
    """Return a flag (the label is a token), 1 or NaN (a label that no tokenizer gave), and the four weights, 0 for a
    term that is off.
    """
    truth, span, kd, hard = 0.0, 0.0, 0.0, 0.0
    if TRUTH:
        truth = tl.load(truth_weight + row)
    if SPAN:
        span = tl.load(span_weight + row)
    if KD:
        kd = tl.load(kd_weight + row)
    if HARD:
        hard = tl.load(hard_weight + row)
    valid = (label >= 0) & (label < vocab)
    poison = tl.where(valid | ((label == _IGNORE) & (truth + span == 0.0)), 1.0, float("nan"))
    return valid, poison, kd, truth, span, hard


@jit
def weigh_by_entropy(kd, truth, hard, entropy, scalars):
    h_min = tl.load(scalars + H_MIN)
    n = (entropy - h_min) / (tl.load(scalars + H_MAX) - h_min)
    n = tl.minimum(tl.maximum(n, 0.0, propagate_nan=tl.PropagateNan.ALL), 1.0, propagate_nan=tl.PropagateNan.ALL)
    return (
        kd * _factor(n, scalars + KD_ENDS),
        truth * _factor(n, scalars + TRUTH_ENDS),
        hard * _factor(n, scalars + HARD_ENDS),
    )


@jit
def _factor(n, ends):
    """Interpolate linearly from the value at n = 0 to the value at n = 1."""
    first = tl.load(ends)
    return first + (tl.load(ends + 1) - first) * n


@jit
def row_terms(
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
    TEACHER: tl.constexpr,
    KD: tl.constexpr,
    TRUTH: tl.constexpr,
    SPAN: tl.constexpr,
    HARD: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """Compute the outputs of a dense row, and its gradient's factors: of kd, of the label, of the teacher's choice."""
    valid, poison, kd, truth, span, hard = row_weights(
        row, label, vocab, kd_weight, truth_weight, span_weight, hard_weight, KD, TRUTH, SPAN, HARD
    )
    entropy = 0.0
    if TEACHER:
        entropy = tl.log(stats[U_SUM]) - stats[MOMENT] / stats[U_SUM]
    if HARD:
        poison += entropy * 0.0  # of a teacher of NaN the choice means nothing
    if ENTROPY:
        kd, truth, hard = weigh_by_entropy(kd, truth, hard, entropy, scalars)
    z_log_d1 = tl.log(stats[Z_SUM])
    nll, hard_nll = 0.0, 0.0
    if TRUTH or SPAN:
        nll = tl.where(valid, z_log_d1 - (stats[Z_LABEL] - stats[Z_TOP]), 0.0) * poison
    if HARD:
        hard_nll = z_log_d1 - (stats[Z_CHOICE] - stats[Z_TOP])
    loss = (kd * temperature * temperature * divergence + (truth + span) * nll + hard * hard_nll) * poison
    scale = tl.load(scalars + GRAD_SCALE) * poison
    outputs = (loss, divergence, nll, hard_nll, entropy, kd, truth, hard)
    return outputs, kd * temperature * scale, (truth + span) * scale, hard * scale, poison


@jit
def store_row(outputs, label_hit, teacher_hit, floats, hits, num_rows, row):
    for index in tl.static_range(8):  # pyright: ignore[reportGeneralTypeIssues]  triton types it as no iterator
        tl.store(floats + index * num_rows + row, outputs[index])
    tl.store(hits + row, label_hit.to(tl.uint8))
    tl.store(hits + num_rows + row, teacher_hit.to(tl.uint8))


def scalars_of(options: Options, device: torch.device) -> Tensor:
    """Put the run-time numbers, as listed above, into one fp32 vector [11] on the device, without the host waiting."""
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


def fp32(values: Tensor) -> Tensor:
    """Convert a row vector, or slots, to contiguous fp32."""
    return values.to(torch.float32).contiguous()


def output_of(floats: Tensor, hits: Tensor, weights: RowWeights) -> DistillOutput:
    """Name what store_row wrote. Span weights are used as they are given."""
    label_hit, teacher_hit = hits.view(torch.bool)
    span = torch.zeros_like(floats[0]) if weights.span is None else weights.span.to(torch.float32)
    loss, divergence, nll, hard_nll, entropy, kd, truth, hard = floats
    used = UsedWeights(kd, truth, span, hard)
    return DistillOutput(loss, divergence, nll, hard_nll, entropy, label_hit, teacher_hit, used)
