"""Steps: optimizer steps made of records, the same global order at every world size, cut into micro-batches by rank.

A step takes micro_batch_size x gradient_accumulation x world_size sequences of the order that kd/batching/order.py
makes; a sequence is one record, padded, or several packed. Which records share a step depends on the global batch
alone, never on how ranks and accumulation split it.

A rank that a step has no records for gets empty micro-batches: it still runs the same forwards, since under ZeRO-3 a
rank that does not join a gather stops all the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.batching.fit import FitPolicy, Sample, fit
from kd.batching.kept_tokens import SHARE_RECORDS, KeptTokens, choose_stem, pack_sample
from kd.batching.micro_batch import MicroBatch, choose_padding, pack_samples, pad_samples
from kd.batching.order import cut_into_steps, packed_epoch, padded_epoch
from kd.batching.workers import in_order
from kd.records.checks import DataError
from kd.rendering.encode import encode_at
from kd.sources.source import Source


class StepShape(NamedTuple):
    """Size of a step, and the part of it that is this rank's."""

    micro_batch_size: int  # sequences
    gradient_accumulation: int = 1  # micro-batches
    rank: int = 0
    world_size: int = 1


class PackingPolicy(NamedTuple):
    """Packing of several records into one sequence, by the lengths that `measure` found."""

    lengths: Sequence[int]  # tokens of each record, of all ranks added up
    kept: KeptTokens | None = None  # samples that need not be encoded again


class Measured(NamedTuple):
    """Records as one rank measured its share of them."""

    lengths: Tensor  # [num_records] int64, CPU: tokens in a sequence, 0 for a record left out and for other ranks'
    kept: KeptTokens


class StepBatches:
    """An endless iterator of optimizer steps for one rank: lists of exactly `gradient_accumulation` MicroBatches.

    `state_dict()` says what was taken by the steps given out so far, in global terms; a loader of any rank and world
    size that loads it resumes with the record that follows, in the order that the first one began.

    Args:
        source: records by position; epochs follow one another, each in an order of its own.
        tokenizer: fast, with a chat template.
        policy: rules for records that are too long, have no targets or cannot be encoded.
        seed: of the order.
        packing: pack several records into a sequence; None for a record a sequence.
        workers: processes that make batches ahead; 0 makes them when they are asked for.

    Raises:
        DataError: the source has no record.
    """

    def __init__(
        self,
        source: Source,
        tokenizer,
        policy: FitPolicy,
        shape: StepShape,
        *,
        seed: int = 0,
        packing: PackingPolicy | None = None,
        workers: int = 0,
    ):
        if not len(source):
            raise DataError("no record to train on")
        self._source, self._policy, self._shape, self._packing = source, policy, shape, packing
        self._make = _Maker(source, tokenizer, policy, packing is not None, packing and packing.kept)
        self._seed, self._workers = seed, workers
        self._at = _Place(0, 0)
        self._group = self._size = shape.micro_batch_size * shape.gradient_accumulation * shape.world_size
        self._fingerprint = source.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data as plain values, for a checkpoint."""
        return {
            **self._at._asdict(),
            "group": self._group,
            "source_records": len(self._source),
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a place in the data, before the first step is asked for.

        Raises:
            DataError: the source has other records than the one the state is of.
        """
        if state["fingerprint"] != self._fingerprint:
            raise DataError(
                f"the data is not what it was when the checkpoint was written ({state['source_records']} records "
                f"then, {len(self._source)} now): restore its files, or give --fresh to begin again"
            )
        self._at, self._group = _Place(state["epoch"], state["num_records"]), state["group"]

    def __iter__(self) -> Generator[list[MicroBatch], None, None]:
        for place, micro_batches in in_order(self._make, self._work(), self._workers):
            self._at = place
            yield micro_batches

    def _work(self) -> Iterator[_Work]:
        epoch, num_done = self._at
        shape, size = self._shape, self._shape.micro_batch_size
        starts = [(number * shape.world_size + shape.rank) * size for number in range(shape.gradient_accumulation)]
        while True:
            if self._packing is None:
                groups, whole = padded_epoch(self._source, self._seed, epoch, self._group), self._group
            else:
                groups, whole = packed_epoch(self._packing.lengths, self._seed, epoch, self._policy.max_length), 1
            for taken, step in cut_into_steps(groups, self._size, whole, num_done):
                yield _Work(_Place(epoch, taken), [step[at : at + size] for at in starts])
            epoch, num_done = epoch + 1, 0


