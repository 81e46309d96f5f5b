"""Plan of a capture: every record once, in batches and shards that the data and two numbers of the configuration fix.

Padded and unpadded logits differ in their last bits, so a record's neighbours and padding must not depend on how many
ranks there are or where a capture was killed. Records are sorted by length and cut into batches of
training.micro_batch_size, and batches, in that order, into shards of at least `shard_rows` rows; only then are shards
dealt out to ranks.

A record that is trained turn by turn (data.turns) is several samples, each captured as a record of its own.

Stages may show the same tokens: a record is captured once, where it first fits. A record that no stage has room
for is left out, as training leaves it out, and so is one that cannot be rendered or located, where
data.max_bad_fraction allows some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kd.batching.fit import FitPolicy, Sample, find_rows, fit
from kd.batching.micro_batch import MicroBatch, choose_padding, pad_samples
from kd.batching.record_key import rows_digest
from kd.batching.workers import in_order, num_workers
from kd.config.schema import Data
from kd.distributed.ranks import Ranks
from kd.records.checks import DataError
from kd.rendering.encode import encode_at
from kd.sources.source import Source

_MEASURED_TOGETHER = 64  # records a worker measures at once
# Columns of the measures; a content is a key and a row digest.
_LENGTH, _ROWS, _KEY, _CONTENT = 0, 1, slice(2, 4), slice(2, 5)

Place = tuple[int, int, int]  # a sample: its stage, its record's index there, its number among the record's samples


class CapturePlan(NamedTuple):
    """Records in the order of capture: batch b is those from b * batch_size on."""

    places: NDArray  # [R, 3] int64: stage, index, number
    lengths: NDArray  # [R] int64, tokens
    rows: NDArray  # [R] int64
    keys: NDArray  # [R, 2] int64: the 16 bytes of each record's key
    batch_size: int
    shards: list[range]  # of batches
    num_too_long: int
    num_refused: int
    num_repeated: int
    num_records: int  # that the samples are of
    refused: str = ""  # reason of the first

    def batch(self, number: int) -> list[Place]:
        """List the records of batch `number`."""
        return [tuple(place) for place in self.places[self._records(number, number + 1)].tolist()]

    def of_shard(self, what: NDArray, shard: int) -> NDArray:
        """Return the shard's part of one of the arrays."""
        return what[self._records(self.shards[shard].start, self.shards[shard].stop)]

    def _records(self, first: int, end: int) -> slice:
        return slice(first * self.batch_size, end * self.batch_size)


class BatchMaker(NamedTuple):
    """Maker of capture's micro-batches and measurer of its records; it goes to worker processes whole."""

    sources: tuple[Source, ...]
    tokenizer: Any
    policies: tuple[FitPolicy, ...]  # of the stages

    def __call__(self, places: list[Place]) -> MicroBatch:
        samples = [self.sample(place) for place in places]
        assert None not in samples  # the plan has no record that is too long
        longest = max(policy.max_length for policy in self.policies)
        return pad_samples([s for s in samples if s is not None], choose_padding(self.tokenizer), longest)

    def sample(self, place: Place) -> Sample | None:
        """Encode a sample as training does; None where it is too long.

        Raises:
            DataError: its record cannot be rendered or located.
        """
        stage, index, number = place
        policy = self.policies[stage]
        return fit(encode_at(self.sources[stage], index, self.tokenizer, policy.turns, only=number)[0], policy)

    def samples(self, stage: int, index: int) -> list[Sample | None]:
        """Encode the samples of a record; as `sample`."""
        policy = self.policies[stage]
        found = encode_at(self.sources[stage], index, self.tokenizer, policy.turns)
        return [fit(encoded, policy) for encoded in found]

    def measure(self, records: list[tuple[int, int]]) -> list[list[list[int]]]:
        """Measure each record, given as stage and index: of each sample the tokens, rows and the content's three
        numbers; zeros of one that is too long; of a record that is refused the tokens are -1.
        """
        return [self._measure(*record) for record in records]

    def _measure(self, stage: int, index: int) -> list[list[int]]:
        try:
            return list(map(_measure_sample, self.samples(stage, index)))
        except DataError:
            if not self.policies[stage].refuse:
                raise
            return [[-1, 0, 0, 0, 0]]


def _measure_sample(sample: Sample | None) -> list[int]:
    if sample is None:
        return [0, 0, 0, 0, 0]
    rows = find_rows(sample.bits)
    return [len(sample.input_ids), len(rows), *np.frombuffer(sample.key + rows_digest(rows), "<i8").tolist()]


