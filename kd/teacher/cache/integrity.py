"""Shard integrity: size, SHA-256, CRC-32 per 64 KiB; no byte of a shard is used before this was asked."""

from __future__ import annotations

import mmap
import stat
from pathlib import Path

from kd.teacher.cache.manifest import BLOCK, ShardInfo
from kd.teacher.cache.shard import blocks_of, read_tag, sha256_of, shard_tag
from kd.teacher.cache.spec import CacheError


def find_damage(path: Path, info: ShardInfo, cache_digest: str, index: int) -> str | None:
    """Read a whole file that should be shard `index` as `info` has it; return the damage in words, or None."""
    problem = check_size(path, info) or _find_changes(path, info)
    if problem is None:
        return None
    try:
        tag = read_tag(path)
    except CacheError:  # it is missing, or too damaged to say what it is
        return problem
    if tag != shard_tag(cache_digest, index):
        return (
            f"{path} is a shard of another cache, or another shard of this one: it says that it is {tag}, not "
            f"{shard_tag(cache_digest, index)}"
        )
    return problem


def check_size(path: Path, info: ShardInfo) -> str | None:
    """Say that the file is missing, no file, or of another length, or return None; its bytes are not read."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error}"
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        return f"{path} is no file: move it away"
    size = found.st_size
    if size != info.bytes:
        return f"{path} has {size} bytes, not {info.bytes}" + (
            f": it ends at offset {size}" if size < info.bytes else ""
        )
    return None


def _find_changes(path: Path, info: ShardInfo) -> str | None:
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            memoryview(whole) as raw,
        ):
            if sha256_of(raw) == info.sha256:
                return None
            blocks = blocks_of(raw)
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    changed = [at for at in range(0, len(blocks), 8) if info.blocks[at : at + 8] != blocks[at : at + 8]]
    spans = [f"{at // 8 * BLOCK} to {min((at // 8 + 1) * BLOCK, info.bytes) - 1}" for at in changed]
    more = f" and {len(spans) - 5} more places" if len(spans) > 5 else ""
    return (
        f"{path} does not have the SHA-256 it was written with: it changed within offsets {', '.join(spans[:5])}{more}"
    )
