"""Capture log: a progress bar, and a line each half minute."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from kd.distributed.console import say
from kd.units import duration, size

_EVERY = 30.0  # seconds between two lines


class CaptureLog:
    """Log of one rank's capture; on ranks where it is not active every call does nothing but count."""

    def __init__(self, active: bool):
        self._active = active
        self._bar: tqdm | None = None
        self.num_bytes = 0

    def begin(self, num_tokens: int, num_done: int, num_bytes: int) -> None:
        """Begin the bar: of `num_tokens` of all records `num_done` are on disk already, as `num_bytes`."""
        self.num_bytes, self._total, self._done = num_bytes, num_tokens, num_done
        self._new, self._started = 0, time.monotonic()
        self._said = self._started
        if self._active:
            self._bar = tqdm(
                total=num_tokens,
                initial=num_done,
                unit="tok",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=1.0,
                disable=not sys.stderr.isatty(),
            )

    def advance(self, tokens: int, num_bytes: int) -> None:
        """Count the tokens of a batch of all ranks, and the bytes of the shards that it finished."""
        self.num_bytes, self._new = self.num_bytes + num_bytes, self._new + tokens
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(tokens)
            self._bar.set_postfix_str(size(self.num_bytes), refresh=False)
        if now - self._said >= _EVERY:
            self._said, rate = now, self._new / (now - self._started)
            left = self._total - self._done - self._new
            self.say(
                f"{(self._done + self._new) / self._total:.1%} of {self._total:,} tokens, {rate:,.0f} tok/s, "
                f"{size(self.num_bytes)} so far, about {duration(left / max(rate, 1e-9))} left"
            )

    def say(self, text: str) -> None:
        """Print a line for the person watching, clear of the progress bar."""
        if self._active:
            say(text)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
