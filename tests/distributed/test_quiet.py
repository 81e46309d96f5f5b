"""What is left out of a log, and what never is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.jobs import REPOSITORY, plain_environment

CODE = """
import logging, sys, warnings
from kd.distributed.quiet import quieten
quieten(verbose=sys.argv[1] == "verbose")
for level in ("warning", "warning", "error"):
    getattr(logging.getLogger("DeepSpeed"), level)(f"{level} of a library")
logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU. If you have GPU ...")
warnings.warn_explicit("an old name", FutureWarning, "x.py", 1, module="torch.distributed.c10d_logger")
warnings.warn_explicit("a doubt", UserWarning, "x.py", 2, module="torch.optim")
warnings.warn_explicit("of the user's own module", FutureWarning, "x.py", 3, module="mine")
"""


def shown(rank: int, *, verbose: bool) -> list[str]:
    """What a process of this rank prints, without Python's decoration."""
    command = [sys.executable, "-c", CODE, "verbose" if verbose else "quiet"]
    done = subprocess.run(
        command, env=plain_environment(RANK=str(rank)), capture_output=True, text=True, cwd=REPOSITORY
    )
    return [line.split("Warning: ")[-1] for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("rank", "verbose", "expected"),
    [
        (0, False, ["warning of a library", "error of a library", "a doubt", "of the user's own module"]),
        (1, False, ["error of a library", "of the user's own module"]),
    ],
)
def test_a_rank_says_what_a_person_wants_and_every_error(rank, verbose, expected):
    assert shown(rank, verbose=verbose) == expected


def test_verbose_gives_all():
    lines = shown(1, verbose=True)
    assert len(lines) == 7 and "an old name" in lines and lines.count("warning of a library") == 2
