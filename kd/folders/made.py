"""Made folders: replaced whole, and deleted only where nothing in them was changed since the program made them.

A folder's files, with their sizes and times, stand beside it in .NAME.made.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from kd.atomic_files import clear_parts, flush, publish


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` where the block ends well: flushed to disk, and renamed.

    What is there is deleted if it is as this function made it, and else set aside in previous-N/ beside it.

    Raises:
        OSError: and `folder` is as it was, or set aside.
    """
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    clear_parts(_list_of(folder))
    try:
        part.mkdir(parents=True)
        yield part
        for path in [*part.rglob("*"), part]:
            flush(path)
        old = part.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")  # deleted by the next start, if not by this
        if is_unchanged(folder):
            os.rename(folder, old)
        elif folder.exists() or folder.is_symlink():
            set_aside([folder], folder.parent)
        os.rename(part, folder)
        publish(_list_of(folder), json.dumps(_describe(folder)).encode())
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def is_unchanged(folder: Path) -> bool:
    """Tell whether a folder is as `replacing_folder` made it: the same files, sizes and times of change."""
    try:
        made = json.loads(_list_of(folder).read_bytes())
    except (OSError, ValueError):
        return False
    return not folder.is_symlink() and folder.is_dir() and _describe(folder) == made


def set_aside(paths: list[Path], folder: Path) -> Path | None:
    """Move files and folders that lie in `folder` into a new previous-N/ in it; returns that, or None for no path."""
    if not paths:
        return None
    number = 1
    while (folder / f"previous-{number}").exists():
        number += 1
    aside = folder / f"previous-{number}"
    for path in paths:
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    return aside


def _list_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.made.json")


def _describe(folder: Path) -> dict[str, list[int]]:
    files = {str(path.relative_to(folder)): path.lstat() for path in sorted(folder.rglob("*")) if not path.is_dir()}
    return {name: [found.st_size, found.st_mtime_ns] for name, found in files.items()}
