"""Start of a process of a job: device, CPU threads, process group."""

from __future__ import annotations

import os
import socket
import sys

import deepspeed
import torch

from kd.distributed.board import Board
from kd.distributed.exit import hold_board
from kd.distributed.place import Place, read_place


def use_no_compiler_on_cpu() -> None:
    """Keep DeepSpeed on a CPU from building its shared-memory op at start-up; gloo serves.

    The build takes half a minute, a compiler and 1.5 GB.
    """
    if not torch.cuda.is_available():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def start_distributed() -> tuple[int, int]:
    """Join the launcher's process group, or make one of a single process; return (rank, world size).

    On a CPU the cores are shared out between the ranks of this machine, and the matrix library keeps compiled code for
    256 shapes instead of 1,024 (a gigabyte more over a run, as the number of rows is new in every batch).

    Raises:
        StartError: the launcher's variables are wrong, its port is taken, or a rank does not come.
    """
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    use_no_compiler_on_cpu()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    place = read_place() or _alone()
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank)
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_world_size))
    board = Board(place)
    hold_board(board)
    board.join(lambda text: print(text, file=sys.stderr, flush=True))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=board.store, rank=place.rank, world_size=place.world_size)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)  # takes the group that is there
    if place.world_size > 1:
        board.watch()
    return place.rank, place.world_size


def _alone() -> Place:
    """Set the launcher's variables for one process, which DeepSpeed reads too."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return Place(0, 1, 0, 1, "127.0.0.1", port)
