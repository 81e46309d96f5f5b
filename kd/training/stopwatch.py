"""Seconds of a part of each step, added up between two lines of metrics."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """`with watch:` times what is inside, and `watch.take()` gives the seconds since it was last called.

    On a GPU the work is timed where it runs, by events that are read by `take`: the host waits for nothing in between.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._seconds = self._began = 0.0
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        if self._on_gpu:
            self._mark()
        else:
            self._began = time.monotonic()

    def __exit__(self, *unused) -> None:
        if self._on_gpu:
            self._mark()
        else:
            self._seconds += time.monotonic() - self._began

    def _mark(self) -> None:
        self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[-1].record()

    def take(self) -> float:
        """Return the seconds so far, and begin again at 0."""
        found, self._seconds = self._seconds, 0.0
        if self._events:
            self._events[-1].synchronize()
            found += sum(a.elapsed_time(b) for a, b in zip(self._events[::2], self._events[1::2])) / 1000
            self._events = []
        return found
