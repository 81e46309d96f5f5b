"""Curriculum: the micro-batches of each optimizer step, stage after stage, the next step made ahead of the one that is
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kd.batching.fit import FitPolicy
from kd.batching.micro_batch import MicroBatch
from kd.batching.prefetch import Ahead
from kd.batching.steps import PackingPolicy, Split, StepBatches, StepShape, list_samples, measure
from kd.batching.workers import num_workers
from kd.config.derived import count_step
from kd.config.schema import Data, Stage, Training
from kd.distributed.ranks import Ranks
from kd.rendering.encode import may_split
from kd.sources.source import Source
from kd.sources.stages import describe
from kd.training.progress import Progress


class StageStep(NamedTuple):
    """Data of one optimizer step on this rank."""

    stage: Stage
    num_records: int  # of the stage
    num_sequences: int  # that they are: more, where the template rewrites earlier turns (data.turns)
    micro_batches: list[MicroBatch]
    state: dict[str, Any]  # of the data, once the step is taken
    following: list[MicroBatch]  # of the stage's next step; empty where there is none, or making it failed


class Curriculum:
    """Steps of a run from its progress on; iterating makes them, and the caller advances the progress after each.

    Args:
        sources: records of each stage, the same on every rank.
        seed: of the order of records.
        missing: keys of records that the teacher has no targets for.
        say: told, in words, what a person should know.
    """

    def __init__(
        self,
        data: Data,
        training: Training,
        sources: Sequence[Source],
        tokenizer,
        *,
        seed: int,
        missing: frozenset[bytes],
        ranks: Ranks,
        say: Callable[[str], None],
    ):
        self._data, self._training, self._sources, self._tokenizer = data, training, sources, tokenizer
        self._seed, self._missing, self.ranks, self._say = seed, missing, ranks, say

    def steps(self, at: Progress) -> Iterator[StageStep]:
        """Yield the steps that remain. A stage that is done is left before the next step is made."""
        num_steps = self._training.steps
        while at.step < num_steps:
            stage, source = self._data.stages[at.stage], self._sources[at.stage]
            self._say(f"stage {stage.name}: {describe(stage)}")
            batches = self._batches(source, stage, at.data)
            made = Ahead(batches)
            while at.step < num_steps and not _is_over(stage, at):
                micro_batches, state = made.take()
                if at.step + 1 < num_steps and not _is_last_step(stage, at):
                    made.look()
                yield StageStep(stage, len(source), batches.num_samples, micro_batches, state, made.following)
            made.close()  # its workers end here
            at.next_stage()

    def _batches(self, source: Source, stage: Stage, state: dict[str, Any] | None) -> StepBatches:
        ranks, workers = self.ranks, num_workers(self._data.workers)
        refuse = self._data.max_bad_fraction > 0
        policy = FitPolicy(stage.max_length, self._data.too_long, self._missing, self._data.turns, refuse)
        shape = StepShape(
            self._training.micro_batch_size,
            self._training.gradient_accumulation,
            ranks.rank,
            ranks.world_size,
            count_step(self._training, ranks.world_size, stage.rollouts).records,
        )
        packing = split = None
        if self._data.packing == "length" or may_split(self._tokenizer, policy.turns):
            measured = measure(
                source, self._tokenizer, policy, rank=ranks.rank, world_size=ranks.world_size, workers=workers
            )
            several = {index: tokens for own in ranks.gather(measured.several) for index, tokens in own.items()}
            places, lengths = list_samples(ranks.sum(measured.lengths).tolist(), several)
            split = Split(places, measured.kept)
            turn_by_turn = f", {len(several)} of them turn by turn, {len(lengths)} sequences in all" if several else ""
            packed = f", packed into sequences of {stage.max_length}" if self._data.packing == "length" else ""
            self._say(f"stage {stage.name}: {len(source)} records of {sum(lengths):,} tokens{turn_by_turn}{packed}")
            packing = PackingPolicy(lengths, measured.kept) if packed else None
        batches = StepBatches(
            source, self._tokenizer, policy, shape, seed=self._seed, packing=packing, split=split, workers=workers
        )
        if state is not None:
            batches.load_state_dict(state)
        return batches


def _is_over(stage: Stage, at: Progress) -> bool:
    """Tell whether the stage is over by its own rule; the same on every rank."""
    if stage.until is None:
        return False
    mean, weight = at.loss_mean
    low = stage.until.loss_below is not None and weight > 0.5 and mean / weight < stage.until.loss_below
    return low or at.stage_step >= _most_steps(stage)


def _is_last_step(stage: Stage, at: Progress) -> bool:
    """Tell whether the stage ends with the step that is being taken, whatever its loss."""
    return stage.until is not None and at.stage_step + 1 >= _most_steps(stage)


def _most_steps(stage: Stage) -> int:
    assert stage.until is not None and (stage.until.steps or stage.until.max_steps), "kd/config/conflicts/ requires it"
    return stage.until.steps or stage.until.max_steps or 0
