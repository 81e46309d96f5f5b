"""Loss on the student's own answers: distill, repair and reward as row weights of one fused call.

A row is a token of an answer as it was sampled, or of its correction:

    L_i =  distill_i * T^2 D(p_T, q_T)       divergence from the live teacher, on sampled tokens
         + repair_i  * (-log q[y_i])         cross-entropy on a correction, from its first token on
         + reward_i  * (-log q[y_i])         policy gradient: weights signed by the answer's advantage

As every term, each is divided by what it applies to in the *whole optimizer step*; on the tokens of names, arguments
and carried values distill and repair weigh w_tool, w_args and w_integr more, each divided by its own number of rows.
Entropy weighting has no part in it: it refuses negative weights.

reward_i = w A / N, where A is the answer's reward less the mean of its prompt's other answers, and -A log q has the
gradient of the expected reward (Williams 1992; leave-one-out baseline: Kool, van Hoof and Welling 2019). Where answers
are older than the weights, A is multiplied by the ratio of the token's probability now to that when it was sampled, and
is 0 where the ratio has left [1 - clip, 1 + clip] in the direction that A asks for (Schulman et al. 2017,
arXiv:1707.06347, equation 7), and the ratio is 3 at most (Ye et al. 2020, arXiv:1912.09729, section 4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.config.schema import Loss, Rollouts
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kernels import DenseTeacher, DistillOutput, Head, RowWeights, linear_distill_loss

ANSWER_TERMS = ("distill", "repair", "reward")
ANSWER_SUMS = (*ANSWER_TERMS, "divergence", "clipped")  # columns of AnswerLoss.sums
COUNTS = (*(f"{term}_{bit}" for term in ("distill", "repair") for bit in (1, 2, 4, 8)), "reward")
MOST_RATIO = 3.0


class AnswerRows(NamedTuple):
    """Rows of answers: fp32 [N] each, in the order of a micro-batch's rows."""

    distill: Tensor  # the record's weight where the divergence is taken, else 0
    repair: Tensor  # likewise, of a correction
    advantage: Tensor  # signed; 0 where reward has no part
    log_probs: Tensor  # of the sampled token, in nats, when it was sampled


class AnswerBatch(NamedTuple):
    """Answers of one forward of one rank."""

    micro: MicroBatch
    rows: AnswerRows

    def to(self, device: torch.device) -> AnswerBatch:
        """Return a copy with every tensor on `device`."""
        rows = AnswerRows(*(one.to(device, non_blocking=True) for one in self.rows))
        return AnswerBatch(self.micro.to(device), rows)


class AnswerWeights(NamedTuple):
    """Weights of the rows by term, fp32 [N], normalisers included; None for a term that is off."""

    distill: Tensor | None
    repair: Tensor | None
    reward: Tensor | None


class AnswerInputs(NamedTuple):
    """All that a forward needs of a micro-batch's answers."""

    batch: AnswerBatch
    weights: AnswerWeights
    teacher: DenseTeacher | None
    settings: AnswerSettings


class AnswerSettings(NamedTuple):
    """Settings of the answers' terms in one stage."""

    rollouts: Rollouts
    loss: Loss
    is_stale: bool  # the answers may be older than the weights


class AnswerLoss(NamedTuple):
    """`loss` carries gradient. `sums` [5] by ANSWER_SUMS: the terms, which add up to loss, the divergence's plain sum
    over its rows, and the rows whose reward the clipped ratio took away.
    """

    loss: Tensor
    sums: Tensor
    rows: DistillOutput


def answer_weights(
    batch: AnswerBatch, counts: Tensor, settings: AnswerSettings, *, divisor: float = 1.0
) -> AnswerWeights:
    """Make the weights of each row in each term.

    Args:
        counts: [9] float64, CPU, by COUNTS, over the whole optimizer step: summed weights of the rows with each bit in
            distill and in repair, and what reward is divided by.
        divisor: what the gradient is divided by downstream (DeepSpeed averages over ranks: the world size).
    """
    rollouts, loss, bits = settings.rollouts, settings.loss, batch.micro.bits
    numbers = dict(zip(COUNTS, counts.tolist()))

    def spread(term: str, scale: float, rows: Tensor) -> Tensor | None:
        if scale == 0:
            return None
        factor = torch.zeros_like(rows)
        for bit, weight in ((TRUTH, 1.0), (TOOL, loss.w_tool), (ARGS, loss.w_args), (INTEGRATION, loss.w_integr)):
            count = numbers[f"{term}_{bit}"]
            if weight and count > 0:
                factor += ((bits & bit) != 0) * (weight * scale * divisor / count)
        return rows * factor

    reward = None
    if rollouts.reward:
        scale = rollouts.reward * divisor / numbers["reward"] if numbers["reward"] > 0 else 0.0
        reward = batch.rows.advantage * scale
    return AnswerWeights(
        spread("distill", rollouts.distill, batch.rows.distill),
        spread("repair", rollouts.repair, batch.rows.repair),
        reward,
    )


def answer_loss(hidden: Tensor, head: Head, inputs: AnswerInputs, **options: Any) -> AnswerLoss:
    """Compute the loss of one micro-batch of answers from hidden states [N, H] of its rows.

    options: handed on to `linear_distill_loss`: vocab_size, grad_scale, chunk_rows, impl.
    """
    batch, weights, rollouts = inputs.batch, inputs.weights, inputs.settings.rollouts
    labels, reward = batch.micro.labels, weights.reward
    zero = hidden.new_zeros((), dtype=torch.float32)
    clipped = zero
    if reward is not None and inputs.settings.is_stale:
        ratio = _probability_ratio(hidden, head, batch, **options)
        past = torch.where(reward > 0, ratio > 1 + rollouts.clip, ratio < 1 - rollouts.clip)
        clipped = (past & (reward != 0)).sum().float()
        reward = (reward * ratio.clamp(max=MOST_RATIO)).masked_fill(past, 0.0)
    spans = [one for one in (weights.repair, reward) if one is not None]
    out = linear_distill_loss(
        hidden,
        head,
        inputs.teacher,
        labels,
        RowWeights(kd=weights.distill, span=torch.stack(spans).sum(0) if spans else None),
        temperature=rollouts.distill_temperature,
        divergence=rollouts.divergence if weights.distill is not None else "forward_kl",
        beta=rollouts.beta if weights.distill is not None else None,
        **options,
    )

    def total(weight: Tensor | None, value: Tensor) -> Tensor:
        return zero if weight is None else (weight * value.masked_fill(weight == 0, 0)).sum().float()

    divergence = out.divergence.masked_fill(batch.rows.distill == 0, 0)
    sums = [
        total(weights.distill, out.divergence) * rollouts.distill_temperature**2,
        total(weights.repair, out.nll),
        total(reward, out.nll),
        divergence.sum().float(),
        clipped,
    ]
    return AnswerLoss(out.loss, torch.stack(sums).detach(), out)


@torch.no_grad()
def _probability_ratio(hidden: Tensor, head: Head, batch: AnswerBatch, **options: Any) -> Tensor:
    """Return [N] fp32: each sampled token's probability now to that when it was sampled."""
    ones = torch.ones_like(batch.rows.advantage)
    now = linear_distill_loss(hidden, head, None, batch.micro.labels, RowWeights(truth=ones), **options).nll
    return (-now.float() - batch.rows.log_probs).exp()