def make_batch_maker(data: Data, tokenizer: Any, sources: Sequence[Source]) -> BatchMaker:
    """Make the BatchMaker over the records of each stage, in the order of data.stages."""
    return BatchMaker(
        tuple(sources),
        tokenizer,
        tuple(
            FitPolicy(stage.max_length, data.too_long, turns=data.turns, refuse=data.max_bad_fraction > 0)
            for stage in data.stages
        ),
    )


def plan_capture(data: Data, maker: BatchMaker, ranks: Ranks, *, batch_size: int, shard_rows: int) -> CapturePlan:
    """Measure every record and plan the capture; the plan is the same on every rank. All ranks call it together.

    Each rank measures its share of the records, and what they found is added up.

    Args:
        batch_size: records of a batch.
        shard_rows: rows of a shard, at least.

    Raises:
        DataError: more records cannot be rendered or located than data.max_bad_fraction allows.
    """
    counts = [len(source) for source in maker.sources]
    records = np.stack(
        [np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(count) for count in counts])], 1
    )
    own: dict[int, list[list[int]]] = {}  # this rank's records -> their samples
    starts = range(0, len(records), _MEASURED_TOGETHER)[ranks.rank :: ranks.world_size]
    shares = ([tuple(r) for r in records[at : at + _MEASURED_TOGETHER].tolist()] for at in starts)
    for at, found in zip(starts, in_order(maker.measure, shares, num_workers(data.workers))):
        own.update(enumerate(found, at))
    places, measured = _join_samples(records, own, ranks)
    refused = _check_refused(data, maker, places[measured[:, _LENGTH] < 0])
    return arrange(places, measured, batch_size, shard_rows)._replace(refused=refused)


def _join_samples(records: NDArray, own: dict[int, list[list[int]]], ranks: Ranks) -> tuple[NDArray, NDArray]:
    """Join what every rank measured of its own records: (places, measured), as `arrange` takes them."""
    counts = torch.zeros(len(records), dtype=torch.int64)
    for record, samples in own.items():
        counts[record] = len(samples)
    counts = ranks.sum(counts)
    first = counts.cumsum(0) - counts
    measured = torch.zeros(int(counts.sum()), 5, dtype=torch.int64)
    for record, samples in own.items():
        begin = int(first[record])
        measured[begin : begin + len(samples)] = torch.tensor(samples)
    of_record = np.repeat(np.arange(len(records)), counts.numpy())
    numbers = np.arange(len(of_record)) - first.numpy()[of_record]
    return np.concatenate([records[of_record], numbers[:, None]], 1), ranks.sum(measured).numpy()


def _check_refused(data: Data, maker: BatchMaker, places: NDArray) -> str:
    """Return the reason of the first refused record. Raises DataError where more are refused than training allows."""
    reasons = []
    for index, (stage, source) in enumerate(zip(data.stages, maker.sources)):
        mine = places[places[:, 0] == index].tolist()
        if mine:
            try:
                maker.samples(*mine[0][:2])
            except DataError as error:
                reasons.append(str(error))
        if len(mine) > data.max_bad_fraction * len(source):
            raise DataError(
                f"stage {stage.name}: {reasons[-1]} ({len(mine)} of its {len(source)} records are refused, more than "
                f"data.max_bad_fraction ({data.max_bad_fraction:g}) allows): mend them, or raise the fraction"
            )
    return reasons[0] if reasons else ""


def arrange(places: NDArray, measured: NDArray, batch_size: int, shard_rows: int) -> CapturePlan:
    """Sort the records by length, leave out repeated ones, and cut them into batches and shards.

    Args:
        places: [R, 3] int64, stage, index and number of each sample.
        measured: [R, 5] int64, tokens, rows and the content's three numbers, as BatchMaker measures them.
        batch_size: records of a batch.
        shard_rows: rows of a shard, at least.
    """
    fitting = np.flatnonzero(measured[:, _LENGTH] > 0)
    first = np.sort(np.unique(measured[fitting, _CONTENT], axis=0, return_index=True)[1])
    chosen = fitting[first]
    chosen = chosen[np.argsort(measured[chosen, _LENGTH], kind="stable")]
    rows, num_refused = measured[chosen, _ROWS], int((measured[:, _LENGTH] < 0).sum())
    shards, start, held = [], 0, 0
    batches = np.add.reduceat(rows, np.arange(0, len(rows), batch_size)) if len(rows) else []
    for number, more in enumerate(batches):
        held += int(more)
        if held >= shard_rows or number == len(batches) - 1:
            shards.append(range(start, number + 1))
            start, held = number + 1, 0
    return CapturePlan(
        places[chosen],
        measured[chosen, _LENGTH],
        rows,
        np.ascontiguousarray(measured[chosen, _KEY]),
        batch_size,
        shards,
        len(places) - len(fitting) - num_refused,
        num_refused,
        len(fitting) - len(first),
        len(np.unique(places[chosen, :2], axis=0)),
    )
