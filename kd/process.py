"""How a process of a job ends, well or not."""

from __future__ import annotations

import atexit
import os
import sys


def tell(error: Exception) -> None:
    """Prints an error of ours, which says where and what to do, so that a traceback would bury it. Raises any other."""
    if type(error).__module__.split(".")[0] not in ("kd", "kernels"):
        raise error
    print(f"error: {error}", file=sys.stderr)


def leave(code: int) -> None:
    """Ends the process with what Python has registered done, and no C++ destructor: one that meets a running thread of the
    process group aborts, now and then, a rank that has finished ("terminate called without an active exception")."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
