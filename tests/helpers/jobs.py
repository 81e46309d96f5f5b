"""Starts the ranks of a job as plain processes, and never waits for ever.

`run_job` is what a launcher does: one process a rank, one address, and when a rank dies the others are stopped.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def plain_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what the test run added for triton, and with the repository importable."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", *ours)}
    paths = [str(REPOSITORY), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | extra


class Job:
    """The ranks of one job. `wait` returns every rank's output and raises where one failed."""

    def __init__(self, command: list[str], world_size: int, **environment: str):
        address = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
        }
        self._ranks = [
            subprocess.Popen(
                [sys.executable, *command],
                cwd=REPOSITORY,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=plain_environment(RANK=str(rank), LOCAL_RANK=str(rank), **(address | environment)),
            )
            for rank in range(world_size)
        ]

    def wait(self, timeout: float = 300, expect: int = 0) -> list[str]:
        """The output of each rank. `expect`: the exit code all of them must have.

        A rank that is still running `timeout` seconds on, or a minute after another one ended, hangs: an
        AssertionError.
        """
        deadline, outputs = time.monotonic() + timeout, []
        try:
            for rank in self._ranks:
                outputs.append(rank.communicate(timeout=max(deadline - time.monotonic(), 1))[0])
                deadline = min(deadline, time.monotonic() + 60)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(
                "a rank hangs; output:\n" + "\n".join(r.communicate()[0] for r in self._ranks)
            ) from None
        finally:
            self.stop()
        codes = [rank.returncode for rank in self._ranks]
        assert codes == [expect] * len(codes), f"exit codes {codes}\n" + "\n----\n".join(o[-6000:] for o in outputs)
        return outputs

    def running(self) -> bool:
        """Whether no rank has ended."""
        return all(rank.poll() is None for rank in self._ranks)

    def stop(self) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)


def wait_for_all(jobs: list[Job]) -> None:
    """Waits for jobs that run side by side; where one fails the others are stopped."""
    try:
        for job in jobs:
            job.wait()
    finally:
        for job in jobs:
            job.stop()
