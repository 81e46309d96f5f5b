"""Sweep of the dense kernel's layouts on this GPU, for the tables of kernels/fused/launches.py.

    python benchmarks/tune.py --out tune.json --minutes 5

For each launch: warps, groups of 16 bytes a thread, programs an SM (which sets the registers), part size. Every layout
first reproduces the gradient of the reference; one that does not, or does not launch, is reported with the reason and
no time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measure import check_out, copy_bandwidth, count, facts, time_it, write_json
from benchmarks.methods import Workload, make_data, no_fallback, settings, useful_bytes
from kd.paths import path_option
from kernels import distill_loss
from kernels.checks import resolve_options
from kernels.contract import Settings
from kernels.fused import dense, launches
from kernels.fused.language import INTERPRETED

WARPS, GROUPS, PER_SM = (4, 8, 16, 32), (1, 2, 4), (1, 2, 3, 4, 6, 8)
PART_BYTES = (8192, 16384, 32768, 65536)
_CHECK_ROWS = 24


def layouts() -> Iterator[tuple[str, tuple[int, int, int], int]]:
    """(launch, shape, bytes a part), the tables' own first, then launch by launch; 8 to 64 warps an SM only."""
    yield "row", launches.ROW_SHAPES[-1], 0
    yield "streamed", launches.STREAMED_SHAPE, launches.STREAMED_PART_BYTES
    yield "cooperative", launches.COOPERATIVE_SHAPE, 0
    shapes = [shape for shape in itertools.product(WARPS, GROUPS, PER_SM) if 8 <= shape[0] * shape[2] <= 64]
    for launch, part in (("row", 0), ("cooperative", 0), *(("streamed", part) for part in PART_BYTES)):
        for shape in shapes:
            yield launch, shape, part


def use(launch: str, shape: tuple[int, int, int], part_bytes: int) -> None:
    """Make the tables say this, whatever the rows' size."""
    launches.ROW_SHAPES = launches.ROOMY_ROW_SHAPES = (shape,)
    if launch == "streamed":
        launches.STREAMED_SHAPE, launches.STREAMED_PART_BYTES = shape, part_bytes
    if launch == "cooperative":
        launches.COOPERATIVE_SHAPE = shape


def call(data, launch: str, grad: torch.Tensor):
    student = data.leaves[0].detach()
    options = resolve_options(student.device, (student.shape[1],) * 2, Settings(**settings(data.work)))
    return dense.dense_rows(student, data.teacher, data.labels, data.weights, options, grad, launch=launch)


def check(work: Workload, device: torch.device, launch: str) -> None:
    data = make_data(work._replace(num_rows=min(work.num_rows, _CHECK_ROWS)), device)
    grad = torch.full_like(data.leaves[0], float("nan")).detach()
    call(data, launch, grad)
    loss = distill_loss(*data.leaves, data.teacher, data.labels, data.weights, **settings(work), impl="reference").loss
    loss.backward()
    expected = data.leaves[0].grad.float()
    error = float((grad.float() - expected).abs().max() / expected.abs().max())
    if not error < 0.01:
        raise AssertionError(f"gradient is off by {error:.3g} of its size")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_option, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--vocab", type=count, default=151936)
    parser.add_argument("--rows", type=count, default=4096)
    parser.add_argument("--rehearse", action="store_true", help="three layouts, tiny sizes, the interpreter")
    chosen = parser.parse_args(arguments)
    check_out(chosen.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not (chosen.rehearse and INTERPRETED):
        sys.exit("needs a GPU; to rehearse, set TRITON_INTERPRET=1 and give --rehearse")
    dtype, rows, vocab = ("float32", 3, 500) if chosen.rehearse else ("bfloat16", chosen.rows, chosen.vocab)
    work = Workload("dense", "kd+ce", "forward_kl", None, 2.0, rows, vocab, dtype)
    copy = copy_bandwidth(device) if device.type == "cuda" else None
    results = facts(device) | {"workload": work._asdict(), "copy_gb_s": copy and copy / 1e9, "layouts": []}
    data = make_data(work, device)
    grad = torch.empty_like(data.leaves[0]).detach()
    deadline = time.monotonic() + 60 * chosen.minutes
    for launch, shape, part_bytes in itertools.islice(layouts(), 3 if chosen.rehearse else None):
        if time.monotonic() > deadline:
            results["not_reached"] = True
            break
        row = {"launch": launch, "warps": shape[0], "groups": shape[1], "per_sm": shape[2], "part_bytes": part_bytes}
        try:
            use(launch, shape, part_bytes)
            no_fallback()
            check(work, device, launch)
            if device.type == "cuda":
                timing = time_it(lambda launch=launch: call(data, launch, grad), device, seconds=0.2)
                row |= timing._asdict()
                row["percent_of_copy"] = 100 * useful_bytes(work) / (timing.median_ms * 1e-3) / copy
            else:
                row["skipped"] = "rehearsal: no time is taken off a GPU"
        except Exception as error:  # a layout that cannot be compiled or launched is a result of the sweep, not its end
            row["skipped"] = f"{type(error).__name__}: {str(error)[:200]}"
        results["layouts"].append(row)
        write_json(chosen.out, results)
        print(row, flush=True)
    best = sorted((row for row in results["layouts"] if "median_ms" in row), key=lambda row: row["median_ms"])[:5]
    results["best"] = best
    write_json(chosen.out, results)
    print("best:", *best, sep="\n")


if __name__ == "__main__":
    main()
