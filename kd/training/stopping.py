"""Stopping and saving: signals, and the end of the launcher, become requests, honoured after a whole step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

_LAUNCHERS = ("deepspeed", "torchrun", "accelerate", "spanwise")  # programs
_MODULES = ("deepspeed.", "torch.distributed.")  # of python -m


class StopRequest:
    """Request to stop, or to save and go on, while used as a context manager in the main thread.

    SIGUSR1 asks for a checkpoint alone.

    SIGTERM, the first SIGINT, and SIGHUP of a terminal that closes (unless nohup ignores it) ask for it; a second
    SIGINT interrupts at once. It is asked for as well when a process that launched this one is gone: a launcher that
    was killed alone leaves its ranks running, unknown to whoever waits.
    """

    def __init__(self) -> None:
        self._asked = self._asked_to_save = False
        self._launchers = _find_launchers()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        heard = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, *heard):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it came from signal.signal

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._asked_to_save = True
            return
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def is_asked(self) -> bool:
        """Tell whether this process should stop."""
        return self._asked or not all(map(_runs, self._launchers))

    def take_save(self) -> bool:
        """Tell whether this process was asked to save since the last call."""
        asked, self._asked_to_save = self._asked_to_save, False
        return asked


@contextmanager
def deaf_to_saves() -> Iterator[None]:
    """Ignore SIGUSR1, which ends a process that does not hear it, before the first step and after the last."""
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


def _find_launchers() -> list[psutil.Process]:
    """List the processes above this one that are launchers, nearest first."""
    found = []
    for process in psutil.Process().parents():
        try:
            command = process.cmdline()
        except psutil.Error:
            break
        if not _is_launcher(command):
            break
        found.append(process)
    return found


def _is_launcher(command: list[str]) -> bool:
    """Tell whether a command runs a launcher; one that lies in a folder of a launcher's name is none for that."""
    words = [word for word in command[:4] if word.split() == [word]]  # python -u -m deepspeed.launcher.launch
    names = map(os.path.basename, words)
    return any(name in _LAUNCHERS or name.startswith(_MODULES) for name in names)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
