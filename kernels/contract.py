"""What goes into the losses and what comes out, and the checks made on the way in.

Shapes: N rows (supervised positions), V vocabulary width, H hidden width, K kept teacher tokens. Everything here is a
NamedTuple: ZeRO-3's hooks look for tensors inside tuples, lists and dicts, and do not see them inside dataclasses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = -100
NO_TOKEN = -1  # id of a slot that a SparseTeacher left empty
LOG_P_FLOOR = -1e4  # log p below it counts as this much, so that reverse_kl of a masked teacher token stays finite
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")

Scalar = float | Tensor  # a number, or a 0-d tensor that may live on the device


class RowWeights(NamedTuple):
    """What each term of each row weighs: fp32 [N], or None for a term that is off in the whole call.

    The normaliser (1 / number of rows the term applies to) and any record weight belong in here. A field that is None
    costs nothing and its rows in the output are zeros; a field of zeros is computed and reported, with zero weight.
    """

    kd: Tensor | None = None
    truth: Tensor | None = None
    span: Tensor | None = None  # tool + args + integration, summed
    hard: Tensor | None = None


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
    weights: RowWeights  # after entropy weighting; zeros where the weight was None


def take_rows(fields: NamedTuple, part: slice) -> NamedTuple:
    """The rows in `part` of every tensor in a RowWeights or SparseTeacher."""
    return type(fields)(*(field[part] if isinstance(field, Tensor) else field for field in fields))


class RowsInChunks:
    """Outputs of consecutive rows, put into whole columns a chunk at a time; `loss` is [N] here.

    Kept in pieces until the end they would lie between the large temporaries of one chunk and the next, and the C
    library's heap would grow with every chunk: several times the memory that is in use.
    """

    def __init__(self, num_rows: int):
        self._num_rows, self._columns = num_rows, None

    def put(self, part: slice, output: DistillOutput) -> None:
        pieces = (*output[:-1], *output.weights)
        if self._columns is None:
            whole = len(output.loss) == self._num_rows
            self._columns = pieces if whole else [piece.new_empty(self._num_rows) for piece in pieces]
        if self._columns is not pieces:
            for column, piece in zip(self._columns, pieces):
                column[part] = piece

    def output(self) -> DistillOutput:
        return DistillOutput(*self._columns[:7], RowWeights(*self._columns[7:]))


class Options(NamedTuple):
    """Checked settings as the implementations read them. `beta` is None unless divergence is a true jsd."""

    temperature: Scalar
    divergence: str
    beta: Scalar | None
    entropy: EntropyWeighting | None
    vocab_size: int
    grad_scale: Scalar


def host_number(value: Scalar, name: str, device: torch.device) -> Scalar:
    """A float where the host can know it without waiting; a 0-d tensor on the logits' own device stays a tensor."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.dim() != 0:
        raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}: one value a call")
    if value.device.type == "cpu":
        return float(value.detach())
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the logits on {device}: move it there once, outside the loop")
    return value.detach()


