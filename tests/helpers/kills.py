"""Kill of a forked process before its nth file operation."""

from __future__ import annotations

import os
import sys
import traceback

FILE_OPERATIONS = {
    "open",
    "write",
    "flush",
    "__exit__",
    "rename",
    "close",
    "unlink",
    "mkdir",
}  # what changes a folder, as C calls


def killed_at(step, work):
    """Run `work` in a forked process that dies, with no clean-up, before its nth file operation; whether it got so
    far.
    """
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    count = 0

    def counted(frame, event, function):
        nonlocal count
        count += event == "c_call" and function.__name__ in FILE_OPERATIONS
        if count == step:
            os._exit(9)

    try:
        sys.setprofile(counted)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
