"""Measurement for the benchmarks, and the facts without which a number means nothing. Knows no kernel."""

from __future__ import annotations

import argparse
import atexit
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from kd.atomic_files import describe_failure, publish  # noqa: E402
from kd.folders.lock import FolderLock  # noqa: E402
from kd.outputs import Output, OutputError, check_outputs, read_object  # noqa: E402

_PACKAGES = ("torch", "triton", "transformers", "accelerate", "deepspeed", "liger-kernel", "numpy", "trl")
_KNOWN_BY = (
    {"commit", "device"},
    {"what", "results"},
    {"package", "num_answers", "differences"},
    {"commit", "models"},
)  # keys of a file
_locks: dict[Path, FolderLock] = {}  # of this process
_HEAD_START_CYCLES = 10_000_000  # about 5 ms


class Timing(NamedTuple):
    median_ms: float
    low_ms: float  # 20th percentile
    high_ms: float  # 80th
    repeats: int


def facts(device: torch.device) -> dict:
    """Device, versions, commit, date: the head of every results file."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    found = {
        "type": device.type,
        "name": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    if device.type == "cuda":
        props = torch.cuda.get_device_properties(device)
        found = {
            "type": "cuda",
            "name": props.name,
            "capability": f"{props.major}.{props.minor}",
            "num_sms": props.multi_processor_count,
            "memory_bytes": props.total_memory,
            "l2_bytes": props.L2_cache_size,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        }
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"schema": 1, "date": now, "device": found, "versions": versions, "commit": commit()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), platform.machine())


def commit() -> str | None:
    """The checkout's commit, "+" behind it where files differ from it. A copy without git has what SPANWISE_COMMIT
    says.
    """
    try:
        name = _git("rev-parse", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SPANWISE_COMMIT")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def time_it(call: Callable[[], object], device: torch.device, *, prepare=None, seconds=1.0, most=100) -> Timing:
    """Median time of a call, device time on a GPU; `prepare` runs before each, outside the measured part.

    Calls warm up first. Before each measured call a GPU's L2 is overwritten (a real step comes to it cold) and the
    device is kept busy for some milliseconds: the host is then ahead, as in training, and its own time shows only where
    a way waits for the device.
    """
    prepare = prepare or (lambda: None)
    on_gpu = device.type == "cuda"
    for _ in range(3 if on_gpu else 1):
        prepare()
        call()
    once = _gpu_timer(device) if on_gpu else _host_time
    times, until = [], time.perf_counter() + seconds
    while len(times) < most and (len(times) < (5 if on_gpu else 3) or time.perf_counter() < until):
        prepare()
        times.append(once(call))
    times.sort()
    low, high = (times[min(len(times) - 1, int(share * len(times)))] for share in (0.2, 0.8))
    return Timing(statistics.median(times), low, high, len(times))


def _host_time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _gpu_timer(device: torch.device) -> Callable[[Callable[[], object]], float]:
    flush = torch.empty(torch.cuda.get_device_properties(device).L2_cache_size * 4, dtype=torch.uint8, device=device)

    def once(call: Callable[[], object]) -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_HEAD_START_CYCLES)
        flush.zero_()
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop)

    return once


def copy_bandwidth(device: torch.device, num_bytes: int = 2 << 30) -> float:
    """Bytes a second, read plus written, of a large device-to-device copy."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    timing = time_it(lambda: target.copy_(source), device, seconds=0.5)
    return 2 * num_bytes / (timing.median_ms * 1e-3)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most device memory that a call holds beyond what was held before it."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def restart_peak() -> None:
    """Begin the peak of this process's resident memory again at what it holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(which: str) -> int:
    """Read this process's resident memory: VmRSS now, VmHWM at its peak.

    getrusage would not do: a child's peak begins at what its parent held.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) * 1024


def time_by_kernel(call: Callable[[], object], device: torch.device, most: int = 8) -> list[dict]:
    """List what takes a call's time, the longest first: name, launches, ms. Kernels of a GPU, operators of a CPU."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    call()
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, key))[:most]
    return [
        {"name": e.key[:80], "launches": e.count, "ms": round(getattr(e, key) * 1e-3, 4)}
        for e in events
        if getattr(e, key)
    ]


def count(text: str) -> int:
    """Read an option that is a number of something, 1 or more; the `type` of argparse."""
    if not text.isdecimal() or len(text) > 9 or not int(text):
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: 1 or more, of nine digits at most")
    return int(text)


def check_out(path: Path, *beside: str, alone: bool = True) -> None:
    """End the program where results cannot be written to `path`, a file is there that no benchmark wrote, or another
    program is at work on it.

    Args:
        beside: suffixes of files that are written with it, which are known by it.
        alone: lock it until the program ends, as one that adds rows to those that it read would lose another's.
    """
    places = [Output("--out", path, "a benchmark's results", is_results)]
    for suffix in beside:
        places.append(
            Output("--out", path.with_suffix(suffix), "a benchmark's", lambda _: path.is_file() and is_results(path))
        )
    try:
        check_outputs(places)
    except OutputError as error:
        raise SystemExit(f"error: {error}") from None
    place = path.absolute()
    if not alone or place in _locks or path.is_char_device():
        return
    _locks[place] = FolderLock(place.parent, f".{place.name}.lock")
    holder = _locks[place].take()
    if holder is not None:
        raise SystemExit(f"error: --out: {path} is being written by {holder}: wait for it, or name another file")
    atexit.register(_locks[place].release)


def is_results(path: Path) -> bool:
    """Tell whether a file was written by a benchmark."""
    found = read_object(path)
    rows = found.get("rows")
    of_proof = isinstance(rows, list) and rows and all(isinstance(row, dict) and "code" in row for row in rows)
    return bool(of_proof) or any(keys <= found.keys() for keys in _KNOWN_BY)


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all: a run that is cut off, or a disk that is full, leaves the last complete file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise SystemExit(f"error: {describe_failure(error, path)}") from None
