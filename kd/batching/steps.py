"""From records to optimizer steps: the same global order at every world size, each step cut into micro-batches by rank.

A step takes micro_batch_size x gradient_accumulation x world_size rows of the order that kd/batching/order.py makes; a
row is one record, padded, or several packed into one sequence. Which records share a step depends on the global batch
alone, never on how ranks and accumulation split it.

A rank that a step has no records for gets empty micro-batches: it still runs the same forwards, since under ZeRO-3 a
rank that does not join a gather stops all the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.batching.fit import fitted
from kd.batching.micro_batch import MicroBatch, collate, collate_packed, padding_of
from kd.batching.order import Row, cut_into_steps, packed_epoch, padded_epoch
from kd.batching.record_key import record_key
from kd.batching.workers import in_order
from kd.records.checks import DataError
from kd.rendering.encode import Encoded, encode
from kd.sources.source import Source

_MEASURED_TOGETHER = 64  # records a worker measures at once


class StepBatches:
    """An endless iterator of optimizer steps for one rank: lists of exactly `gradient_accumulation` MicroBatches.

    `state_dict()` says what was taken by the steps given out so far, in global terms; a loader of any rank and world
    size that loads it goes on with the record that follows, in the order that the first one began.

    Args:
        source: where records come from; epochs follow one another, each in an order of its own.
        tokenizer: fast, with a chat template.
        max_length: of a record, or of a row of packed records, in tokens.
        too_long: what happens to a longer record: "drop" leaves it out, "truncate" keeps what `truncated` does.
        lengths: of every record, from `measure` summed over ranks, to pack several into a row; None for a record a row.
        workers: processes that make batches ahead; 0 makes them when they are asked for.
        no_signal: keys (kd/batching/record_key.py) of records that the teacher has no signal for; they are left out.
        refuse: leave out a record that cannot be rendered or located, and name it (MicroBatch.refused); by default its
            DataError is raised when its turn comes.
    """

    def __init__(
        self,
        source: Source,
        tokenizer,
        *,
        max_length: int,
        micro_batch_size: int,
        gradient_accumulation: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        too_long: str = "drop",
        lengths: Sequence[int] | None = None,
        workers: int = 0,
        no_signal: frozenset[bytes] = frozenset(),
        refuse: bool = False,
    ):
        if not len(source):
            raise DataError("no record to train on")
        self._source, self._max_length, self._lengths = source, max_length, lengths
        self._make = _Maker(
            source, tokenizer, max_length, too_long == "truncate", lengths is not None, no_signal, refuse
        )
        self._micro, self._accumulation = micro_batch_size, gradient_accumulation
        self._rank, self._world, self._seed, self._workers = rank, world_size, seed, workers
        self._at = _Place(0, 0)
        self._group = self._size = micro_batch_size * gradient_accumulation * world_size
        self._fingerprint = source.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._at._asdict(),
            "group": self._group,
            "source_records": len(self._source),
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; before the first step is asked for.

        Raises:
            DataError: the source has other records than the one the state is of.
        """
        if state["fingerprint"] != self._fingerprint:
            raise DataError(
                f"the data is not what it was when the checkpoint was written ({state['source_records']} records "
                f"then, {len(self._source)} "
                "now): restore its files, or give --fresh to begin again"
            )
        self._at, self._group = _Place(state["epoch"], state["num_records"]), state["group"]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for place, micro_batches in in_order(self._make, self._work(), self._workers):
            self._at = place
            yield micro_batches

    def _work(self) -> Iterator[_Work]:
        epoch, num_done = self._at
        while True:
            if self._lengths is None:
                groups, whole = padded_epoch(self._source, self._seed, epoch, self._group), self._group
            else:
                groups, whole = packed_epoch(self._lengths, self._seed, epoch, self._max_length), 1
            for taken, step in cut_into_steps(groups, self._size, whole, num_done):
                starts = [(m * self._world + self._rank) * self._micro for m in range(self._accumulation)]
                yield _Work(_Place(epoch, taken), [step[at : at + self._micro] for at in starts])
            epoch, num_done = epoch + 1, 0


class _Place(NamedTuple):
    epoch: int
    num_records: int  # of the epoch, taken


class _Work(NamedTuple):
    after: _Place
    micro_batches: list[list[Row]]


class _Maker(NamedTuple):
    """Makes a rank's part of a step; it goes to worker processes whole."""

    source: Source
    tokenizer: Any
    max_length: int
    truncate: bool
    packed: bool
    no_signal: frozenset[bytes]
    refuse: bool

    def __call__(self, work: _Work) -> tuple[_Place, list[MicroBatch]]:
        return work.after, [self._micro_batch(rows, work.after.epoch == 0) for rows in work.micro_batches]

    def lengths(self, indices: range) -> list[int]:
        """Tokens that are kept of each record; 0 of one that is left out."""
        found = (self._encoded(i) for i in indices)
        fitted = (self._fitted(e) if isinstance(e, Encoded) else None for e in found)
        return [len(e.input_ids) if e and not self._silent(e) else 0 for e in fitted]

    def _encoded(self, index: int) -> Encoded | str:
        """The record's tokens, or why there are none."""
        try:
            return encode(self.source[index], self.tokenizer)
        except DataError as error:
            if not self.refuse:
                raise
            return str(error)

    def _fitted(self, encoded: Encoded) -> Encoded | None:
        return fitted(encoded, self.max_length, self.truncate)

    def _silent(self, encoded: Encoded) -> bool:
        return bool(self.no_signal) and record_key(encoded.input_ids) in self.no_signal

    def _micro_batch(self, rows: list[Row], count: bool) -> MicroBatch:
        kept, left_out, cut, silent, refused = [], [], [], [], []
        for row in rows:
            kept.append([])
            for whole in map(self._encoded, row):
                if isinstance(whole, str):
                    refused.append(whole)
                    continue
                fitted = self._fitted(whole)
                if fitted is None:
                    left_out.append(whole.record_id)
                    continue
                if self._silent(fitted):
                    silent.append(whole.record_id)
                    continue
                kept[-1].append(fitted)
                if fitted is not whole:
                    cut.append(whole.record_id)
        kept = [row for row in kept if row]
        pad = padding_of(self.tokenizer)
        micro = (
            collate_packed(kept, pad, self.max_length)
            if self.packed
            else collate([row[0] for row in kept], pad, self.max_length)
        )
        if not count:
            return micro
        return micro._replace(
            left_out=tuple(left_out), truncated=tuple(cut), no_signal=tuple(silent), refused=tuple(refused)
        )


def measure(
    source: Source,
    tokenizer,
    *,
    max_length: int,
    too_long: str,
    rank: int,
    world_size: int,
    workers: int = 0,
    no_signal: frozenset[bytes] = frozenset(),
    refuse: bool = False,
) -> Tensor:
    """[num_records] int64: tokens that each record takes in a row, 0 for one left out. Each rank measures its share and
    has 0 for the others': add up over ranks."""
    maker = _Maker(source, tokenizer, max_length, too_long == "truncate", True, no_signal, refuse)
    shares = [range(at, min(at + _MEASURED_TOGETHER, len(source))) for at in range(0, len(source), _MEASURED_TOGETHER)][
        rank::world_size
    ]
    lengths = torch.zeros(len(source), dtype=torch.int64)
    for share, found in zip(shares, in_order(maker.lengths, shares, workers)):
        lengths[share.start : share.stop] = torch.tensor(found)
    return lengths
