"""Atomic files: there whole or not at all, whatever ends the program or fills the disk."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def publish(path: Path, content: bytes) -> None:
    """Make `path` a file of `content`: written beside it, flushed to disk, renamed.

    Raises:
        OSError: and `path` is as it was, unless the folder's own flush failed.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # its own name: two programs may write the same file
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Force a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
