"""One forward of one rank as tensors: records padded, a record a row, or packed, several one after another in a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.batching.record_key import record_key, rows_digest
from kd.rendering.encode import Encoded
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH

PAD_MULTIPLE = (
    16  # few widths: a CPU's matrix library compiles and keeps code for each, and tensor cores want multiples of 8
)
COUNTED = (TRUTH, TOOL, ARGS, INTEGRATION)


class Packed(NamedTuple):
    """Where each record of a packed micro-batch begins. What is left of a row after its last record counts as one
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
    keys: tuple[
        bytes, ...
    ]  # what each record is to the teacher's cache (kd/batching/record_key.py), parallel to record_ids
    row_digests: tuple[bytes, ...]  # of its rows, likewise
    packed: Packed | None = None
    left_out: tuple[str, ...] = ()  # records that were too long, each named in the first epoch alone
    truncated: tuple[str, ...] = ()  # likewise, those that lost their end
    no_signal: tuple[str, ...] = ()  # likewise, those the teacher has no signal for
    refused: tuple[str, ...] = ()  # likewise, why each record that cannot be rendered or located is left out

    @property
    def positions(self) -> Tensor:
        """[N] int64: where in its record each row's token stands, from 0."""
        if self.packed is not None:
            return self.packed.position_ids.flatten().index_select(0, self.rows)
        return self.rows % self.input_ids.shape[1]

    def to(self, device: torch.device) -> MicroBatch:
        """The same with its tensors on `device`."""

        def moved(value):
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        packed = None if self.packed is None else Packed(*map(moved, self.packed))
        return MicroBatch(*map(moved, self))._replace(packed=packed)


def padding_of(tokenizer: Any) -> int:
    """The token that fills a row's end: the tokenizer's own, else that of a turn's end, else 0 (no row's loss or
    attention sees it).
    """
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def collate(encoded: list[Encoded], pad_token_id: int, max_length: int | None = None) -> MicroBatch:
    """Right-padded tensors and the supervised rows. No records gives one padding token and no rows.

    With `max_length`, batches are as wide as the longest record rounded up to PAD_MULTIPLE, but no wider than that.
    """
    return _collate([[e] for e in encoded], pad_token_id, max_length)


def collate_packed(rows: list[list[Encoded]], pad_token_id: int, max_length: int | None = None) -> MicroBatch:
    """As `collate`, with the records of each inner list one after another in one row, and `packed` to tell them
    apart.
    """
    micro = _collate(rows, pad_token_id, max_length)
    width, lengths = micro.input_ids.shape[1], []
    for row in rows or [[]]:
        used = [len(e.input_ids) for e in row]
        lengths += used + [width - sum(used)] * (sum(used) < width)
    position_ids = torch.cat([torch.arange(n) for n in lengths]).view_as(micro.input_ids)
    cu_seq_lens = torch.tensor([0, *lengths]).cumsum(0).int()
    return micro._replace(packed=Packed(position_ids, cu_seq_lens, max(lengths)))


def _collate(lines: list[list[Encoded]], pad_token_id: int, max_length: int | None) -> MicroBatch:
    length = max((sum(len(e.input_ids) for e in line) for line in lines), default=1)
    if lines and max_length is not None:
        length = max(length, min(-(-length // PAD_MULTIPLE) * PAD_MULTIPLE, max_length))
    input_ids = torch.full((max(len(lines), 1), length), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    if not lines:
        attention_mask[0, 0] = 1  # attention over nothing is NaN in some implementations
    rows, labels, bits, weight, record, record_ids, keys, digests = [], [], [], [], [], [], [], []
    for b, line in enumerate(lines):
        start = 0
        for e in line:
            end = start + len(e.input_ids)
            input_ids[b, start:end] = torch.tensor(e.input_ids)
            attention_mask[b, start:end] = 1
            positions = supervised(e)
            for t in positions:
                rows.append(b * length + start + t)
                labels.append(e.input_ids[t + 1])
                bits.append(e.bits[t + 1])
                weight.append(e.weight)
                record.append(len(record_ids))
            record_ids.append(e.record_id)
            keys.append(record_key(e.input_ids))
            digests.append(rows_digest(positions))
            start = end
    return MicroBatch(
        input_ids,
        attention_mask,
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(bits, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float32),
        torch.tensor(record, dtype=torch.int64),
        tuple(record_ids),
        tuple(keys),
        tuple(digests),
    )


def supervised(encoded: Encoded) -> list[int]:
    """Positions in a record whose next token is trained. This is the one place of the shift: bits at t make a row at t
    - 1.
    """
    return [t - 1 for t in range(1, len(encoded.input_ids)) if encoded.bits[t]]


def count_rows(micro_batches: list[MicroBatch]) -> Tensor:
    """[4] float64: the sum of record weights over rows with each bit of COUNTED, over one rank's micro-batches."""
    counts = torch.zeros(len(COUNTED), dtype=torch.float64)
    for micro in micro_batches:
        for i, bit in enumerate(COUNTED):
            counts[i] += micro.weight[(micro.bits & bit) != 0].double().sum()
    return counts
