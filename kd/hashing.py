"""SHA-256 of files and of texts."""

from __future__ import annotations

import hashlib
from pathlib import Path

HASH_DIGITS = 32  # hex digits that a text's hash is cut to


def sha256(path: Path) -> str:
    """Hash a file; 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """Hash a text's UTF-8 bytes; the first HASH_DIGITS hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
