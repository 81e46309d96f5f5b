"""Identity of a cache, as named strings: the teacher, the tokenizer and template of the records, and the data.

All but the teacher's name are hashes of content, so that a folder may move and a cache may not silently be another's.
`seed` and `batches` are of the capture alone: a training run may have others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kd.config.schema import Data, Teacher, TeacherCache
from kd.distributed.collectives import on_rank_0
from kd.hashing import HASH_DIGITS, hash_text
from kd.models.weight_files import weights_hash
from kd.sources.source import Source
from kd.teacher.cache.spec import CacheSpec

CAPTURE_ALONE = ("seed", "batches")


def cache_spec(cache: TeacherCache, vocab_size: int, *, has_entropy: bool) -> CacheSpec:
    """Make the spec of the cache that the configuration describes.

    Args:
        vocab_size: len(tokenizer).
        has_entropy: False of an endpoint's, which tells none.
    """
    return CacheSpec(
        cache.kind,
        vocab_size,
        cache.temperatures,
        cache.num_draws,
        cache.top_k,
        cache.precision or "16bit",
        has_entropy=has_entropy,
    )


def cache_identity(teacher: Teacher, data: Data, tokenizer: Any, sources: Sequence[Source]) -> dict[str, str]:
    """Make the identity of a cache of this teacher over these records, but for CAPTURE_ALONE.

    All ranks call it together; rank 0 reads and hashes, and tells the others. `weights` is left out where the teacher's
    weights are not on this machine, as when training on another than captured.

    Args:
        sources: records of each stage, in the order of data.stages.
    """
    return on_rank_0(lambda: _identity(teacher, data, tokenizer, sources))


def _identity(teacher: Teacher, data: Data, tokenizer: Any, sources: Sequence[Source]) -> dict[str, str]:
    identity = _teacher(teacher) | {"tokenizer": tokenizer_hash(tokenizer), "template": template_hash(tokenizer)}
    for stage, source in zip(data.stages, sources, strict=True):
        identity[f"data of stage {stage.name}"] = (
            f"{source.fingerprint()[:HASH_DIGITS]}, {len(source)} records, max_length {stage.max_length}, "
            f"too_long {data.too_long}" + (", turns each" if data.turns == "each" else "")
        )
    return identity


def _teacher(teacher: Teacher) -> dict[str, str]:
    """Name the teacher; of a server, which shows no weights, by the name that it serves the model under."""
    if teacher.endpoint is not None:
        return {"teacher": f"{teacher.endpoint.model}, of an endpoint", "entropy": "none"}
    weights = weights_hash(teacher.path, teacher.revision)
    identity = {"teacher": teacher.path, "revision": teacher.revision or "none", "dtype": teacher.dtype}
    return identity if weights is None else identity | {"weights": weights}


def template_hash(tokenizer: Any) -> str:
    """Hash the chat template, or the templates by name where there are several."""
    return hash_text(json.dumps(tokenizer.chat_template, sort_keys=True))


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash all that decides which ids a text has; padding and truncation are settings of calls, and left out."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    return hash_text(json.dumps(kept, sort_keys=True))