def resolve_divergence(divergence: str, beta: Scalar | None) -> tuple[str, Scalar | None]:
    """Apply the field's convention: jsd with beta 0 is forward_kl, with beta 1 reverse_kl (the formula's limits are
    0).
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}: choose one of {', '.join(DIVERGENCES)}")
    if divergence != "jsd":
        if beta is not None:
            raise ValueError(f"beta belongs to divergence='jsd' only; remove it, or replace {divergence!r} by 'jsd'")
        return divergence, None
    if beta is None:
        raise ValueError("divergence='jsd' needs beta between 0 (forward_kl) and 1 (reverse_kl), for example beta=0.5")
    if isinstance(beta, float):
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta is {beta}; it must lie in [0, 1] (0 is forward_kl, 1 is reverse_kl)")
        if beta == 0.0:
            return "forward_kl", None
        if beta == 1.0:
            return "reverse_kl", None
    return "jsd", beta


def _check_positive(value: Scalar, name: str) -> Scalar:
    if isinstance(value, float) and not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    return value


def _check_entropy(entropy: EntropyWeighting, device: torch.device) -> EntropyWeighting:
    h_min = host_number(entropy.h_min, "entropy.h_min", device)
    h_max = host_number(entropy.h_max, "entropy.h_max", device)
    if isinstance(h_min, float) and isinstance(h_max, float) and not h_min < h_max:
        raise ValueError(f"entropy.h_min ({h_min}) must be below entropy.h_max ({h_max}); both are in nats")
    ends = {}
    for term in ("kd", "truth", "hard"):
        pair = getattr(entropy, term)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"entropy.{term} must be a pair (factor at n=0, factor at n=1), got {pair!r}")
        ends[term] = tuple(host_number(end, f"entropy.{term}", device) for end in pair)
    return EntropyWeighting(h_min, h_max, **ends)


def resolve_vocab_size(vocab_size: int | None, student_width: int, teacher_width: int | None) -> int:
    """Columns that count. Both widths may be padded; what lies past the tokenizer never gets probability."""
    narrow = student_width if teacher_width is None else min(student_width, teacher_width)
    if vocab_size is None:
        if teacher_width not in (None, student_width):
            raise ValueError(
                f"student has {student_width} columns and teacher {teacher_width}: "
                "pass vocab_size=len(tokenizer) so that padding gets no probability"
            )
        return student_width
    if not 1 <= vocab_size <= narrow:
        raise ValueError(f"vocab_size is {vocab_size}; it must lie between 1 and the narrower width, {narrow}")
    return int(vocab_size)


def check_rows(num_rows: int, device: torch.device, labels: Tensor, weights: RowWeights) -> RowWeights:
    """Labels and weights fit N rows; the weights come back detached: they are constants to autograd."""
    if labels.shape != (num_rows,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"labels must be int64 or int32 of shape [{num_rows}], got {labels.dtype} {list(labels.shape)}"
        )
    if not isinstance(weights, RowWeights):
        raise ValueError("weights must be a RowWeights(kd, truth, span, hard); a term that is off may be None")
    for name, tensor in [("labels", labels), *weights._asdict().items()]:
        if tensor is None:
            continue
        if tensor.shape != (num_rows,):
            raise ValueError(f"weights.{name} has shape {list(tensor.shape)}; one value a row, [{num_rows}], is needed")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the student on {device}: move it there")
        if name != "labels" and not tensor.is_floating_point():
            raise ValueError(f"weights.{name} is {tensor.dtype}; use float32")
    return RowWeights(*(None if tensor is None else tensor.detach() for tensor in weights))


def check_sparse_teacher(teacher: SparseTeacher, num_rows: int, device: torch.device, divergence: str) -> SparseTeacher:
    """Shapes, types and kind; what is in the slots stays on the device and is judged there. Comes back detached."""
    if teacher.kind not in ("topk", "sampled"):
        raise ValueError(
            f"teacher.kind is {teacher.kind!r}: choose 'topk' (with the tail's mass) or 'sampled' (counts)"
        )
    if teacher.kind == "sampled" and divergence != "forward_kl":
        raise ValueError(
            f"a sampled teacher gives draws, from which {divergence} cannot be estimated without bias: "
            "use divergence='forward_kl', or a topk teacher"
        )
    ids = teacher.ids
    if ids.dim() != 2 or ids.dtype != torch.int32 or ids.shape[1] < 1:
        raise ValueError(f"teacher.ids must be int32 [N, K] with K >= 1, got {ids.dtype} {list(ids.shape)}")
    if teacher.probs.shape != ids.shape:
        raise ValueError(f"teacher.probs has shape {list(teacher.probs.shape)}, teacher.ids {list(ids.shape)}")
    if len(ids) != num_rows:
        raise ValueError(
            f"teacher has {len(ids)} rows, the student {num_rows}: select the same supervised rows from both"
        )
    for name in ("log_tail", "entropy", "entropy_t", "argmax"):
        tensor = getattr(teacher, name)
        if tensor.shape != (num_rows,):
            raise ValueError(f"teacher.{name} has shape {list(tensor.shape)}; one value a row, [{num_rows}], is needed")
    for name, tensor in zip(teacher._fields, teacher[:-1]):
        if tensor.device != device:
            raise ValueError(f"teacher.{name} is on {tensor.device}, the student on {device}: move it there")
        if tensor.is_floating_point() == (name in ("ids", "argmax")):
            raise ValueError(f"teacher.{name} is {tensor.dtype}; ids and argmax are integers, all else floating point")
    return SparseTeacher(*(tensor.detach() for tensor in teacher[:-1]), teacher.kind)


def check_teacher_terms(has_teacher: bool, weights: RowWeights, entropy: EntropyWeighting | None) -> None:
    """Without a teacher only truth and span mean something; asking for more is a mistake worth stopping for."""
    if has_teacher:
        return
    asked = [f"weights.{name}" for name in ("kd", "hard") if getattr(weights, name) is not None]
    asked += ["entropy"] if entropy is not None else []
    if asked:
        raise ValueError(f"{' and '.join(asked)} need a teacher: set to None, or pass the teacher")


def resolve_options(
    device: torch.device,
    widths: tuple[int, int | None],
    *,
    temperature: Scalar,
    divergence: str,
    beta: Scalar | None,
    entropy: EntropyWeighting | None,
    vocab_size: int | None,
    grad_scale: Scalar,
) -> Options:
    """Check every setting against the others and the two widths (student, teacher or None). Raises ValueError."""
    beta = None if beta is None else host_number(beta, "beta", device)
    divergence, beta = resolve_divergence(divergence, beta)
    return Options(
        temperature=_check_positive(host_number(temperature, "temperature", device), "temperature"),
        divergence=divergence,
        beta=beta,
        entropy=None if entropy is None else _check_entropy(entropy, device),
        vocab_size=resolve_vocab_size(vocab_size, *widths),
        grad_scale=_check_positive(host_number(grad_scale, "grad_scale", device), "grad_scale"),
    )
