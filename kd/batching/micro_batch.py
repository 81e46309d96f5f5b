"""Micro-batch: the tensors of one forward of one rank, of records padded, one a sequence, or packed, several in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from kd.batching.fit import Sample, find_rows, make_sample
from kd.batching.record_key import rows_digest
from kd.rendering.encode import Encoded
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH

PAD_MULTIPLE = (
    16  # few widths: a CPU's matrix library compiles and keeps code for each, and tensor cores want multiples of 8
)
COUNTED = (TRUTH, TOOL, ARGS, INTEGRATION)


class Packed(NamedTuple):
    """Beginnings of the records of a packed micro-batch. The rest of a sequence after its last record counts as one
    more.
    """

    position_ids: Tensor  # [B, T] int64, from 0 in each record
    cu_seq_lens: Tensor  # [D + 1] int32, where each begins in the flattened [B * T] tokens, and their number
    max_length: int  # of the longest of them


class MicroBatch(NamedTuple):
    """One forward of one rank. Row n predicts token labels[n] from position rows[n] of the flattened [B * T] tokens."""

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64
    rows: Tensor  # [N] int64, ascending
    labels: Tensor  # [N] int64
    bits: Tensor  # [N] int64, span mask of the label's token
    weight: Tensor  # [N] fp32, of the row's record
    record: Tensor  # [N] int64, index into record_ids
    record_ids: tuple[str, ...]
    keys: tuple[bytes, ...]  # of the records in the teacher's cache (kd/batching/record_key.py), parallel to record_ids
    row_digests: tuple[bytes, ...]  # of its rows, likewise
    packed: Packed | None = None
    too_long: tuple[str, ...] = ()  # records that are left out as such, each named in the first epoch alone
    truncated: tuple[str, ...] = ()  # likewise, those that lost their end
    no_targets: tuple[str, ...] = ()  # likewise, those that the teacher has no targets for
    refused: tuple[str, ...] = ()  # likewise, why each record that cannot be rendered or located is left out

    @property
    def positions(self) -> Tensor:
        """[N] int64: the place of each row's token in its record, from 0."""
        if self.packed is not None:
            return self.packed.position_ids.flatten().index_select(0, self.rows)
        return self.rows % self.input_ids.shape[1]

    def to(self, device: torch.device) -> MicroBatch:
        """Return a copy with every tensor on `device`."""

        def move(part: MicroBatch | Packed) -> dict[str, Tensor]:
            fields = part._asdict().items()
            return {name: value.to(device, non_blocking=True) for name, value in fields if isinstance(value, Tensor)}

        packed = None if self.packed is None else self.packed._replace(**move(self.packed))
        return self._replace(**move(self), packed=packed)


def choose_padding(tokenizer: Any) -> int:
    """Choose the token that fills a sequence's end: the tokenizer's own, else that of a turn's end, else 0 (no row's
    loss or attention sees it).
    """
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def collate(encoded: Sequence[Encoded], pad_token_id: int, max_length: int | None = None) -> MicroBatch:
    """Pad encoded records, one a sequence; as `pad_samples`."""
    return pad_samples([make_sample(e) for e in encoded], pad_token_id, max_length)


def collate_packed(
    sequences: Sequence[Sequence[Encoded]], pad_token_id: int, max_length: int | None = None
) -> MicroBatch:
    """Pack encoded records, those of each inner list in one sequence; as `pack_samples`."""
    return pack_samples([[make_sample(e) for e in sequence] for sequence in sequences], pad_token_id, max_length)


def pad_samples(samples: Sequence[Sample], pad_token_id: int, max_length: int | None = None) -> MicroBatch:
    """Make right-padded tensors and the supervised rows of samples. None gives one padding token and no rows.

    With `max_length`, batches are as wide as the longest sample rounded up to PAD_MULTIPLE, but no wider than that.
    """
    return _assemble([[sample] for sample in samples], pad_token_id, max_length)


def pack_samples(sequences: Sequence[Sequence[Sample]], pad_token_id: int, max_length: int | None = None) -> MicroBatch:
    """Make the tensors of `pad_samples`, the samples of each inner list one after another in one sequence; `packed`
    tells them apart.
    """
    micro = _assemble(sequences, pad_token_id, max_length)
    width, lengths = micro.input_ids.shape[1], []
    for sequence in sequences or [[]]:
        used = [len(sample.input_ids) for sample in sequence]
        lengths += used + [width - sum(used)] * (sum(used) < width)
    position_ids = torch.cat([torch.arange(n) for n in lengths]).view_as(micro.input_ids)
    cu_seq_lens = torch.tensor([0, *lengths]).cumsum(0).int()
    return micro._replace(packed=Packed(position_ids, cu_seq_lens, max(lengths)))


