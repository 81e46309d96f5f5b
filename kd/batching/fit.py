"""Fitting: a record's tokens as a stage trains them, or the reason why it is left out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.batching.record_key import record_key
from kd.rendering.encode import Encoded
from kd.rendering.spans import TRUTH


class FitPolicy(NamedTuple):
    """Rules of a stage for the records that it cannot train whole."""

    max_length: int
    """Longest record, or sequence of packed records, in tokens."""
    too_long: str = "drop"
    """A longer record: "drop" leaves it out, "truncate" keeps what `truncate` does."""
    missing: frozenset[bytes] = frozenset()
    """Keys (kd/batching/record_key.py) of records that the teacher has no targets for; they are left out."""
    turns: Literal["auto", "whole", "each"] = "auto"
    """data.turns: which records are one sequence, and which one for each turn."""
    refuse: bool = False
    """Leave out a record that cannot be rendered or located, and name it; by default its DataError is raised."""


class Sample(NamedTuple):
    """Record, or one of its turns, as it is trained."""

    record_id: str
    input_ids: NDArray[np.int32]  # [T]
    bits: NDArray[np.uint8]  # [T], span mask of each token (kd/rendering/spans.py)
    weight: float  # in every loss term
    key: bytes  # kd/batching/record_key.py
    is_cut: bool = False  # it has lost its end


def make_sample(encoded: Encoded, is_cut: bool = False) -> Sample:
    """Make a sample of all tokens of a record."""
    ids, bits = np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.bits, np.uint8)
    return Sample(encoded.record_id, ids, bits, encoded.weight, record_key(ids), is_cut)


def fit(encoded: Encoded, policy: FitPolicy) -> Sample | None:
    """Make a sample of what is trained of a record: all where max_length tokens have room for it, else what `truncate`
    keeps; None where it is left out as too long. `policy.missing` is the caller's to look at.
    """
    if len(encoded.input_ids) <= policy.max_length:
        return make_sample(encoded)
    kept = truncate(encoded, policy.max_length) if policy.too_long == "truncate" else None
    return None if kept is None else make_sample(kept, is_cut=True)


def truncate(encoded: Encoded, max_length: int) -> Encoded | None:
    """Cut a record after its last assistant turn that is whole within max_length tokens, so that no span of any kind is
    cut and nothing untrained trails; None where no turn fits.
    """
    bits = encoded.bits
    ends = (
        t
        for t in range(min(max_length, len(bits)), 1, -1)
        if bits[t - 1] & TRUTH and not (t < len(bits) and bits[t] & TRUTH)
    )
    end = next(ends, None)
    return None if end is None else encoded._replace(input_ids=encoded.input_ids[:end], bits=bits[:end])


def find_rows(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Find the positions of a record, from 0, whose next token is trained: [N], ascending.

    This is the one place of the shift: bits at t make a row at t - 1.
    """
    return np.flatnonzero(bits[1:])
