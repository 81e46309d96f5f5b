"""What a cache of the teacher's signal is of, in named strings: the teacher, what records are rendered with, and the
data.

All but the teacher's name are hashes of content, so that a folder may move and a cache may not silently be another's.
`seed` and `batches` are of the capture alone: a training run may have others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from kd.config.schema import RunConfig, Teacher
from kd.distributed.collectives import on_rank_0
from kd.hashing import HASH_DIGITS, hash_text
from kd.models.weight_files import weights_hash
from kd.sources.source import Source
from kd.teacher.cache.spec import CacheSpec

CAPTURE_ALONE = ("seed", "batches")


def cache_spec(config: RunConfig, vocab_size: int) -> CacheSpec:
    """What the configuration's cache holds of each row; vocab_size: len(tokenizer)."""
    cache = config.teacher.cache
    return CacheSpec(
        cache.kind,
        vocab_size,
        cache.temperatures,
        cache.num_draws,
        cache.top_k,
        cache.precision or "16bit",
        has_entropy=config.teacher.endpoint is None,
    )


def cache_identity(config: RunConfig, tokenizer, sources: Sequence[Source]) -> dict[str, str]:
    """The identity of the cache that `config` names, but for CAPTURE_ALONE. All ranks call it; rank 0 reads, and tells
    the others.

    `weights` is left out where the teacher's weights are not on this machine, as when training on another than
    captured.
    """
    return on_rank_0(lambda: _identity(config, tokenizer, sources))


def _identity(config: RunConfig, tokenizer, sources: Sequence[Source]) -> dict[str, str]:
    data = config.data
    identity = _teacher(config.teacher) | {
        "tokenizer": tokenizer_hash(tokenizer),
        "template": hash_text(json.dumps(tokenizer.chat_template, sort_keys=True)),
    }
    for stage, source in zip(data.stages, sources, strict=True):
        identity[f"data of stage {stage.name}"] = (
            f"{source.fingerprint()[:HASH_DIGITS]}, {len(source)} records, max_length {stage.max_length}, "
            f"too_long {data.too_long}"
        )
    return identity


def _teacher(teacher: Teacher) -> dict[str, str]:
    """A server shows no weights: what it serves is known by the name that it gives it, wherever it runs."""
    if teacher.endpoint is not None:
        return {"teacher": f"{teacher.endpoint.model}, of an endpoint", "entropy": "none"}
    weights = weights_hash(teacher.path, teacher.revision)
    identity = {"teacher": teacher.path, "revision": teacher.revision or "none", "dtype": teacher.dtype}
    return identity if weights is None else identity | {"weights": weights}


def tokenizer_hash(tokenizer) -> str:
    """Of all that decides which ids a text has. How a batch is padded or cut is a setting of calls, and no part of
    it.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return hash_text(
        json.dumps({k: v for k, v in content.items() if k not in ("padding", "truncation")}, sort_keys=True)
    )