class _Place(NamedTuple):
    epoch: int
    num_records: int  # of the epoch, taken


class _Work(NamedTuple):
    after: _Place
    micro_batches: list[list[list[int]]]


class _LeftOut(NamedTuple):
    reason: str  # a field of MicroBatch
    name: str  # what that field lists: the record, or why it is refused


class _Maker(NamedTuple):
    """Makes a rank's part of a step; it goes to worker processes whole."""

    source: Source
    tokenizer: Any
    policy: FitPolicy
    packed: bool
    kept: KeptTokens | None = None

    def __call__(self, work: _Work) -> tuple[_Place, list[MicroBatch]]:
        return work.after, [self._micro_batch(part, work.after.epoch == 0) for part in work.micro_batches]

    def measure(self, indices: range) -> list[tuple[int, bytes]]:
        """Measure each record: its tokens, and its sample as bytes; 0 and b"" for one that is left out."""
        samples = map(self._encode, indices)
        return [(len(s.input_ids), pack_sample(s)) if isinstance(s, Sample) else (0, b"") for s in samples]

    def _sample(self, index: int) -> Sample | _LeftOut:
        kept = self.kept.read(index) if self.kept is not None else None
        return self._encode(index) if kept is None else kept

    def _encode(self, index: int) -> Sample | _LeftOut:
        try:
            encoded = encode_at(self.source, index, self.tokenizer)
        except DataError as error:
            if not self.policy.refuse:
                raise
            return _LeftOut("refused", str(error))
        sample = fit(encoded, self.policy)
        if sample is None:
            return _LeftOut("too_long", encoded.record_id)
        return _LeftOut("no_targets", encoded.record_id) if sample.key in self.policy.missing else sample

    def _micro_batch(self, sequences: list[list[int]], count: bool) -> MicroBatch:
        made = [list(map(self._sample, sequence)) for sequence in sequences]
        kept = [[sample for sample in sequence if isinstance(sample, Sample)] for sequence in made]
        kept = [sequence for sequence in kept if sequence]
        padding, max_length = choose_padding(self.tokenizer), self.policy.max_length
        if self.packed:
            micro = pack_samples(kept, padding, max_length)
        else:
            micro = pad_samples([sample for (sample,) in kept], padding, max_length)
        if not count:
            return micro
        named: dict[str, list[str]] = {"too_long": [], "truncated": [], "no_targets": [], "refused": []}
        for found in (found for sequence in made for found in sequence):
            if isinstance(found, _LeftOut):
                named[found.reason].append(found.name)
            elif found.is_cut:
                named["truncated"].append(found.record_id)
        return micro._replace(**{reason: tuple(names) for reason, names in named.items()})


def measure(
    source: Source, tokenizer, policy: FitPolicy, *, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Measured:
    """Encode this rank's share of the records, for their lengths, and keep them (kd/batching/kept_tokens.py).

    Every rank calls it, and `lengths` are added up over ranks before any step is made.

    Raises:
        DataError: a record cannot be rendered or located, unless `policy` says to refuse it.
        OSError: the samples cannot be written.
    """
    maker = _Maker(source, tokenizer, policy, packed=True)
    starts = range(0, len(source), SHARE_RECORDS)[rank::world_size]
    shares = [range(at, min(at + SHARE_RECORDS, len(source))) for at in starts]
    lengths = torch.zeros(len(source), dtype=torch.int64)

    def samples() -> Iterable[bytes]:
        for share, found in zip(shares, in_order(maker.measure, shares, workers)):
            lengths[share.start : share.stop] = torch.tensor([length for length, _ in found])
            yield from (packed for _, packed in found)

    rules = policy._replace(missing=frozenset()), sorted(policy.missing), world_size, tokenizer.chat_template
    content = hashlib.sha256(f"{source.fingerprint()} {rules}".encode()).hexdigest()[:16]
    kept = KeptTokens(choose_stem(source.spool, content), rank, world_size)
    kept.write(samples())
    return Measured(lengths, kept)
