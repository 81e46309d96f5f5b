"""From records to optimizer steps: the same global order at every world size, each step cut into micro-batches by rank.

A step takes micro_batch_size x gradient_accumulation x world_size records. Records are shuffled by epoch from the seed,
then windows of them are sorted by length and cut into steps, so a step's records are of like length and little is padding.
Which records share a step depends on the global batch alone, never on how ranks and accumulation split it.

A rank that a step has no records for gets empty micro-batches: it still runs the same forwards, since under ZeRO-3 a rank
that does not join a gather stops all the others.
"""

from __future__ import annotations

import glob
import itertools
import random
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Protocol

import torch
from torch import Tensor

from kd.data import demo
from kd.data.records import DataError, Record, parse_line
from kd.data.render import Encoded, encode
from kd.data.spans import ARGS, INTEGRATION, TOOL, TRUTH

WINDOW_STEPS = 16  # steps sorted together by length
PAD_MULTIPLE = 16  # few widths: a CPU's matrix library compiles and keeps code for each, and tensor cores want multiples of 8
COUNTED = (TRUTH, TOOL, ARGS, INTEGRATION)


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


class Source(Protocol):
    """Records by position. `size_hint` is any cheap measure of length; it only decides what is batched with what."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def size_hint(self, index: int) -> int: ...


class FileSource:
    """Records of JSONL files, read by byte offset: only offsets and lengths stay in memory.

    Every line is checked once, here, so a bad one is named before training starts.

    Raises:
        DataError: no file, no record, or a line that is no record.
    """

    def __init__(self, patterns: tuple[str, ...] | list[str]):
        self._lines: list[tuple[Path, int, int, int]] = []  # file, offset, length, line number
        for pattern in patterns:
            paths = sorted(map(Path, glob.glob(pattern))) if glob.has_magic(pattern) else [Path(pattern)]
            if not paths or not all(p.is_file() for p in paths):
                raise DataError(f"{pattern}: no such data file; check data.stages in the config (paths are relative to where the run starts)")
            for path in paths:
                self._index(path)
        if not self._lines:
            raise DataError(f"{', '.join(patterns)}: no record in it")

    def _index(self, path: Path) -> None:
        with path.open("rb") as lines:
            offset = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    parse_line(line, f"{path}:{number}")
                    self._lines.append((path, offset, len(line), number))
                offset += len(line)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        path, offset, length, number = self._lines[index]
        with path.open("rb") as file:
            file.seek(offset)
            return parse_line(file.read(length), f"{path}:{number}")

    def size_hint(self, index: int) -> int:
        return self._lines[index][2]


class DemoSource:
    """The demo corpus, made record by record: kinds drawn from `mix`, or `short` records whose kind carries that suffix."""

    def __init__(self, num_records: int, seed: int, mix: dict[str, float]):
        unknown = [k for k in mix if k.removesuffix("_short") not in demo.KINDS]
        if unknown:
            raise DataError(f"data.stages: mix: no demo record kind {unknown[0]!r}; kinds are {', '.join(demo.KINDS)}, each also as kind_short")
        self._kinds = random.Random(f"{seed}:kinds").choices(list(mix), list(mix.values()), k=num_records)
        self._seed = seed

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: int) -> Record:
        kind = self._kinds[index]
        return demo.record(kind.removesuffix("_short"), index, seed=self._seed, short=kind.endswith("_short"))

    def size_hint(self, index: int) -> int:
        record = self[index]
        return sum(len(m["content"]) + 2 * len(str(m.get("tool_calls", ""))) for m in record.messages) + len(str(record.tools)) // 4


class StepBatches:
    """An endless iterator of optimizer steps for one rank: lists of exactly `gradient_accumulation` MicroBatches.

    Args:
        source: where records come from; epochs follow one another, each in an order of its own.
        tokenizer: fast, with a chat template.
        max_length: in tokens; a longer record is left out and counted, in its first epoch, in `num_too_long` of the rank it
            fell to: over all ranks these add up to the number of such records seen so far.
    """

    def __init__(self, source: Source, tokenizer, *, max_length: int, micro_batch_size: int, gradient_accumulation: int,
                 rank: int = 0, world_size: int = 1, seed: int = 0):
        if not len(source):
            raise DataError("no record to train on")
        self._source, self._tokenizer, self._max_length = source, tokenizer, max_length
        self._micro, self._accumulation = micro_batch_size, gradient_accumulation
        self._rank, self._world, self._seed = rank, world_size, seed
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.num_too_long = 0

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self.after(0)

    def after(self, num_steps: int) -> Iterator[list[MicroBatch]]:
        """The steps from number `num_steps` on, as if those before had been taken; `num_too_long` is the caller's to restore."""
        for epoch, indices in itertools.islice(self._steps(), num_steps, None):
            micro_batches = []
            for m in range(self._accumulation):
                mine = indices[(m * self._world + self._rank) * self._micro:][:self._micro]
                kept = self._encode(mine)
                if epoch == 0:
                    self.num_too_long += len(mine) - len(kept)
                micro_batches.append(collate(kept, self._pad, self._max_length))
            yield micro_batches

    def _steps(self) -> Iterator[tuple[int, list[int]]]:
        size, epoch = self._micro * self._accumulation * self._world, 0
        while True:
            rng = random.Random(f"{self._seed}:epoch:{epoch}")
            order = list(range(len(self._source)))
            rng.shuffle(order)
            for start in range(0, len(order), size * WINDOW_STEPS):
                window = order[start:start + size * WINDOW_STEPS]
                hints = {i: self._source.size_hint(i) for i in window}
                window.sort(key=lambda i: (hints[i], i))
                steps = [window[at:at + size] for at in range(0, len(window), size)]
                rng.shuffle(steps)
                yield from ((epoch, step) for step in steps)
            epoch += 1

    def _encode(self, indices: list[int]) -> list[Encoded]:
        encoded = (encode(self._source[i], self._tokenizer) for i in indices)
        return [e for e in encoded if len(e.input_ids) <= self._max_length]


