"""Everything that waits for a GPU, part by part: timings, parity, tuning, counters, tests, a short ZeRO-3 run.

    python benchmarks/gpu_suite.py --out DIR                                  all parts, in order of worth, on a GPU
    python benchmarks/gpu_suite.py --out DIR --only timings --minutes 9       one or some of them
    python benchmarks/gpu_suite.py --out DIR --rehearse                       the same on a CPU, at tiny sizes

Parts (gpu_parts.py) take nine minutes each at most and run one after another, each in processes of its own; one that
fails, hangs or is killed costs its time and nothing else, and one whose package or program is missing is not run, and
says which. DIR gets two files: suite.json (device, versions, commit, what became of each part, a summary) and
results.tar.gz (the parts' .json, .xml and .log), both written again as parts start and end: what was measured is safe
when a later part is cut off. Parts work in `--work`, which also keeps Triton's compiled kernels from one part, and one
call, to the next.

It needs torch, triton and pytest; the part `train` needs what pyproject.toml lists. `make gpu-kit` collects the wheels
of what a bare machine lacks; `--wheels FOLDER` installs them into the work folder with no network, one by one, so that
a wheel of another Python costs itself alone. In a copy without git, SPANWISE_COMMIT names the commit.

A split launch may become the default of impl="auto" on an architecture (kernels/fused/launches.py PROVEN) when the part
`tests` passed there and its own part was faster than the row launch in `timings`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.gpu_parts import Part, parts
from benchmarks.measure import ROOT, check_out, facts, write_json
from benchmarks.targets import best_peer, verdicts
from kd.atomic_files import replacing
from kd.paths import path_option

_MARGIN_S = 15  # a part is told to stop this long before it is killed
_LEAST_S = 30  # a part is not begun with less


def run_part(part: Part, seconds: float, out: Path, env: dict[str, str]) -> dict:
    """Its exits, its time, its last lines. Whole process groups end with it: no child outlives its share."""
    start = time.monotonic()
    search = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    missing = [name for name in part.needs if not _installed(name, search)]
    missing += [name for name in part.tools if shutil.which(name, path=env.get("PATH")) is None]
    if missing:
        return {"part": part.name, "ended": f"not run: needs {', '.join(missing)}", "seconds": 0.0}
    minutes = f"{max(0.0, seconds - _MARGIN_S) / 60:.2f}"
    commands = [[argument.replace("{minutes}", minutes) for argument in command] for command in part.commands]
    logs = [out / f"{part.name}{'' if len(commands) == 1 else f'_{i}'}.log" for i in range(len(commands))]
    running, ends = [], []
    try:
        for command, log in zip(commands, logs):
            with log.open("w") as stream:
                running.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        env=env | part.env,
                    )
                )
        for process in running:
            try:
                code = process.wait(timeout=max(0.1, start + seconds - time.monotonic()))
                ends.append("passed" if code == 0 else f"exit {code}")
            except subprocess.TimeoutExpired:
                ends.append("out of time")
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    failures = [end for end in ends if end != "passed"]
    tails = [log.read_text(errors="replace").splitlines()[-15:] for log in logs]
    return {
        "part": part.name,
        "ended": ", ".join(dict.fromkeys(failures)) or "passed",
        "seconds": round(time.monotonic() - start, 1),
        "commands": commands,
        "env": part.env,
        "last_lines": tails,
    }


def _installed(name: str, search: list[str]) -> bool:
    return any(Path(path, name).exists() for path in search) or importlib.util.find_spec(name) is not None


def install_wheels(folder: Path, target: Path) -> dict[str, str]:
    """Install each wheel of a folder by itself, as pip refuses all for one of another Python; say what became of it."""
    ends = {}
    for wheel in sorted(folder.glob("*.whl")):
        options = ["-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(target)]
        command = [sys.executable, "-m", "pip", "install", *options, str(wheel)]
        done = subprocess.run(command, capture_output=True, text=True)
        ends[wheel.name] = "installed" if done.returncode == 0 else done.stderr.strip()[-300:]
    return ends


def pack(work: Path, target: Path) -> None:
    """Write the results in `work`, but for packages, compiled kernels and a run's weights, as one archive."""
    kept = [path for path in sorted(work.iterdir()) if path.suffix in (".json", ".xml", ".log", ".png")]
    kept += sorted(work.glob("train/*.json*"))
    with replacing(target) as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path in kept:
            archive.add(path, arcname=str(path.relative_to(work)))


