"""Steps: optimizer steps made of records, the same global order at every world size, cut into micro-batches by rank.

A step takes micro_batch_size x gradient_accumulation x world_size sequences of the order that kd/batching/order.py
makes; a sequence is one record, padded, or several packed. A record that is trained turn by turn (data.turns) is one
sample a turn, and each has a place of its own in that order. Which records share a step depends on the global batch
alone, never on how ranks and accumulation split it.

Without a Split a record has one place, and all its samples stand there: a template that only appends writes the odd
record otherwise (a content that begins with a line's end), which no one measured.

A rank that a step has no records for gets empty micro-batches: it still runs the same forwards, since under ZeRO-3 a
rank that does not join a gather stops all the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.batching.fit import FitPolicy, Sample, fit
from kd.batching.kept_tokens import LEFT_OUT, SHARE_RECORDS, KeptTokens, choose_stem, pack_sample
from kd.batching.micro_batch import MicroBatch, choose_padding, pack_samples, pad_samples
from kd.batching.order import cut_into_steps, packed_epoch, padded_epoch
from kd.batching.workers import in_order
from kd.records.checks import DataError
from kd.rendering.encode import Encoded, encode_at
from kd.sources.source import Source


class StepShape(NamedTuple):
    """Size of a step, and the part of it that is this rank's."""

    micro_batch_size: int  # sequences
    gradient_accumulation: int = 1  # micro-batches
    rank: int = 0
    world_size: int = 1
    num_records: int | None = None  # sequences of a step, of all ranks, that are records; None: all of them

    @property
    def size(self) -> int:
        """Sequences of a step over all ranks that are records."""
        whole = self.micro_batch_size * self.gradient_accumulation * self.world_size
        return whole if self.num_records is None else self.num_records

    def bounds(self) -> list[tuple[int, int]]:
        """List [first, end) among a step's records of each of this rank's micro-batches, as even as can be."""
        parts = self.gradient_accumulation * self.world_size
        mine = [number * self.world_size + self.rank for number in range(self.gradient_accumulation)]
        return [(self.size * part // parts, self.size * (part + 1) // parts) for part in mine]


class PackingPolicy(NamedTuple):
    """Packing of several records into one sequence, by the lengths that `measure` found."""

    lengths: Sequence[int]  # tokens of each record, of all ranks added up
    kept: KeptTokens | None = None  # samples that need not be encoded again


class Split(NamedTuple):
    """Samples of the records, by position, where a record may be several."""

    places: NDArray[np.int64]  # [S, 2], record and number among its samples
    kept: KeptTokens | None = None  # samples that need not be encoded again


class Measured(NamedTuple):
    """Records as one rank measured its share of them."""

    lengths: Tensor  # [num_records] int64, CPU: tokens of all samples, 0 for a record left out and for other ranks'
    kept: KeptTokens
    several: dict[int, list[int]]  # records of more than one sample -> tokens of each, 0 for one left out


class StepBatches:
    """An endless iterator of optimizer steps for one rank: lists of exactly `gradient_accumulation` MicroBatches.

    `state_dict()` says what was taken by the steps given out so far, in global terms; a loader of any rank and world
    size that loads it resumes with the record that follows, in the order that the first one began.

    Args:
        source: records by position; epochs follow one another, each in an order of its own.
        tokenizer: fast, with a chat template.
        policy: rules for records that are too long, have no targets or cannot be encoded.
        seed: of the order.
        packing: pack several samples into a sequence; None for a sample a sequence.
        split: the samples, where a record may be several; None where each is one.
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
        split: Split | None = None,
        workers: int = 0,
    ):
        if not len(source):
            raise DataError("no record to train on")
        self._source, self._policy, self._shape, self._packing = source, policy, shape, packing
        self._units = source if split is None else _Units(source, split.places)
        kept = packing.kept if packing is not None else split and split.kept
        self._make = _Maker(source, tokenizer, policy, packing is not None, kept, split and split.places)
        self._seed, self._workers = seed, workers
        self._at = _Place(0, 0)
        self._group = self._size = shape.size
        self._fingerprint = source.fingerprint()

    @property
    def num_samples(self) -> int:
        """Samples of an epoch: the records, or more where they are split."""
        return len(self._units)

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
        self._at = _Place(state["epoch"], state["num_records"])
        self._group = state["group"] or self._group  # 0 of steps that were of the student's own answers alone

    def __iter__(self) -> Generator[list[MicroBatch], None, None]:
        for place, micro_batches in in_order(self._make, self._work(), self._workers):
            self._at = place
            yield micro_batches

    def _work(self) -> Iterator[_Work]:
        epoch, num_done = self._at
        bounds = self._shape.bounds()
        while not self._size:  # a step of the student's own answers alone
            yield _Work(self._at, [[] for _ in bounds])
        while True:
            if self._packing is None:
                groups, whole = padded_epoch(self._units, self._seed, epoch, self._group), self._group
            else:
                groups, whole = packed_epoch(self._packing.lengths, self._seed, epoch, self._policy.max_length), 1
            for taken, step in cut_into_steps(groups, self._size, whole, num_done):
                yield _Work(_Place(epoch, taken), [step[first:end] for first, end in bounds])
            epoch, num_done = epoch + 1, 0


class _Units:
    """Samples of a source, as the order of records sees them."""

    def __init__(self, source: Source, places: NDArray[np.int64]):
        self._source, self._places = source, places
        self._counts = np.bincount(places[:, 0])

    def __len__(self) -> int:
        return len(self._places)

    def size_hint(self, index: int) -> int:
        record, number = self._places[index].tolist()
        return self._source.size_hint(record) * (number + 1) // int(self._counts[record])


class _Place(NamedTuple):
    epoch: int
    num_records: int  # of the epoch, taken; of samples, where records are split


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
    places: NDArray[np.int64] | None = None  # of the samples; None for a unit a record

    def __call__(self, work: _Work) -> tuple[_Place, list[MicroBatch]]:
        return work.after, [self._micro_batch(part, work.after.epoch == 0) for part in work.micro_batches]

    def measure(self, indices: range) -> list[tuple[list[int], bytes]]:
        """Measure each record: the tokens of its samples, 0 for one that is left out, and the samples as bytes."""
        measured = []
        for samples in map(self._encode, indices):
            kept = [sample if isinstance(sample, Sample) else None for sample in samples]
            packed = b"".join(LEFT_OUT if sample is None else pack_sample(sample) for sample in kept)
            lengths = [0 if sample is None else len(sample.input_ids) for sample in kept]
            measured.append((lengths, packed if any(lengths) else b""))
        return measured

    def _samples(self, unit: int) -> list[Sample | _LeftOut]:
        index, number = (unit, None) if self.places is None else self.places[unit].tolist()
        kept = self.kept.read(index) if self.kept is not None else []
        found = [sample for sample in kept if sample is not None]
        if number is not None and kept:
            found = [sample] if (sample := kept[number]) is not None else []
        elif len(found) < len(kept):
            found = []
        if found:
            return list(found)
        encoded = self._encode(index)
        return encoded if number is None else [encoded[number]]

    def _encode(self, index: int) -> list[Sample | _LeftOut]:
        try:
            return list(map(self._fit, encode_at(self.source, index, self.tokenizer, self.policy.turns)))
        except DataError as error:
            if not self.policy.refuse:
                raise
            return [_LeftOut("refused", str(error))]

    def _fit(self, encoded: Encoded) -> Sample | _LeftOut:
        sample = fit(encoded, self.policy)
        if sample is None:
            return _LeftOut("too_long", encoded.record_id)
        return _LeftOut("no_targets", encoded.record_id) if sample.key in self.policy.missing else sample

    def _micro_batch(self, sequences: list[list[int]], count: bool) -> MicroBatch:
        made = [[sample for unit in sequence for sample in self._samples(unit)] for sequence in sequences]
        kept = [[sample for sample in sequence if isinstance(sample, Sample)] for sequence in made]
        kept = [sequence for sequence in kept if sequence]
        padding, max_length = choose_padding(self.tokenizer), self.policy.max_length
        if self.packed:
            micro = pack_samples(kept, padding, max_length)
        else:
            micro = pad_samples([sample for sequence in kept for sample in sequence], padding, max_length)
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
    several: dict[int, list[int]] = {}

    def samples() -> Iterable[bytes]:
        for share, found in zip(shares, in_order(maker.measure, shares, workers)):
            lengths[share.start : share.stop] = torch.tensor([sum(tokens) for tokens, _ in found])
            several.update((index, tokens) for index, (tokens, _) in zip(share, found) if len(tokens) > 1)
            yield from (packed for _, packed in found)

    rules = policy._replace(missing=frozenset()), sorted(policy.missing), world_size, tokenizer.chat_template
    content = hashlib.sha256(f"{source.fingerprint()} {rules}".encode()).hexdigest()[:16]
    kept = KeptTokens(choose_stem(source.spool, content), rank, world_size)
    kept.write(samples())
    return Measured(lengths, kept, several)


def list_samples(
    lengths: Sequence[int], several: Mapping[int, Sequence[int]]
) -> tuple[NDArray[np.int64], Sequence[int]]:
    """List the samples of measured records, of all ranks together: their places, as of Split, and their lengths."""
    tokens = [several.get(index, (length,)) for index, length in enumerate(lengths)]
    places = [(index, number) for index, found in enumerate(tokens) for number in range(len(found))]
    return np.array(places, np.int64).reshape(-1, 2), [length for found in tokens for length in found]
