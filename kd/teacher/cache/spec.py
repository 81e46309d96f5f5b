"""Spec of a cache: kind, vocabulary, temperatures, and the bits that each thing takes."""

from __future__ import annotations

import math
from typing import NamedTuple

from kd.errors import SpanwiseError
from kernels import TeacherSamples, TeacherTopK

KINDS = ("sampled", "topk")
PRECISIONS = ("16bit", "fp32")
MAX_VOCAB = 1 << 23  # its entropies, at most ln 2^23 = 15.94 nats, fit 16 bits of 1/4096 nat
MAX_DRAWS = 255  # a count takes 8 bits at most, so an entry fits 4 bytes at every vocabulary


class CacheError(SpanwiseError, ValueError):
    """Cache that cannot be written, opened or read; the message names file, place and remedy."""


class CacheSpec(NamedTuple):
    """Numbers that are stored of each row."""

    kind: str  # sampled | topk
    vocab_size: int  # ids are below it
    temperatures: tuple[float, ...]  # distinct, above 0
    num_draws: int | None = None  # of sampled, 1 to 255, at each temperature
    top_k: int | None = None  # of topk, 1 to vocab_size
    precision: str = "16bit"  # of topk: 16bit | fp32, for log-probabilities and entropies
    has_entropy: bool = True  # False of topk at temperature 1 from an endpoint, which tells none: every entropy is NaN

    @property
    def id_bits(self) -> int:
        """Bits of a token id: ceil(log2 vocab_size), at least 1."""
        return max((self.vocab_size - 1).bit_length(), 1)

    @property
    def draws(self) -> int:
        """num_draws of a sampled cache."""
        assert self.num_draws is not None, "num_draws is of a sampled cache"
        return self.num_draws

    @property
    def kept(self) -> int:
        """top_k of a topk cache."""
        assert self.top_k is not None, "top_k is of a topk cache"
        return self.top_k

    @property
    def entry_bytes(self) -> int:
        """Bytes of one drawn token with its count, 0 to num_draws."""
        return -(-(self.id_bits + self.draws.bit_length()) // 8)

    @property
    def ids_bytes(self) -> int:
        """Bytes of the ids of one row of topk."""
        return -(-(self.kept * self.id_bits) // 8)

    @property
    def tempered(self) -> tuple[int, ...]:
        """Places in `temperatures` that are not 1: at 1 the entropy is stored once."""
        return tuple(i for i, t in enumerate(self.temperatures) if t != 1.0)


class Entry(NamedTuple):
    """Teacher's targets for the n rows of one record, at all temperatures of the spec."""

    key: bytes  # kd.batching.record_key.record_key
    row_digest: bytes  # kd.batching.record_key.rows_digest
    rows: TeacherSamples | TeacherTopK  # on the CPU


class Missing(NamedTuple):
    """Record that the teacher gave no targets for."""

    key: bytes
    record_id: str
    reason: str


def check_spec(spec: CacheSpec) -> CacheSpec:
    """Check the spec and return it, its temperatures as a tuple of floats.

    Raises:
        CacheError: numbers out of range, or of the other kind.
    """
    problems = []
    if spec.kind not in KINDS:
        raise CacheError(f"the cache's kind is {spec.kind!r}; it is one of {', '.join(KINDS)}")
    if not 1 <= spec.vocab_size <= MAX_VOCAB:
        problems.append(f"vocab_size is {spec.vocab_size}; it must lie between 1 and {MAX_VOCAB}")
    temperatures = tuple(float(t) for t in spec.temperatures)
    if (
        not temperatures
        or len(set(temperatures)) < len(temperatures)
        or not all(0 < t < math.inf for t in temperatures)
    ):
        problems.append(f"temperatures are {list(spec.temperatures)}: one or more distinct numbers above 0 are needed")
    if spec.kind == "sampled":
        if spec.num_draws is None or not 1 <= spec.num_draws <= MAX_DRAWS:
            problems.append(f"num_draws is {spec.num_draws}; it must lie between 1 and {MAX_DRAWS}")
        if spec.top_k is not None or spec.precision != "16bit":
            problems.append(
                "top_k and precision fp32 are of a topk cache; a sampled one stores its counts exactly as they are"
            )
    else:
        if spec.top_k is None or not 1 <= spec.top_k <= spec.vocab_size:
            problems.append(f"top_k is {spec.top_k}; it must lie between 1 and vocab_size, {spec.vocab_size}")
        if spec.num_draws is not None:
            problems.append("num_draws is of a sampled cache")
        if spec.precision not in PRECISIONS:
            problems.append(f"precision is {spec.precision!r}; it is one of {', '.join(PRECISIONS)}")
    if not spec.has_entropy and (spec.kind != "topk" or temperatures != (1.0,)):
        problems.append("only a topk cache at temperature 1, an endpoint's, is without entropies")
    if problems:
        raise CacheError("a cache cannot be made so: " + "; ".join(problems))
    return spec._replace(temperatures=temperatures)
