"""Ranks as forks of this process, which has imported all that they need: a job of two starts in a second."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from helpers.jobs import free_port


def run_ranks(world_size: int, work: Callable[[], None], log: Path, timeout: float = 240) -> None:
    """Run `work` on `world_size` forked ranks in a process group of gloo; what they print goes to `log`.

    Raises:
        AssertionError: a rank failed, or hangs; with what was printed.
    """
    port, ranks = free_port(), []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            _be_rank((rank, world_size, port), work, log, timeout)
        ranks.append(pid)
    deadline, failed = time.monotonic() + timeout, ""
    while ranks and not failed:
        for pid in list(ranks):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ranks.remove(pid)
                failed = failed or (f"a rank ended with {status}" if status else "")
        if time.monotonic() > deadline:
            failed = "a rank hangs"
        time.sleep(0.02)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not failed, f"{failed}\n{log.read_text()[-6000:]}"


def _forget_groups() -> None:
    """Forget DeepSpeed's groups: of a test before, in the process that was forked, they are gone."""
    import deepspeed.comm.comm
    from deepspeed.utils import groups

    deepspeed.comm.comm.cdb = None
    importlib.reload(groups)


def _be_rank(place: tuple[int, int, int], work: Callable[[], None], log: Path, timeout: float) -> None:
    code, (rank, world_size, port) = 1, place
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        faulthandler.dump_traceback_later(0.9 * timeout, file=2)  # where it hangs
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from kd.distributed.start import start_distributed

        _forget_groups()
        start_distributed()
        import torch

        torch.set_num_threads(1)
        work()
        torch.distributed.barrier()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)
