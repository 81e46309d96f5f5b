"""The training loss: terms weighted by spans and normalisers, computed by one fused call into `kernels`.

    kd, hard, truth      over every supervised row
    tool, args, integration   cross-entropy over the rows whose token carries that span bit

Each term is divided by the number of rows it applies to in the *whole optimizer step* (over micro-batches and ranks; by
their summed weights where records are weighted), so the gradient does not depend on how a step is split. The division
is made here, once, in the row weights; nothing is divided after.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.objective.answer_loss import AnswerLoss
from kd.objective.terms import TERMS, TermWeights
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kernels import DenseTeacher, DistillOutput, Head, RowWeights, SparseTeacher, distill_loss, linear_distill_loss


class SpanRows(NamedTuple):
    """Row weights by term, fp32 [N] or None: `rows` goes to the kernel, the three others add up to rows.span."""

    rows: RowWeights
    tool: Tensor | None
    args: Tensor | None
    integration: Tensor | None


class CombinedLoss(NamedTuple):
    """`loss` carries gradient. `terms` [6] are the weighted sums in the order of `kd.objective.terms.TERMS`; they and
    those of `answers` (kd/objective/answer_loss.py), where there are any, add up to loss.
    """

    loss: Tensor
    terms: Tensor
    rows: DistillOutput
    answers: AnswerLoss | None = None


def row_weights(bits: Tensor, weight: Tensor, counts: Tensor, terms: TermWeights, *, divisor: float = 1.0) -> SpanRows:
    """Make the weights of each row in each term.

    Args:
        bits: [N] span masks of the rows' labels.
        weight: [N] fp32, the records' weights.
        counts: [4] sums of `weight` over the rows with TRUTH, TOOL, ARGS, INTEGRATION, in the whole optimizer step.
        terms: the weights now; a term that weighs 0 becomes None and costs nothing.
        divisor: what the gradient is divided by downstream (DeepSpeed averages over ranks: the world size).
    """
    num_truth, num_tool, num_args, num_integration = counts.tolist()

    def of(scale: float, count: float, bit: int) -> Tensor | None:
        if scale == 0:
            return None
        factor = scale * divisor / count if count > 0 else 0.0
        return weight * ((bits & bit) != 0) * factor

    tool = of(terms.tool, num_tool, TOOL)
    args = of(terms.args, num_args, ARGS)
    integration = of(terms.integration, num_integration, INTEGRATION)
    spans = [s for s in (tool, args, integration) if s is not None]
    rows = RowWeights(
        kd=of(terms.kd, num_truth, TRUTH),
        truth=of(terms.truth, num_truth, TRUTH),
        span=torch.stack(spans).sum(0) if spans else None,
        hard=of(terms.hard, num_truth, TRUTH),
    )
    return SpanRows(rows, tool, args, integration)


def combined_kd_loss(
    hidden: Tensor,
    head: Head,
    teacher: DenseTeacher | SparseTeacher | None,
    labels: Tensor,
    weights: SpanRows,
    terms: TermWeights,
    **settings: Any,
) -> CombinedLoss:
    """Compute the loss of one micro-batch from hidden states [N, H] of its supervised rows.

    Under ZeRO-3 call it inside engine.forward: the head's weight is whole only there.

    Args:
        hidden, head, teacher, labels: as `linear_distill_loss` takes them.
        weights: of each row, normalisers included.
        terms: temperature and entropy weighting of the step.
        settings: handed on to `linear_distill_loss`: divergence, beta, vocab_size, grad_scale, chunk_rows, impl.
    """
    out = linear_distill_loss(
        hidden, head, teacher, labels, weights.rows, temperature=terms.temperature, entropy=terms.entropy, **settings
    )
    return CombinedLoss(out.loss, term_sums(out, weights, terms.temperature), out)


def term_sums(out: DistillOutput, weights: SpanRows, temperature: float) -> Tensor:
    """Return [6] fp32: each term as a weighted sum of its rows, in the order of TERMS; together they are out.loss."""
    used, zero = out.weights, out.nll.new_zeros(())

    def total(weight: Tensor | None, value: Tensor) -> Tensor:
        return zero if weight is None else (weight * value.masked_fill(weight == 0, 0)).sum()

    sums = {
        "kd": total(used.kd, out.divergence) * temperature**2,
        "hard": total(used.hard, out.hard_nll),
        "truth": total(used.truth, out.nll),
        "tool": total(weights.tool, out.nll),
        "args": total(weights.args, out.nll),
        "integration": total(weights.integration, out.nll),
    }
    return torch.stack([sums[name] for name in TERMS]).detach()


def _span_loss(logits: Tensor, labels: Tensor, bits: Tensor, bit: int, impl: str) -> Tensor:
    mask = ((bits & bit) != 0).float()
    return distill_loss(logits, None, labels, RowWeights(span=mask / mask.sum().clamp(min=1)), impl=impl).loss


def tool_name_loss(logits: Tensor, labels: Tensor, bits: Tensor, *, impl: str = "auto") -> Tensor:
    """Compute the mean cross-entropy over the tokens of tool names: logits [N, V] of the rows before them, labels and
    bits [N].

    A graph-connected 0 where no row has the bit.
    """
    return _span_loss(logits, labels, bits, TOOL, impl)


def json_argument_loss(logits: Tensor, labels: Tensor, bits: Tensor, *, impl: str = "auto") -> Tensor:
    """Compute the mean cross-entropy over the tokens of arguments objects; as `tool_name_loss`."""
    return _span_loss(logits, labels, bits, ARGS, impl)


def integration_copy_loss(logits: Tensor, labels: Tensor, bits: Tensor, *, impl: str = "auto") -> Tensor:
    """Compute the mean cross-entropy over tokens that carry a value out of a tool's result; as `tool_name_loss`."""
    return _span_loss(logits, labels, bits, INTEGRATION, impl)


def process_supervision_loss(
    logits: Tensor,
    labels: Tensor,
    bits: Tensor,
    *,
    w_tool: float = 0.15,
    w_args: float = 0.15,
    w_integr: float = 0.10,
    impl: str = "auto",
) -> Tensor:
    """Compute the three span losses, weighted and summed, in one pass over logits [N, V]."""
    ones = torch.ones(len(labels), device=labels.device)
    counts = torch.stack([((bits & bit) != 0).sum() for bit in (TRUTH, TOOL, ARGS, INTEGRATION)])
    terms = TermWeights(1.0, 0.0, 0.0, 0.0, w_tool, w_args, w_integr)
    return distill_loss(logits, None, labels, row_weights(bits, ones, counts, terms).rows, impl=impl).loss
