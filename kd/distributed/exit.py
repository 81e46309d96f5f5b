"""End of a process of a job: the error printed once, the exit without C++ destructors."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kd.config.places import add_places
from kd.distributed.place import StartError, read_place

if TYPE_CHECKING:
    from kd.distributed.board import Board

_LATE_SECONDS = 30.0  # for the other ranks to come up, where this one failed before the job began
_ALONE_SECONDS = 5.0
_PEER_LOST = re.compile("Connection (closed|reset) by peer|Broken pipe|ncclRemoteError|remote process exited")
_ENDED = (
    "another rank has ended without a word, killed or out of memory: look at its own output and at the system's log"
)
_held: list[Board] = []


def hold_board(board: Board) -> None:
    """Keep the job's board, for `tell`."""
    _held[:] = [board]


def tell(error: BaseException, config: str = "", overrides: Iterable[str] = ()) -> None:
    """Print the error to stderr once a job, and the command that provides what is missing where it names one
    (`remedy`).

    Keys that it names come with their places. An error that rank 0 has too is told by rank 0 alone; one of another rank
    alone names its rank. The other ranks are told to end. Where it returns, this process may end.

    Args:
        config: path of the run's YAML, as given.
        overrides: the values of --set, as given.
    """
    text = f"error: {add_places(str(error), config, overrides) if config else error}"
    remedy = getattr(error, "remedy", None)
    if remedy is not None:
        given = "".join(f" --set {shlex.quote(override)}" for override in overrides)
        text += f"\nrun this first:\n  deepspeed {remedy} --config {shlex.quote(config)}{given}"
    try:
        board, late = _find_board()
    except StartError:  # this is the error itself, or rank 0 has gone
        _tell_alone(text)
        return
    if board is None:
        _print(text)
        return
    from kd.distributed.board import END_SECONDS, PeerFailed

    try:
        if _PEER_LOST.search(text):
            error = PeerFailed() if board.others_failed() else error
            text = f"error: {_ENDED} ({text.splitlines()[-1][:200]})"
        if not isinstance(error, PeerFailed) and board.claim(text):
            _print(f"rank {board.place.rank}: {text}" if board.place.rank else text)
    except RuntimeError:  # rank 0, which hosts the board, has gone
        _tell_alone(f"error: {_ENDED}" if _PEER_LOST.search(text) else text)
    board.leave(_LATE_SECONDS if late else END_SECONDS)


def _tell_alone(text: str) -> None:
    """Print the error of a rank that cannot meet the others.

    Of ranks other than 0 it comes late: a launcher ends them when rank 0, which has the same error more often than not,
    has told it.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_ALONE_SECONDS)
        text = f"rank {rank}: {text}"
    _print(text)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _find_board() -> tuple[Board | None, bool]:
    """Return the job's board, None for one process; and True where this rank failed before it was made.

    Raises:
        StartError: the others cannot be met.
    """
    if _held:
        return (_held[0] if _held[0].place.world_size > 1 else None), False
    place = read_place()
    if place is None or place.world_size == 1:
        return None, False
    from kd.distributed.board import Board

    return Board(place, _LATE_SECONDS), True


def leave(code: int) -> None:
    """End the process with exit status `code`, after Python's own exit functions and without C++ destructors.

    A destructor that meets a running thread of the process group now and then aborts a rank that has finished
    ("terminate called without an active exception").
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a save that is asked for now would turn success into a kill
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, full, or read by nobody any more
            stream.flush()
    os._exit(code)
