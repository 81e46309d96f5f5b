"""TODO docstring."""

from __future__ import annotations

from kd.rendering.encode import Encoded
from kd.rendering.spans import TRUTH


def fitted(encoded: Encoded, max_length: int, truncate: bool) -> Encoded | None:
    """The record as it is trained: whole where max_length tokens have room for it, else `truncated`, or None where it
    is left out.
    """
    if len(encoded.input_ids) <= max_length:
        return encoded
    return truncated(encoded, max_length) if truncate else None


def truncated(encoded: Encoded, max_length: int) -> Encoded | None:
    """The record up to the end of its last assistant turn that is whole within max_length tokens, so that no span of
    any kind is cut and nothing untrained trails; None where no turn fits."""
    bits = encoded.bits
    ends = (
        t
        for t in range(min(max_length, len(bits)), 1, -1)
        if bits[t - 1] & TRUTH and not (t < len(bits) and bits[t] & TRUTH)
    )
    end = next(ends, None)
    return None if end is None else encoded._replace(input_ids=encoded.input_ids[:end], bits=bits[:end])
