"""TODO docstring."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from kd.hashing import _hash, sha256


def weight_files(path: str, revision: str | None) -> list[Path]:
    """A model's weight files on this machine, beside its config.json; empty where they, or it, are not here."""
    folder = Path(path)
    if not folder.is_dir():
        known = try_to_load_from_cache(path, "config.json", revision=revision)
        if not isinstance(known, str):
            return []
        folder = Path(known).parent
    return (
        (sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")))
        if (folder / "config.json").is_file()
        else []
    )


def weights_hash(path: str, revision: str | None) -> str | None:
    """Of a model's configuration and weight files, names and contents; None where they are not on this machine."""
    files = weight_files(path, revision)
    if not files:
        return None
    files.append(files[0].with_name("config.json"))
    with ThreadPoolExecutor(4) as pool:  # hashing leaves the interpreter to the others
        return _hash("\n".join(f"{file.name} {digest}" for file, digest in zip(files, pool.map(sha256, files))))
