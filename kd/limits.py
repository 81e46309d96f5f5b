"""Limits of what somebody else's program does in this process: processor time and memory."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LimitPassed(RuntimeError):
    """Program that takes more time or memory than it may."""


@contextmanager
def limit_processor_time(seconds: float) -> Iterator[None]:
    """End what takes more than `seconds` of this process' time in its own code (ITIMER_VIRTUAL, all threads).

    Nothing is bounded outside of the main thread, which alone receives signals, and where somebody has that signal.

    Raises:
        LimitPassed: between two steps of the interpreter, once the time is over.
    """
    is_taken = signal.getsignal(signal.SIGVTALRM) != signal.SIG_DFL
    if is_taken or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise LimitPassed(f"it takes more than {seconds:g} s of processor time")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


@contextmanager
def limit_memory(num_bytes: int) -> Iterator[None]:
    """End what takes more than `num_bytes` of addresses beyond those that the process has (RLIMIT_AS).

    The limit is the process': other threads have it too, so it is for what is done once. Where the system does not
    tell how much a process has, nothing is bounded.

    Raises:
        LimitPassed: an allocation failed.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(statm.read_text().split()[0]) * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (min(n for n in (limit, soft, hard) if n != resource.RLIM_INFINITY), hard))
    try:
        yield
    except MemoryError as error:
        raise LimitPassed(f"it takes more than {num_bytes / 2**30:g} GiB of memory") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
