"""Device functions for what a row is once its statistics are known: weights, loss, outputs. One program does a row's.

`scalars` is the vector of run-time numbers that kernels/fused/dense.py lists; formulas are those of
kernels/reference.py.
"""

import triton
import triton.language as tl

from kernels.contract import IGNORE_INDEX
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


@triton.jit
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
    """Whether the label is a token; 1, or NaN for a label that no tokenizer gave; the four weights, 0 for a term that
    is off.
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


@triton.jit
def weigh_by_entropy(kd, truth, hard, entropy, scalars):
    h_min = tl.load(scalars + H_MIN)
    n = (entropy - h_min) / (tl.load(scalars + H_MAX) - h_min)
    n = tl.minimum(tl.maximum(n, 0.0, propagate_nan=tl.PropagateNan.ALL), 1.0, propagate_nan=tl.PropagateNan.ALL)
    return (
        kd * _factor(n, scalars + KD_ENDS),
        truth * _factor(n, scalars + TRUTH_ENDS),
        hard * _factor(n, scalars + HARD_ENDS),
    )


@triton.jit
def _factor(n, ends):
    """Linear from its value at n = 0 to its value at n = 1."""
    first = tl.load(ends)
    return first + (tl.load(ends + 1) - first) * n


@triton.jit
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
    """The outputs of a dense row, and its gradient's factors: of kd, of the label, of the teacher's choice."""
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


@triton.jit
def store_row(outputs, label_hit, teacher_hit, floats, hits, num_rows, row):
    for index in tl.static_range(8):
        tl.store(floats + index * num_rows + row, outputs[index])
    tl.store(hits + row, label_hit.to(tl.uint8))
    tl.store(hits + num_rows + row, teacher_hit.to(tl.uint8))
