"""How a process of a job ends."""

from __future__ import annotations

import atexit
import os
import sys


def leave(code: int) -> None:
    """Ends the process with what Python has registered done, and no C++ destructor: one that meets a running thread of the
    process group aborts, now and then, a rank that has finished ("terminate called without an active exception")."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
