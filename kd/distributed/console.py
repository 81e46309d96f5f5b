"""Lines for the person watching a run."""

from __future__ import annotations

import contextlib
import sys

from tqdm import tqdm


def say(text: str) -> None:
    """Print a line to stdout, clear of a progress bar.

    Where it cannot be written (a terminal that closed, a reader that ended, a full disk) it is left out: no training
    ends for a line of its log.
    """
    with contextlib.suppress(OSError):
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