def summary(out: Path) -> list[str]:
    """List what was wrong; of each workload ours and the fastest other way; what was asked for, met or short; the best
    layouts.
    """
    lines = []
    for name in ("timings", "parity", "widths", "streamed", "cooperative"):
        path = out / f"{name}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        lines += [
            f"{name}: {row['method']} {row['family']} {row['num_rows']}x{row['vocab']}: {row['skipped']}"
            for row in rows
            if row["method"].startswith("ours") and "skipped" in row
        ]
        timed = [row for row in rows if "median_ms" in row]
        for row in (row for row in timed if row["method"].startswith("ours")):
            best = best_peer(row, timed)
            share = "".join(
                f" {row[key]:.0f} {unit}"
                for key, unit in (("percent_of_copy", "% of copy"), ("percent_of_bare_gemms", "% of GEMMs"))
                if key in row
            )
            against = (
                ""
                if best is None
                else f", {best['median_ms'] / row['median_ms']:.2f} times the speed of {best['method']}"
            )
            lines.append(
                f"{name}: {row['method']} {row['family']} {row['terms']} {row['divergence']} "
                f"{row['num_rows']}x{row['vocab']}: "
                f"{row['median_ms']:.3f} ms{share}{against}"
            )
        lines += verdicts(timed) if name == "timings" and rows else []
    if (out / "counters.json").exists():
        found = json.loads((out / "counters.json").read_text())["rows"]
        lines += ["counters: " + ", ".join(f"{key} {value}" for key, value in row.items()) for row in found]
    if (out / "tune.json").exists():
        lines += [f"tune: {layout}" for layout in json.loads((out / "tune.json").read_text()).get("best", [])]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """0 where all parts passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_option, required=True)
    parser.add_argument("--work", type=path_option, default=ROOT / "runs" / "gpu_suite", help="runs/gpu_suite")
    parser.add_argument("--minutes", type=float, default=27, help="of all parts together: 27")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU even where there is a GPU")
    parser.add_argument("--only", nargs="+", help="names of the parts to run")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    chosen = parser.parse_args(arguments)
    if not chosen.rehearse and not torch.cuda.is_available():
        sys.exit("no GPU here: --rehearse runs the parts at tiny sizes on the CPU")
    out, work = chosen.out.resolve(), chosen.work.resolve()
    todo = [part for part in parts(work, chosen.rehearse) if not chosen.only or part.name in chosen.only]
    if not todo or len(todo) < len(chosen.only or ()):
        sys.exit(f"--only {chosen.only}: parts are {[part.name for part in parts(work, chosen.rehearse)]}")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    check_out(out / "suite.json")
    if "suite.json" not in found and found - {".suite.json.lock"}:  # which a killed start leaves
        sys.exit(f"error: --out: {out} is no folder of this suite, and not empty: name another")
    until = time.monotonic() + 60 * chosen.minutes
    work.mkdir(parents=True, exist_ok=True)
    suite = facts(torch.device("cpu" if chosen.rehearse else "cuda"))
    suite |= {"rehearsal": chosen.rehearse, "minutes": chosen.minutes, "parts": []}
    env = environment(work, chosen.rehearse, bool(chosen.wheels))
    if chosen.wheels:
        suite["wheels"] = install_wheels(chosen.wheels, work / "packages")
    for part in todo:
        left = until - time.monotonic()
        if left < _LEAST_S:
            suite["parts"].append({"part": part.name, "ended": "not run: no time left", "seconds": 0.0})
            continue
        suite["parts"].append({"part": part.name, "ended": "started"})
        write_json(out / "suite.json", suite)
        suite["parts"][-1] = result = run_part(part, min(left, 60 * part.minutes), work, env)
        suite["summary"] = summary(work)
        write_json(out / "suite.json", suite)
        pack(work, out / "results.tar.gz")
        print(f"{part.name:14} {result['ended']:12} {result['seconds']:7.1f} s", flush=True)
    write_json(out / "suite.json", suite)
    print(*suite.get("summary", ()), sep="\n")
    return 0 if all(result["ended"] == "passed" for result in suite["parts"]) else 1


def environment(work: Path, rehearse: bool, wheels: bool) -> dict[str, str]:
    """Return the parts' environment: this checkout first, then the wheels; Triton's cache in the work folder."""
    # The interpreter must be off on a GPU; in a rehearsal no process may find one.
    unset = ("TRITON_INTERPRET", "SPANWISE_DENSE_LAUNCH", "SPANWISE_DENSE_FORM")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if rehearse else {}
    search = [str(ROOT), *([str(work / "packages")] if wheels else []), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(path for path in search if path)
    # A log of what is killed is whole, and what a part compiled the next one finds.
    return env | {"PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(work / "triton_cache")}


if __name__ == "__main__":
    sys.exit(main())