def _assemble(sequences: Sequence[Sequence[Sample]], pad_token_id: int, max_length: int | None) -> MicroBatch:
    length = max((sum(len(sample.input_ids) for sample in sequence) for sequence in sequences), default=1)
    if sequences and max_length is not None:
        length = max(length, min(-(-length // PAD_MULTIPLE) * PAD_MULTIPLE, max_length))
    input_ids = np.full((max(len(sequences), 1), length), pad_token_id, np.int64)
    attention_mask = np.zeros_like(input_ids)
    if not sequences:
        attention_mask[0, 0] = 1  # attention over nothing is NaN in some implementations
    rows, labels, bits, counts, digests = [], [], [], [], []
    for number, sequence in enumerate(sequences):
        start = 0
        for sample in sequence:
            end = start + len(sample.input_ids)
            input_ids[number, start:end] = sample.input_ids
            attention_mask[number, start:end] = 1
            positions = find_rows(sample.bits)
            rows.append(number * length + start + positions)
            labels.append(sample.input_ids[positions + 1])
            bits.append(sample.bits[positions + 1])
            counts.append(len(positions))
            digests.append(rows_digest(positions))
            start = end
    samples = [sample for sequence in sequences for sample in sequence]
    per_sample = np.array(counts, np.int64)
    return MicroBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(attention_mask),
        rows=_join(rows),
        labels=_join(labels),
        bits=_join(bits),
        weight=torch.from_numpy(np.repeat(np.array([sample.weight for sample in samples], np.float32), per_sample)),
        record=torch.from_numpy(np.repeat(np.arange(len(samples)), per_sample)),
        record_ids=tuple(sample.record_id for sample in samples),
        keys=tuple(sample.key for sample in samples),
        row_digests=tuple(digests),
    )


def _join(parts: list[NDArray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts], dtype=np.int64))


def join_inputs(first: MicroBatch, second: MicroBatch) -> MicroBatch:
    """Put two micro-batches into one forward: the sequences and rows of `first`, then those of `second`.

    One of no records is left out. Of the fields only those of a model's inputs are joined; the others are `first`'s.
    """
    if not second.record_ids:
        return first
    if not first.record_ids:
        return second
    width = max(first.input_ids.shape[1], second.input_ids.shape[1])
    parts = [_widen(one, width) for one in (first, second)]
    shift = parts[0].input_ids.numel()
    packed = None
    if first.packed is not None or second.packed is not None:
        whole, other = (one.packed or _one_a_sequence(one) for one in parts)
        starts = torch.cat([whole.cu_seq_lens, other.cu_seq_lens[1:] + shift])
        positions = torch.cat([whole.position_ids, other.position_ids])
        packed = Packed(positions, starts, max(whole.max_length, other.max_length))
    return first._replace(
        input_ids=torch.cat([one.input_ids for one in parts]),
        attention_mask=torch.cat([one.attention_mask for one in parts]),
        rows=torch.cat([parts[0].rows, parts[1].rows + shift]),
        packed=packed,
    )


def _widen(micro: MicroBatch, width: int) -> MicroBatch:
    num, old = micro.input_ids.shape
    more = (0, width - old)
    if width == old:
        return micro
    packed = micro.packed
    if packed is not None:  # what is added to a sequence counts as one more record of it
        starts = packed.cu_seq_lens
        sequence = torch.div(starts[:-1], old, rounding_mode="floor")
        ends = torch.arange(num, device=starts.device, dtype=starts.dtype) * width + old
        starts = torch.cat([starts[:-1] + sequence * (width - old), ends]).sort().values
        added = torch.arange(width - old, device=starts.device).expand(num, -1)
        starts = torch.cat([starts, starts.new_tensor([num * width])])
        packed = Packed(torch.cat([packed.position_ids, added], 1), starts, max(packed.max_length, width - old))
    return micro._replace(
        input_ids=functional.pad(micro.input_ids, more),
        attention_mask=functional.pad(micro.attention_mask, more),
        rows=torch.div(micro.rows, old, rounding_mode="floor") * width + micro.rows % old,
        packed=packed,
    )


def _one_a_sequence(micro: MicroBatch) -> Packed:
    num, width = micro.input_ids.shape
    device = micro.input_ids.device
    starts = torch.arange(num + 1, device=device, dtype=torch.int32) * width
    return Packed(torch.arange(width, device=device).repeat(num, 1), starts, width)


def count_rows(micro_batches: list[MicroBatch]) -> Tensor:
    """Sum the record weights of rows with each bit of COUNTED, over one rank's micro-batches: [4] float64."""
    counts = torch.zeros(len(COUNTED), dtype=torch.float64)
    for micro in micro_batches:
        for i, bit in enumerate(COUNTED):
            counts[i] += micro.weight[(micro.bits & bit) != 0].double().sum()
    return counts
