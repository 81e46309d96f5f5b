"""Atomic files: there whole or not at all, whatever ends the program or fills the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kd.units import size

_FULL = {errno.ENOSPC, errno.EDQUOT}
_RIGHTS = "change the rights to it, or name another place"
_REMEDIES = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOTDIR: "a file is where a folder belongs: move it away, or name another place",
    errno.EROFS: "mount its disk for writing, or name another place",
    errno.EFBIG: "raise the size that a file may have (ulimit -f), or name another disk",
    errno.EMFILE: "raise the number of files that a program may open (ulimit -n)",
    errno.ENOENT: "put it back, or name another place",
    errno.EISDIR: "a folder is where a file belongs: move it away",
    errno.EEXIST: "move what is there away",
    errno.ENOTEMPTY: "move what is there away",
}
_FULL_TEXT = re.compile(r"os error (28|122)\b|No space left on device|Disk quota exceeded")  # of safetensors, in Rust
_IN_RUST = re.compile(r"\(os error (\d{1,4})\)")  # how its libraries tell a number of errno
_CUT_OFF = re.compile(r"PytorchStreamWriter|unexpected pos|file write failed")  # torch.save tells no reason
_LITTLE = 16 << 20  # bytes free on a disk that such a write found full


def publish(path: Path, content: bytes) -> None:
    """Make `path` a file of `content`, as `replacing` does.

    Raises:
        OSError: and `path` is as it was, unless the folder's own flush failed.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put `path` into an OSError of the block that names no file, as that of a write does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path` where the block ends well: written beside it, flushed to disk, renamed.

    A symbolic link stays and its target is replaced; a pipe or a device is written to as it is.

    Args:
        new: keep a file that is not empty, as another program may have made it meanwhile.

    Raises:
        OSError: with the file's name, and `path` is as it was, unless the folder's own flush failed.
    """
    if path.exists() and not path.is_file():
        with naming(path), path.open("wb") as file:
            yield file
        return
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # its own name: two programs may write the same file
    try:
        with naming(path), part.open("xb") as file:
            with contextlib.suppress(OSError):  # some network disks have no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `clear_parts` leaves it alone
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new and path.exists() and path.stat().st_size:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
        os.rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def clear_parts(path: Path) -> None:
    """Remove what killed programs left of writing `path`, or a folder at it; those of a living one are locked."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.part")
    for part in [one for one in path.parent.iterdir() if name.fullmatch(one.name)] if path.parent.is_dir() else ():
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), part.open("rb") as file:  # only tidying: writing says what is wrong
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: BaseException | None, path: str | os.PathLike | None = None) -> bool:
    """Tell whether an exception, or what caused it, is a disk without room; `path` is on the disk that was written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL or _FULL_TEXT.search(str(error)):
            return True
        if path is not None and _CUT_OFF.search(str(error)) and _num_free(path) < _LITTLE:
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_failure(error: BaseException, path: str | os.PathLike | None = None) -> str:
    """Say why a file could not be written, or read, and what to do where that is known, as of a full disk.

    Args:
        path: what was written, where the error does not name it.
    """
    file = getattr(error, "filename", None) or path
    if is_full(error, file):
        where = "" if file is None else f"{os.fspath(file)} cannot be written: "
        free = "" if file is None else f" ({size(_num_free(file))} are free)"
        return f"{where}the disk is full{free}: make room on it, and start the same command again"
    if not isinstance(error, OSError) and (told := _IN_RUST.search(str(error))):
        error = OSError(int(told[1]), os.strerror(int(told[1])))
    if isinstance(error, OSError) and error.strerror:
        remedy = f": {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        return f"{error.strerror}{remedy}" if file is None else f"{os.fspath(file)}: {error.strerror}{remedy}"
    if file is not None and _CUT_OFF.search(str(error)):
        return (
            f"{os.fspath(file)} cannot be written, and torch.save tells no reason: look at its disk, the quota, and "
            "the size that a file may have (ulimit -f)"
        )
    return f"{type(error).__name__}: {error}"


def _num_free(path: str | os.PathLike) -> int:
    """Count the bytes that are free where `path` is, or would be."""
    place = Path(os.fspath(path)).absolute()
    return shutil.disk_usage(next(one for one in (place, *place.parents) if one.exists())).free
