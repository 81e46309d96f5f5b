"""Keys of records: fixed values, so that a cache written today is found tomorrow, on any machine."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd.batching.record_key import record_key, rows_digest

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=30)


def test_values_do_not_change():
    assert record_key([1, 2, 151935]).hex() == "f5ec63737af2f9484cf6f43a588ee1ac"
    assert record_key([]).hex() == "cae66941d9efbd404e4d88758ea67670"
    assert rows_digest([0, 5, 6]).hex() == "72860114588d1feb"
    assert rows_digest([]).hex() == "e4a6a0577479b2b4"


@given(IDS)
def test_hash_of_little_endian_int32(ids):
    raw = b"".join(struct.pack("<i", i) for i in ids)
    assert record_key(ids) == hashlib.blake2b(raw, digest_size=16).digest() and len(record_key(ids)) == 16
    assert rows_digest(ids) == hashlib.blake2b(raw, digest_size=8).digest() and len(rows_digest(ids)) == 8


@given(IDS, IDS)
def test_other_tokens_other_key(one, other):
    assert (record_key(one) == record_key(other)) == (one == other)


def test_any_kind_of_sequence():
    ids = [3, 1, 2]
    for same in (
        tuple(ids),
        np.array(ids),
        np.array(ids, ">i8"),
        torch.tensor(ids),
        torch.tensor(ids, dtype=torch.int32),
    ):
        assert record_key(same) == record_key(ids) and rows_digest(same) == rows_digest(ids)


def test_ids_that_are_no_int32():
    with pytest.raises(OverflowError):
        record_key([2**31])
