"""Size of a cache on disk, estimated before it is captured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from kd.batching.record_key import DIGEST_BYTES, KEY_BYTES
from kd.config.schema import Data
from kd.sources.source import Source
from kd.teacher.cache.spec import CacheSpec
from kd.teacher.capture.plan import make_batch_maker

_SAMPLED_RECORDS = 64  # of each stage
# Distinct tokens among 50 draws of a language model of 151,936 tokens and 2 nats: 12 at temperature 1, 26 to 49 at 2.
_DISTINCT_AT_1, _DISTINCT_AT_2 = 12, 38


class CacheSize(NamedTuple):
    """Estimate: `num_rows` from a sample of records, `row_bytes` for a language model's distributions."""

    num_rows: int
    row_bytes: float

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole cache."""
        return round(self.num_rows * self.row_bytes)


def estimate_size(spec: CacheSpec, data: Data, tokenizer: Any, sources: Sequence[Source], *, seed: int) -> CacheSize:
    """Estimate the size of a cache over the records of each stage, from 64 records of each.

    Args:
        seed: of the sample.

    Raises:
        DataError: a record of the sample cannot be rendered.
    """
    maker, rng = make_batch_maker(data, tokenizer, sources), random.Random(seed)
    rows_of: dict[tuple, tuple[float, int]] = {}  # files or stage -> rows a record, records
    for number, (stage, source) in enumerate(zip(data.stages, sources)):
        chosen = rng.sample(range(len(source)), min(_SAMPLED_RECORDS, len(source)))
        measured = maker.measure([(number, index) for index in chosen])
        found = sum(rows for samples in measured for _, rows, *_ in samples) / len(chosen)
        # Stages that read the same files share their records.
        name = ("files", *stage.train) if stage.train is not None else ("stage", number)
        rows_of[name] = max(rows_of.get(name, (0.0, 0)), (found, len(source)))
    num_rows = round(sum(row * count for row, count in rows_of.values()))
    num_records = sum(count for _, count in rows_of.values())
    return CacheSize(num_rows, row_bytes(spec) + num_records * record_bytes(spec) / max(num_rows, 1))


def record_bytes(spec: CacheSpec) -> int:
    """Count the bytes of a record besides its rows."""
    return KEY_BYTES + DIGEST_BYTES + 4 + (4 * len(spec.temperatures) if spec.kind == "sampled" else 0)


def row_bytes(spec: CacheSpec) -> float:
    """Estimate the bytes of a row.

    Draws are counted for as many distinct tokens as a language model's have, linear between two measured temperatures.
    """
    number = 2 if spec.precision == "16bit" else 4
    entropies = number * (1 + len(spec.tempered))
    if spec.kind == "topk":
        return spec.ids_bytes + spec.kept * number + 4 * len(spec.temperatures) + entropies
    distinct = (max(_DISTINCT_AT_1 + (_DISTINCT_AT_2 - _DISTINCT_AT_1) * (t - 1), 1) for t in spec.temperatures)
    return spec.entry_bytes * sum(min(spec.draws, tokens) for tokens in distinct) + entropies
