"""Lock of a folder: one process at a time, the other one named."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

NAME = ".lock"


class FolderLock:
    """Lock of `folder`, which must exist, by a file `name` in it; the system frees it when the process ends."""

    def __init__(self, folder: Path, name: str = NAME):
        self._path, self._handle = folder / name, -1

    def take(self) -> str | None:
        """Lock the folder; returns None, or who has it, in words."""
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_ino == os.stat(self._path).st_ino:
                    break
            except FileNotFoundError:
                pass  # released, and removed, between the two calls
            except OSError:
                holder = os.read(handle, 200).decode("utf-8", "replace").strip()
                os.close(handle)
                return holder or "another process"
            os.close(handle)
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._handle = handle
        return None

    def release(self) -> None:
        """Unlock the folder, where it is locked, and remove the file."""
        if self._handle >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1
