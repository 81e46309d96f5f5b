"""One rank of a job that fails in the way its argument names; it needs no DeepSpeed, and so starts fast."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from kd.distributed.board import Board
from kd.distributed.exit import hold_board, leave
from kd.distributed.place import read_place
from kd.errors import SpanwiseError
from launch.shared import run_guarded


def work(kind: str) -> int:
    rank = os.environ["RANK"]
    if kind == "early":  # a configuration, before ranks meet
        raise SpanwiseError("wrong on every rank: mend it")
    if kind == "early alone" and rank == "1":
        raise SpanwiseError("wrong here: mend it")
    place = read_place()
    assert place is not None
    board = Board(place)
    hold_board(board)
    board.join(print)
    board.watch()
    if kind == "late":
        raise SpanwiseError("wrong on every rank: mend it")
    if kind == "late alone" and rank == "1":
        raise SpanwiseError("wrong here: mend it")
    if kind == "fault":
        raise KeyError("no such thing")
    if kind == "follows" and rank == "1":
        time.sleep(1)
        raise RuntimeError("[/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:2277")
    if kind == "follows":
        raise SpanwiseError("wrong on rank 0: mend it")
    if kind == "first":  # a job at work, while another one starts on its port
        Path(sys.argv[2]).with_suffix(f".{rank}").touch()
        while not Path(sys.argv[2]).exists():
            time.sleep(0.1)
        return 0
    time.sleep(600)  # in a collective that waits for the other rank
    return 0


if __name__ == "__main__":
    leave(run_guarded(lambda: work(sys.argv[1])))
