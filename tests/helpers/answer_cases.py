"""A policy of so few answers that all can be listed, and answers made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd.objective.answer_loss import AnswerInputs, AnswerSettings, answer_loss, answer_weights
from kd.rendering.spans import TRUTH
from kd.rollouts.answer import Answer
from kd.rollouts.answer_rows import WeighedAnswer, count_answers, make_batch, weigh
from kernels import DenseTeacher, Head

STOP, PROMPT, VOCABULARY, WIDTH = 0, 3, 4, 5
ANSWERS = [(0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]  # two tokens at most; PROMPT is never written


def make_answer(ids: Sequence[int], value: float = 0.0, **fields) -> Answer:
    """An answer to the prompt [PROMPT], with all bits TRUTH unless they are given."""
    given = dict(
        number=0,
        sample=0,
        record_id="r",
        turn=1,
        weight=1.0,
        no_tool=False,
        prompt=[PROMPT],
        ids=list(ids),
        log_probs=[0.0] * len(ids),
        bits=[TRUTH] * len(ids),
        text="",
        finished=True,
        repeats_from=None,
        value=value,
        parts={"one": value},
        asked="",
        wanted="",
        hacked=False,
        correction=None,
    )
    return Answer(**given | fields)


class Policy(NamedTuple):
    """p(next | last) = softmax(embedding[last] @ head.T), over the tokens below PROMPT; fp64."""

    embedding: Tensor  # [VOCABULARY, WIDTH]
    head: Tensor  # [VOCABULARY, WIDTH]

    @classmethod
    def make(cls, seed: int) -> Policy:
        generator = torch.Generator().manual_seed(seed)
        made = (torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
        return cls(*(one.requires_grad_() for one in made))

    def log_probs(self, ids: Sequence[int]) -> Tensor:
        """Log-probability of each token of an answer, [T]."""
        before = torch.tensor([PROMPT, *ids[:-1]])
        logits = self.embedding[before] @ self.head[:PROMPT].T
        return logits.log_softmax(-1).gather(1, torch.tensor(list(ids))[:, None])[:, 0]

    def probability(self, ids: Sequence[int]) -> Tensor:
        return self.log_probs(ids).sum().exp()


def loss_of(
    policy: Policy,
    answers: Sequence[Answer],
    settings: AnswerSettings,
    *,
    teacher: Policy | None = None,
    parts: int = 1,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss [] and sums of a step's answers, computed in `parts` micro-batches as training does."""
    weighed: list[WeighedAnswer] = weigh(answers, settings.rollouts)
    counts = count_answers(weighed, settings.rollouts) if counts is None else counts
    total, sums = torch.zeros((), dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for part in range(parts):
        chosen = weighed[len(weighed) * part // parts : len(weighed) * (part + 1) // parts]
        batch = make_batch(chosen, settings.rollouts, 0, 64)
        at = batch.micro.input_ids.flatten()[batch.micro.rows]
        weights = answer_weights(batch, counts, settings)
        targets = None if teacher is None else DenseTeacher(teacher.embedding.detach()[at], Head(teacher.head.detach()))
        inputs = AnswerInputs(batch, weights, targets, settings)
        found = answer_loss(policy.embedding[at], Head(policy.head), inputs, vocab_size=PROMPT, impl="reference")
        total, sums = total + found.loss, sums + found.sums
    return total, sums
