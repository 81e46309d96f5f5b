"""Start of a process of a job: device, CPU threads, process group."""

from __future__ import annotations

import os

import deepspeed
import torch


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
    """
    use_no_compiler_on_cpu()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ |= alone | {"MASTER_PORT": str(_free_port())}
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