def collate(encoded: list[Encoded], pad_token_id: int, max_length: int | None = None) -> MicroBatch:
    """Right-padded tensors and the supervised rows. No records gives one padding token and no rows.

    With `max_length`, batches are as wide as the longest record rounded up to PAD_MULTIPLE, but no wider than that.

    This is the one place of the shift: a token at position t with bits becomes the row at position t - 1.
    """
    length = max((len(e.input_ids) for e in encoded), default=1)
    if encoded and max_length is not None:
        length = max(length, min(-(-length // PAD_MULTIPLE) * PAD_MULTIPLE, max_length))
    input_ids = torch.full((max(len(encoded), 1), length), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    if not encoded:
        attention_mask[0, 0] = 1  # attention over nothing is NaN in some implementations
    rows, labels, bits, weight, record = [], [], [], [], []
    for b, e in enumerate(encoded):
        input_ids[b, :len(e.input_ids)] = torch.tensor(e.input_ids)
        attention_mask[b, :len(e.input_ids)] = 1
        for t in range(1, len(e.input_ids)):
            if e.bits[t]:
                rows.append(b * length + t - 1)
                labels.append(e.input_ids[t])
                bits.append(e.bits[t])
                weight.append(e.weight)
                record.append(b)
    return MicroBatch(input_ids, attention_mask, torch.tensor(rows, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64),
                      torch.tensor(bits, dtype=torch.int64), torch.tensor(weight, dtype=torch.float32),
                      torch.tensor(record, dtype=torch.int64), tuple(e.record_id for e in encoded))


def count_rows(micro_batches: list[MicroBatch]) -> Tensor:
    """[4] float64: the sum of record weights over rows with each bit of COUNTED, over one rank's micro-batches."""
    counts = torch.zeros(len(COUNTED), dtype=torch.float64)
    for micro in micro_batches:
        for i, bit in enumerate(COUNTED):
            counts[i] += micro.weight[(micro.bits & bit) != 0].double().sum()
    return counts
