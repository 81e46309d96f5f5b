"""Inputs and outputs of the losses, and their settings before and after the checks (kernels/checks.py).

Shapes: N rows (supervised positions), V vocabulary width, H hidden width, K kept teacher tokens. Everything here is a
NamedTuple: ZeRO-3's hooks look for tensors inside tuples, lists and dicts, and do not see them inside dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

IGNORE_INDEX = -100
NO_TOKEN = -1  # id of a slot that a SparseTeacher left empty
LOG_P_FLOOR = -1e4  # log p below it counts as this much, so that reverse_kl of a masked teacher token stays finite

Scalar = float | Tensor  # a number, or a 0-d tensor that may live on the device


class RowWeights(NamedTuple):
    """Weight of each term in each row: fp32 [N], or None for a term that is off in the whole call.

    The normaliser (1 / number of rows the term applies to) and any record weight belong in here. A field that is None
    costs nothing and its rows in the output are zeros; a field of zeros is computed and reported, with zero weight.
    """

    kd: Tensor | None = None
    truth: Tensor | None = None
    span: Tensor | None = None  # tool + args + integration, summed
    hard: Tensor | None = None


class UsedWeights(RowWeights):
    """Weights as they entered the loss, after entropy weighting; zeros where RowWeights has None."""

    kd: Tensor
    truth: Tensor
    span: Tensor
    hard: Tensor


class EntropyWeighting(NamedTuple):
    """Factors on kd, truth and hard that follow the teacher's entropy H (nats, at temperature 1), token by token.

    n = clip((H - h_min) / (h_max - h_min), 0, 1); each factor goes linearly from its first value (n = 0, a sure
    teacher) to its second (n = 1), and multiplies that term's RowWeights. Ends are floats or 0-d tensors. The default
    triples sum to 1 at every n. Span weights are never touched.
    """

    h_min: Scalar = 2.0
    h_max: Scalar = 8.0
    kd: tuple[Scalar, Scalar] = (0.4, 0.6)
    truth: tuple[Scalar, Scalar] = (0.4, 0.2)
    hard: tuple[Scalar, Scalar] = (0.2, 0.2)


class Head(NamedTuple):
    """A language-model head: z = scale * (x @ weight.T + bias), then softcap * tanh(z / softcap) if softcap is set."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    softcap: float | None = None
    scale: float = 1.0


class DenseTeacher(NamedTuple):
    """A teacher with a logit for every token, kept as hidden states until a chunk of rows needs its logits."""

    hidden: Tensor  # [N, Ht]
    head: Head


class SparseTeacher(NamedTuple):
    """A teacher that gives K tokens a row: from a cache, or the top of a live one.

    A slot of id -1 or probability 0 is empty: its token, if it names one, is among "all other tokens". Slots come in
    any order. A token in two slots, an id that is neither -1 nor in [0, vocab_size), or a negative probability makes
    the row's loss and gradient NaN, as a label out of range does.

    "topk": the divergence is that of K + 1 buckets, the last of them all other tokens together, so it is at most the
    divergence over the whole vocabulary. log_tail = -inf says that the teacher gives those tokens nothing; they are
    then to the divergence what one token of probability 0 is to a dense one (reverse_kl charges 1e4 a unit of student
    mass). "sampled": probs are counts / draws from p_T; forward_kl only; log_tail is not read.
    """

    ids: Tensor  # [N, K] int32, K >= 1
    probs: Tensor  # [N, K] at temperature T
    log_tail: Tensor  # [N] log of the mass on all other tokens at T
    entropy: Tensor  # [N] nats, at T = 1, of the whole distribution; read by entropy weighting and for the report
    entropy_t: Tensor  # [N] nats, at T, of the whole distribution; read for "sampled"
    argmax: Tensor  # [N] integers; out of range is allowed where the hard weight is 0, and makes the row NaN elsewhere
    kind: str  # "topk" or "sampled"


class DistillOutput(NamedTuple):
    """The loss and its parts by row. Only `loss` carries gradient; the rest are constants for reports and named terms.

    loss = sum_i of kd_i T^2 divergence_i + (truth_i + span_i) nll_i + hard_i hard_nll_i, with the weights as used.
    Rows are fp32 (fp64 for fp64 logits); the two hits are bool. Parts of a term that is off (weight None) are zeros,
    and so is all that needs a teacher when there is none.
    """

    loss: Tensor  # []
    divergence: Tensor  # [N] nats, without T^2
    nll: Tensor  # [N] nats, T = 1; 0 where the label is -100
    hard_nll: Tensor  # [N] nats, T = 1, against the teacher's argmax
    teacher_entropy: Tensor  # [N] nats, T = 1
    label_hit: Tensor  # [N] bool: the student's argmax is the label
    teacher_hit: Tensor  # [N] bool: the student's argmax is the teacher's
    weights: UsedWeights


_Fields = TypeVar("_Fields", RowWeights, SparseTeacher)


def take_rows(fields: _Fields, part: slice) -> _Fields:
    """Take the rows in `part` of every tensor; what is no tensor stays."""
    return type(fields)._make(field[part] if isinstance(field, Tensor) else field for field in fields)


class RowsInChunks:
    """Outputs of consecutive rows, put into whole columns a chunk at a time; `loss` is [N] here.

    Kept in pieces until the end they would lie between the large temporaries of one chunk and the next, and the C
    library's heap would grow with every chunk: several times the memory that is in use.
    """

    def __init__(self, num_rows: int):
        self._num_rows = num_rows
        self._columns: list[Tensor] = []

    def put(self, part: slice, output: DistillOutput) -> None:
        """Keep the rows in `part`; one chunk of all rows is kept as it is."""
        pieces = columns_of(output)
        if not self._columns and len(output.loss) == self._num_rows:
            self._columns = pieces
            return
        if not self._columns:
            self._columns = [piece.new_empty(self._num_rows) for piece in pieces]
        for column, piece in zip(self._columns, pieces):
            column[part] = piece

    def output(self) -> DistillOutput:
        """Return the rows of all chunks together."""
        return output_of_columns(self._columns)


def columns_of(output: DistillOutput) -> list[Tensor]:
    """List an output's tensors, its weights last (11 tensors)."""
    used = output.weights
    return [*output[:-1], used.kd, used.truth, used.span, used.hard]


def output_of_columns(columns: Sequence[Tensor]) -> DistillOutput:
    """Make an output of what columns_of lists."""
    loss, divergence, nll, hard_nll, entropy, label_hit, teacher_hit, *weights = columns
    used = UsedWeights._make(weights)
    return DistillOutput(loss, divergence, nll, hard_nll, entropy, label_hit, teacher_hit, used)


class Settings(NamedTuple):
    """Settings of a loss as its caller gives them; see distill_loss for each."""

    temperature: Scalar = 1.0
    divergence: str = "forward_kl"
    beta: Scalar | None = None
    entropy: EntropyWeighting | None = None
    vocab_size: int | None = None
    grad_scale: Scalar = 1.0
    impl: str = "auto"


class Options(NamedTuple):
    """Settings after the checks, as the implementations read them. `beta` is None unless the divergence takes one."""

    temperature: Scalar
    divergence: str
    beta: Scalar | None
    entropy: EntropyWeighting | None
    vocab_size: int
    grad_scale: Scalar
