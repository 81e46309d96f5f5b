"""Losses of sampled answers as plain functions, for a training loop of one's own.

A run has the same terms from its configuration (docs/process.md), over many prompts, with normalisers of the whole
step. Here are those of one prompt, on logits at hand, under the names of the system that this project grew from, where
each was a constant without a gradient.

json_repair_loss                 cross-entropy on a correction (kd/rollouts/correction.py makes it)
json_validity_loss_from_ids      policy gradient of the reward json_valid
tool_selection_loss_from_ids     of tool_choice
caws_structure_loss              of caws_structure
caws_compliance_loss             of caws_compliance

`kd.objective.loss.process_supervision_loss` is the weighted sum of the span losses on a record's own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kd.records.record import Record
from kd.rollouts.answer import Judge, advantages
from kd.rollouts.decode import Sampled
from kd.rollouts.sampler import find_stop_ids
from kernels import RowWeights, distill_loss


def json_repair_loss(logits: Tensor, ids: Tensor, *, impl: str = "auto") -> Tensor:
    """Compute the mean cross-entropy on the tokens of a correction, from its first one on; in nats.

    Args:
        logits: [N, V], of the row before each token, given the answer's own tokens up to where it was wrong.
        ids: [N] the correction's tokens.
        impl: as `kernels.distill_loss` takes it.
    """
    weight = torch.full((len(ids),), 1 / max(len(ids), 1), device=logits.device)
    return distill_loss(logits, None, ids, RowWeights(span=weight), impl=impl).loss


def reward_loss_from_ids(
    logits: Tensor,
    answers: Sequence[Sequence[int]],
    record: Record,
    turn: int,
    tokenizer,
    reward: str,
    *,
    impl: str = "auto",
) -> Tensor:
    """Compute the policy-gradient loss of several answers to one prompt, whose gradient is an unbiased estimate of that
    of minus the expected reward.

    L = -1/G sum_g A_g sum_t log q[y_gt], where A_g is the reward of answer g less the mean of the G - 1 others
    (leave-one-out: Kool, van Hoof and Welling 2019). It is 0, with a gradient of 0, for one answer, or equal rewards.
    An answer that does not end with a stop was cut, and has the reward 0.

    Args:
        logits: [N, V], of the row before each token of the first answer, of the second, and so on, at T = 1.
        answers: G lists of token ids, N in all, sampled at T = 1 from the same model, each with its stop.
        record, turn: record.messages[turn] is what they are answers in place of.
        tokenizer: its chat template says how calls are written.
        reward: name of a reward, or module:function.
        impl: as `kernels.distill_loss` takes it.

    Raises:
        ValueError: the answers have not N tokens in all.
        RewardError: there is no such reward.
        CallSyntaxError: the calls that the template writes are not read back.
    """
    num = sum(len(ids) for ids in answers)
    if num != len(logits):
        raise ValueError(f"{len(logits)} rows of logits for answers of {num} tokens: give the row before each token")
    judge = Judge(tokenizer, {reward: 1.0}, stop_ids=find_stop_ids(None, tokenizer), repairs=False)
    values = [judge.judge(record, turn, 0, 0, (), Sampled(list(ids), [0.0] * len(ids))).value for ids in answers]
    weights = [
        advantage / len(answers) for ids, advantage in zip(answers, advantages(values), strict=True) for _ in ids
    ]
    labels = torch.tensor([token for ids in answers for token in ids], device=logits.device)
    span = torch.tensor(weights, device=logits.device)
    return distill_loss(logits, None, labels, RowWeights(span=span), impl=impl).loss


json_validity_loss_from_ids = partial(reward_loss_from_ids, reward="json_valid")
tool_selection_loss_from_ids = partial(reward_loss_from_ids, reward="tool_choice")
caws_structure_loss = partial(reward_loss_from_ids, reward="caws_structure")
caws_compliance_loss = partial(reward_loss_from_ids, reward="caws_compliance")
