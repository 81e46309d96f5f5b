"""Kept tokens: the samples that `measure` encoded to learn their lengths, on disk, so that they are encoded once.

Each rank measures every world_size-th share of the records, and writes their samples into one file: 5 bytes a token,
and about 50 a sample. The file lies beside the source's own, on a disk that all ranks read, so that a rank has the
others' records too; where the source has no file, or the disk is not shared, a rank reads back what it measured itself
and encodes the rest again. What is left out is not kept: its record is encoded again where it has to be named.

    records, one after another    the samples of each: _HEAD, record id in UTF-8, [T] int32 ids, [T] uint8 span bits; of
                                  a sample that is left out _HEAD alone
    offsets                       [n + 1] int64: where each of the n measured records begins, and the last one ends
    n                             int64
"""

from __future__ import annotations

import os
import struct
import tempfile
import uuid
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kd.atomic_files import replacing
from kd.batching.fit import Sample

SHARE_RECORDS = 64  # records that a worker measures at once
_HEAD = struct.Struct("<IId?16s")  # tokens, bytes of the id, weight, is_cut, key
_INT = struct.Struct("<q")


def pack_sample(sample: Sample) -> bytes:
    """Write a sample as bytes."""
    name = sample.record_id.encode("utf-8", "surrogatepass")
    head = _HEAD.pack(len(sample.input_ids), len(name), sample.weight, sample.is_cut, sample.key)
    return b"".join((head, name, sample.input_ids.astype("<i4").tobytes(), sample.bits.tobytes()))


LEFT_OUT = _HEAD.pack(0, 0, 0.0, False, b"")


def unpack_samples(packed: bytes) -> list[Sample | None]:
    """Read the samples that `pack_sample` wrote, one after another; None for each LEFT_OUT."""
    found: list[Sample | None] = []
    at = 0
    while at < len(packed):
        num_tokens, name_bytes, *_ = _HEAD.unpack_from(packed, at)
        end = at + _HEAD.size + name_bytes + 5 * num_tokens
        found.append(unpack_sample(packed[at:end]) if num_tokens else None)
        at = end
    return found


def unpack_sample(packed: bytes) -> Sample:
    """Read the sample that `pack_sample` wrote."""
    num_tokens, name_bytes, weight, is_cut, key = _HEAD.unpack_from(packed)
    at = _HEAD.size + name_bytes
    ids = np.frombuffer(packed, "<i4", num_tokens, at)
    bits = np.frombuffer(packed, np.uint8, num_tokens, at + 4 * num_tokens)
    return Sample(packed[_HEAD.size : at].decode("utf-8", "surrogatepass"), ids, bits, weight, key, is_cut)


class KeptTokens:
    """Samples of a source by position, as far as this rank can read them.

    Args:
        stem: path that every rank's file begins with; the same samples on every rank and in every run that uses it.
        rank: this rank, whose file goes when this object does; others' files are theirs.
        world_size: ranks that measure, each the shares `rank::world_size` of SHARE_RECORDS records.
    """

    def __init__(self, stem: str, rank: int, world_size: int):
        self._paths = [f"{stem}-{other}" for other in range(world_size)]
        self._own = self._paths[rank]
        self._open: dict[int, BinaryIO | None] = {}
        weakref.finalize(self, _remove, self._own)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # another process opens them itself

    def write(self, samples: Iterable[bytes]) -> None:
        """Write the samples of this rank's records in order, b"" for a record without; complete or not there at all.

        Raises:
            OSError: the disk is full, or the like.
        """
        with replacing(Path(self._own)) as file:
            offsets = [0]
            for packed in samples:
                file.write(packed)
                offsets.append(offsets[-1] + len(packed))
            file.write(np.asarray(offsets, "<i8").tobytes() + _INT.pack(len(offsets) - 1))

    def read(self, index: int) -> list[Sample | None]:
        """Read the samples of record `index`; empty where none is kept, or not on this machine."""
        share, at = divmod(index, SHARE_RECORDS)
        file = self._file(share % len(self._paths))
        if file is None:
            return []
        handle, end = file.fileno(), os.fstat(file.fileno()).st_size
        (num_records,) = _INT.unpack(os.pread(handle, _INT.size, end - _INT.size))
        place = share // len(self._paths) * SHARE_RECORDS + at
        entry = end - _INT.size * (num_records + 2 - place)
        begin, stop = struct.unpack("<qq", os.pread(handle, 2 * _INT.size, entry))
        return unpack_samples(os.pread(handle, stop - begin, begin))

    def _file(self, rank: int) -> BinaryIO | None:
        if rank not in self._open:
            try:
                # Closed when this object goes: every record is read through it.
                self._open[rank] = open(self._paths[rank], "rb", buffering=0)  # noqa: SIM115
            except FileNotFoundError:
                self._open[rank] = None
        return self._open[rank]


def choose_stem(spool: str | None, content: str) -> str:
    """Choose where a source's samples are kept: beside `spool`, its own file, under a name that tells `content`, a hash
    of all that decides them; in a temporary folder, under a name of this process, where there is no such file here.
    """
    if spool is not None and Path(spool).parent.is_dir():
        return f"{spool}.{content}"
    return str(Path(tempfile.gettempdir()) / f"tokens-{uuid.uuid4().hex}")


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
