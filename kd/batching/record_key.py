"""Identity of a record in the teacher's cache: hashes of its tokens and of its supervised positions.

Both depend on the record alone: not on its place in the data, on the step that uses it, or on what shares a row with
it. Two records of the same tokens are one record to the teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[int] | NDArray[np.integer]

KEY_BYTES = 16
DIGEST_BYTES = 8


def record_key(input_ids: Numbers) -> bytes:
    """Hash the token ids, as trained (after truncation, before padding), to 16 bytes: BLAKE2b, little-endian int32."""
    return hashlib.blake2b(_int32(input_ids), digest_size=KEY_BYTES).digest()


def rows_digest(positions: Numbers) -> bytes:
    """Hash to 8 bytes: BLAKE2b of a record's supervised positions, ascending, as little-endian int32.

    A position counts from the record's first token, and is that of the token whose logits predict the supervised one: t
    - 1 for a token with span bits at t.
    """
    return hashlib.blake2b(_int32(positions), digest_size=DIGEST_BYTES).digest()


def _int32(numbers: Numbers) -> bytes:
    return np.asarray(numbers, dtype="<i4").tobytes()
