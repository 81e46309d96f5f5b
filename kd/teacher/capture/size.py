"""How much disk a cache takes, before it is captured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from kd.batching.record_key import DIGEST_BYTES, KEY_BYTES
from kd.config.schema import RunConfig
from kd.sources.source import Source
from kd.teacher.cache.identity import cache_spec
from kd.teacher.cache.spec import CacheSpec
from kd.teacher.capture.plan import batch_maker

_SAMPLED_RECORDS = 64  # of each stage
# Distinct tokens among 50 draws of a language model of 151,936 tokens and 2 nats: 12 at temperature 1, 26 to 49 at 2.
_DISTINCT_AT_1, _DISTINCT_AT_2 = 12, 38


class CacheSize(NamedTuple):
    """An estimate: `num_rows` from a sample of records, `row_bytes` for a language model's distributions."""

    num_rows: int
    row_bytes: float

    @property
    def num_bytes(self) -> int:
        return round(self.num_rows * self.row_bytes)


def cache_size(config: RunConfig, tokenizer, sources: Sequence[Source]) -> CacheSize:
    """Of the cache that `config.teacher.cache` describes, over the records of each stage.

    Raises:
        DataError: a record of the sample cannot be rendered.
    """
    maker, rng = batch_maker(config, tokenizer, sources), random.Random(config.run.seed)
    rows_of: dict[tuple, tuple[float, int]] = {}  # what a stage reads -> rows a record, records
    for number, (stage, source) in enumerate(zip(config.data.stages, sources)):
        chosen = rng.sample(range(len(source)), min(_SAMPLED_RECORDS, len(source)))
        found = sum(row for _, row, *_ in maker.measured([(number, index) for index in chosen])) / len(chosen)
        name = (
            ("files", *stage.train) if stage.train is not None else ("stage", number)
        )  # stages that read the same files share their records
        rows_of[name] = max(rows_of.get(name, (0.0, 0)), (found, len(source)))
    num_rows, num_records = (
        round(sum(row * count for row, count in rows_of.values())),
        sum(count for _, count in rows_of.values()),
    )
    spec = cache_spec(config, len(tokenizer))
    return CacheSize(num_rows, row_bytes(spec) + num_records * record_bytes(spec) / max(num_rows, 1))


def record_bytes(spec: CacheSpec) -> int:
    """What a record takes besides its rows."""
    return KEY_BYTES + DIGEST_BYTES + 4 + (4 * len(spec.temperatures) if spec.kind == "sampled" else 0)


def row_bytes(spec: CacheSpec) -> float:
    """Bytes a row; of draws for as many distinct tokens as a language model's have, linear between two temperatures
    measured.
    """
    number = 2 if spec.precision == "16bit" else 4
    entropies = number * (1 + len(spec.tempered))
    if spec.kind == "topk":
        return spec.ids_bytes + spec.top_k * number + 4 * len(spec.temperatures) + entropies
    distinct = (max(_DISTINCT_AT_1 + (_DISTINCT_AT_2 - _DISTINCT_AT_1) * (t - 1), 1) for t in spec.temperatures)
    return spec.entry_bytes * sum(min(spec.num_draws, tokens) for tokens in distinct) + entropies
