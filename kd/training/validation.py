"""Validation while a student trains: loss and accuracy on held-out records, the best step, an early stop.

Nothing of training changes: no weight, gradient, random number or batch, and its seconds are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kd.batching.fit import FitPolicy, Sample, fit
from kd.batching.micro_batch import MicroBatch, choose_padding, count_rows, pad_samples
from kd.distributed.ranks import Ranks
from kd.objective.terms import TERMS, TermWeights
from kd.records.record import Record
from kd.rendering.encode import encode_sequences
from kd.rendering.spans import BIT_NAMES
from kd.teacher.source import TeacherSource
from kd.training.engine import SUMS, StudentEngine

LOSSES = ("loss", *TERMS)
LOSS_METRICS = (*LOSSES, *(f"{name}_accuracy" for name in BIT_NAMES))
Values = dict[str, dict[str, float]]  # split -> metric -> value


class Measure(Protocol):
    """Measurement of the student as it stands; all ranks call it together, and each gets the values."""

    every: int
    """Optimizer steps between two measurements."""

    def measure(self, step: int, terms: TermWeights) -> Values: ...


class Split(NamedTuple):
    """Validation split, shared out: `micro_batches` are this rank's, as many on every rank."""

    micro_batches: tuple[MicroBatch, ...]
    counts: Tensor  # [4] float64, over all ranks, as `kd.batching.micro_batch.count_rows`
    num_too_long: int  # sequences that were left out, over all ranks


def share_out(records: Iterable[Record], tokenizer, policy: FitPolicy, batch_size: int, ranks: Ranks) -> Split:
    """Encode this rank's records of a split into micro-batches of `batch_size`, short records together.

    Raises:
        DataError: a record cannot be rendered or located.
    """
    mine = list(records)[ranks.rank :: ranks.world_size]
    sequences = [one for record in mine for one in encode_sequences(record, tokenizer, policy.turns)]
    fitted = [fit(encoded, policy) for encoded in sequences]
    samples = sorted((one for one in fitted if one is not None), key=lambda one: len(one.input_ids))
    starts = range(0, len(samples), batch_size)
    shares: list[list[Sample]] = [samples[at : at + batch_size] for at in starts]
    everyones = ranks.gather((len(shares), fitted.count(None)))
    shares += [[]] * (max(num for num, _ in everyones) - len(shares))
    micro_batches = tuple(pad_samples(share, choose_padding(tokenizer), policy.max_length) for share in shares)
    counts = ranks.sum(count_rows(list(micro_batches)))
    return Split(micro_batches, counts, sum(left_out for _, left_out in everyones))


class TeacherForcedLoss:
    """Loss of each term, and accuracy on each span, with the record's own text before every token.

    Args:
        teacher: source of targets for any record; None where it has none for these (a cache), and then kd, hard and
            the loss that holds them are not measured.
    """

    def __init__(
        self,
        splits: Mapping[str, Split],
        engine: StudentEngine,
        teacher: TeacherSource | None,
        ranks: Ranks,
        every: int,
    ):
        self.every = every
        self._splits, self._engine, self._teacher, self._ranks = splits, engine, teacher, ranks

    def measure(self, step: int, terms: TermWeights) -> Values:
        """Measure at the weights and the temperature of `step`.

        Terms are means over their rows, in nats: kd with its factor of T^2, and with entropy weighting kd, hard and
        truth as it weighs them. `loss` is their sum, weighted as in training.
        """
        return {name: self._of(split, step, terms) for name, split in self._splits.items()}

    def _of(self, split: Split, step: int, terms: TermWeights) -> dict[str, float]:
        taught = float(self._teacher is not None)
        ones = terms._replace(kd=taught, hard=taught, truth=1.0, tool=1.0, args=1.0, integration=1.0)
        if self._teacher is None:
            ones = ones._replace(entropy=None)
        sums = self._engine.measure(split.micro_batches, split.counts, ones, self._teacher, step)
        values = dict(zip(SUMS, self._ranks.sum(sums.cpu().double()).tolist()))
        rows = dict(zip(BIT_NAMES, split.counts.tolist()))
        of_teacher = ("kd", "hard") if self._teacher is None else ()
        found = {name: values[name] for name in TERMS if name not in of_teacher and rows.get(name, rows["truth"])}
        if all(name in found or not getattr(terms, name) for name in TERMS):
            found["loss"] = sum(getattr(terms, name) * value for name, value in found.items())
        hits = {f"{name}_accuracy": values[f"{name}_accuracy"] / count for name, count in rows.items() if count}
        return found | hits


class Best(NamedTuple):
    """Best step so far by training.keep_best."""

    step: int
    value: float
    num_since: int = 0  # measurements since that were no better


class Validator:
    """Measurements at their steps, and the choice of the best.

    Args:
        tell: given each measurement: step and values.
        keep_best: metric to choose by; the mean over splits counts.
        lower_is_better: of that metric.
        export: called, on every rank, with the step where that is the best so far.
        patience: measurements in a row that may be no better; None for any number.
    """

    def __init__(
        self,
        measures: Iterable[Measure],
        tell: Callable[[int, Values], None],
        *,
        keep_best: str | None = None,
        lower_is_better: bool = True,
        export: Callable[[int], None] = lambda step: None,
        patience: int | None = None,
    ):
        self._measures, self._tell, self._export = tuple(measures), tell, export
        self._keep_best, self._sign, self._patience = keep_best, 1 if lower_is_better else -1, patience

    def look(self, step: int, last: int, terms: TermWeights, best: Best | None) -> Best | None:
        """Measure what is due after `step` of `last`, and return the best step now."""
        for measure in self._measures:
            if step % measure.every and step != last:
                continue
            values = measure.measure(step, terms)
            self._tell(step, values)
            named = [found[self._keep_best] for found in values.values() if self._keep_best in found]
            if named and self._keep_best is not None:
                best = self._choose(step, torch.tensor(named, dtype=torch.float64).mean().item(), best)
        return best

    def is_out_of_patience(self, best: Best | None) -> bool:
        """Tell whether training should stop here."""
        return self._patience is not None and best is not None and best.num_since >= self._patience

    def _choose(self, step: int, value: float, best: Best | None) -> Best:
        is_worse = best is not None and (math.isnan(value) or self._sign * value >= self._sign * best.value)
        if best is not None and is_worse:
            return best._replace(num_since=best.num_since + 1)
        self._export(step)
        return Best(step, value)
