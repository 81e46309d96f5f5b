"""End of a process of a job: the error printed, the exit without C++ destructors."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Iterable

from kd.errors import SpanwiseError


def tell(error: SpanwiseError, config: str, overrides: Iterable[str] = ()) -> None:
    """Print the error to stderr, and the command that provides what is missing where it names one (`remedy`).

    Args:
        config: path of the run's YAML, as given.
        overrides: the values of --set, as given.
    """
    print(f"error: {error}", file=sys.stderr)
    if error.remedy is not None:
        given = "".join(f" --set {shlex.quote(override)}" for override in overrides)
        print(f"run this first:\n  deepspeed {error.remedy} --config {shlex.quote(config)}{given}", file=sys.stderr)


def leave(code: int) -> None:
    """End the process with exit status `code`, after Python's own exit functions and without C++ destructors.

    A destructor that meets a running thread of the process group now and then aborts a rank that has finished
    ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
