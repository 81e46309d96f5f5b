"""Weight files of a saved model on this machine, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kd.hashing import hash_text, sha256
from kd.models.model_files import check_weights, find_file

SAMPLED_BYTES = 1 << 20  # of each file larger than WHOLE_BYTES
WHOLE_BYTES = 1 << 28


def weight_files(path: str, revision: str | None) -> list[Path]:
    """List the weight files of a folder or hub id, beside its config.json; none where either is not on this machine."""
    config = find_file(path, "config.json", revision)
    if config is None or not config.is_file():
        return []
    return sorted(config.parent.glob("*.safetensors")) or sorted(config.parent.glob("*.bin"))


def weights_hash(path: str, revision: str | None) -> str | None:
    """Hash a model's configuration and weight files, names and contents; None where they are not on this machine.

    Raises:
        StudentError: a file is damaged.
    """
    return _hash_files(path, revision, sha256)


def weights_fingerprint(path: str, revision: str | None) -> str | None:
    """Hash as `weights_hash` does, but quickly: of large files the size and 64 places. Raises as it does."""
    return _hash_files(path, revision, _sample)


def _hash_files(path: str, revision: str | None, digest: Callable[[Path], str]) -> str | None:
    files = weight_files(path, revision)
    if not files:
        return None
    if Path(path).is_dir():
        check_weights(Path(path))
    files.append(files[0].with_name("config.json"))
    with ThreadPoolExecutor(4) as pool:  # hashing leaves the interpreter to the others
        return hash_text("\n".join(f"{file.name} {found}" for file, found in zip(files, pool.map(digest, files))))


def _sample(file: Path) -> str:
    size = file.stat().st_size
    if size <= WHOLE_BYTES:
        return sha256(file)
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        digest.update(stream.read(SAMPLED_BYTES))  # the header of safetensors
        for place in range(64):
            stream.seek(place * size // 64)
            digest.update(stream.read(SAMPLED_BYTES // 64))
    return digest.hexdigest()
