"""Answers of a stage, one optimizer step after another: sampled in rounds, judged, and shared with every rank.

A round is the answers of up to sync_every steps, sampled together from the weights before the first of them. Its
prompts follow from the seed, and each answer from the seed, its prompt's number, its own number and the weights.
Batches are cut from the whole round by length and dealt out, so that how many ranks there are changes no batch; a rank
that is done waits where answers are exchanged, and nowhere else. What is sampled and not yet trained is part of a
checkpoint.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kd.distributed.collectives import on_every_rank
from kd.distributed.ranks import Ranks
from kd.rollouts.answer import Answer, Judge
from kd.rollouts.correction import Correction
from kd.rollouts.prompts import Asked, PromptOrder
from kd.rollouts.sampler import Sampler
from kd.sources.source import Source


class StreamShape(NamedTuple):
    """Size of a step's part: answers over all ranks, whole groups of `samples`."""

    num_answers: int
    samples: int
    batch_size: int
    sync_every: int


class AnswerStream:
    """Answers of the steps of one stage; every rank makes one and calls each method together with the others.

    Args:
        source: records of the stage.
        order: of its prompts.
        seed: of the draws, a text.
    """

    def __init__(
        self,
        source: Source,
        order: PromptOrder,
        sampler: Sampler,
        judge: Judge,
        shape: StreamShape,
        *,
        seed: str,
        ranks: Ranks,
    ):
        self._source, self._order, self._sampler, self._judge = source, order, sampler, judge
        self._shape, self._seed, self._ranks = shape, seed, ranks
        self._pending: list[list[Answer]] = []
        self.sampling_seconds = 0.0  # since it was last set to 0, by this process
        self.num_tokens = 0  # sampled, likewise, over all ranks

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the prompts and the answers not yet trained, as plain values."""
        pending = [[_pack(answer) for answer in step] for step in self._pending]
        return {"order": self._order.state_dict(), "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        self._order.load_state_dict(state["order"])
        self._pending = [[_unpack(answer) for answer in step] for step in state["pending"]]

    def look(self, steps_left: int) -> list[Answer]:
        """Return the next step's answers, in the order of the prompts; where none are left, sample a round first.

        steps_left: of the stage, this one included; a round is no longer.

        Raises:
            DataError: no prompt fits.
            RewardError: a reward failed, on any rank.
        """
        if not self._pending:
            began = time.monotonic()
            self._pending = self._sample(min(self._shape.sync_every, steps_left))
            self.sampling_seconds += time.monotonic() - began
        return self._pending[0]

    def advance(self) -> None:
        """Leave the step that `look` returned: it is trained."""
        del self._pending[0]

    def _sample(self, steps: int) -> list[list[Answer]]:
        shape = self._shape
        num_prompts = steps * shape.num_answers // shape.samples
        asked = on_every_rank(lambda: [self._order.take() for _ in range(num_prompts)])
        self._sampler.refresh()
        places = [(prompt, sample) for prompt in range(num_prompts) for sample in range(shape.samples)]
        places.sort(key=lambda place: -len(asked[place[0]].ids))
        batches = [places[at : at + shape.batch_size] for at in range(0, len(places), shape.batch_size)]
        mine = batches[self._ranks.rank :: self._ranks.world_size]
        own = on_every_rank(lambda: [one for batch in mine for one in self._answer(asked, batch)])
        answers = sorted(
            (answer for found in self._ranks.gather(own) for answer in found),
            key=lambda answer: (answer.number, answer.sample),
        )
        self.num_tokens += sum(len(answer.ids) for answer in answers)
        size = shape.num_answers
        return [answers[at : at + size] for at in range(0, len(answers), size)]

    def _answer(self, asked: Sequence[Asked], batch: Sequence[tuple[int, int]]) -> list[Answer]:
        seeds = [draw_seed(self._seed, asked[prompt].number, sample) for prompt, sample in batch]
        drawn = self._sampler.sample([asked[prompt].ids for prompt, _ in batch], seeds)
        found = []
        for (prompt, sample), answer in zip(batch, drawn):
            number, index, turn, ids = asked[prompt]
            found.append(self._judge.judge(self._source[index], turn, number, sample, ids, answer))
        return found


def draw_seed(seed: str, number: int, sample: int) -> int:
    """Make the seed of one answer's draws."""
    digest = hashlib.blake2b(seed.encode() + struct.pack("<QQ", number, sample), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def share_out(num_answers: int, micro_batch_size: int, parts: int, records: int) -> Callable[[int], tuple[int, int]]:
    """Return the function from a micro-batch's number among a step's `parts` to [first, end) of the step's answers.

    Micro-batches are filled up to micro_batch_size beside their records (kd.batching.steps.StepShape.bounds); answers
    that do not add up so, as of a round sampled for another size, are dealt as evenly as can be.
    """
    exact = num_answers == micro_batch_size * parts - records

    def bound(part: int) -> int:
        return micro_batch_size * part - records * part // parts if exact else num_answers * part // parts

    return lambda part: (bound(part), bound(part + 1))


def _pack(answer: Answer) -> dict[str, Any]:
    correction = None if answer.correction is None else tuple(answer.correction)
    return {**answer._asdict(), "correction": correction}


def _unpack(values: dict[str, Any]) -> Answer:
    correction = values["correction"]
    return Answer(**{**values, "correction": None if correction is None else Correction(*correction)})
