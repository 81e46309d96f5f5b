"""Everything that waits for a GPU, in one command: tests, parity, timings, a short ZeRO-3 run, tuning.

    python benchmarks/gpu_suite.py --out DIR --minutes 25              on a GPU
    python benchmarks/gpu_suite.py --out DIR --minutes 4 --rehearse    the same parts on a CPU, at tiny sizes

Where a command may run for ten minutes only, three calls with `--minutes 9`:
    --only tests parity          --only loss_kernels          --only streamed cooperative train tune

Parts run one after another, each in processes of its own with its own share of the time; a part that fails, hangs or is
killed costs its share and nothing else. DIR gets the .json, .xml and .log of each part, and suite.json (device,
versions, commit, what became of each part), written again as parts start and end. It needs torch, triton and pytest;
the part `train` needs what setup.py lists, and says what is missing. `--wheels FOLDER` first installs the wheels in a
folder into DIR, with no network. In a copy without git, SPANWISE_COMMIT names the commit.

A split launch may become the default of impl="auto" on an architecture (kernels/fused/launches.py PROVEN) when the part
`tests` passed there and its own part was faster than the row form in `loss_kernels`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measure import ROOT, check_out, facts, write_json
from benchmarks.targets import best_peer, verdicts
from kd.paths import path_option

TRAIN_NEEDS = (
    "transformers",
    "accelerate",
    "deepspeed",
    "safetensors",
    "pydantic",
    "yaml",
    "json_repair",
    "jsonschema",
    "tqdm",
    "psutil",
)
TEST_PROCESSES = 6  # the tests' time is the compiler's: processes share the GPU and Triton's cache
_MARGIN_S = 15  # a part is told to stop this long before it is killed


class Part(NamedTuple):
    name: str
    share: float  # of the time; what a part leaves over goes to those after it
    commands: list[list[str]]  # run at the same time; {minutes} in an argument becomes what the part has
    env: dict[str, str]
    needs: tuple[str, ...] = ()  # packages


def parts(out: Path, rehearse: bool) -> list[Part]:
    """In order of worth."""
    python = sys.executable

    def loss_kernels(name: str, *arguments: str) -> list[list[str]]:
        sizes = ["--vocab", "500", "--rows", "4", "--seconds", "0.02", "--static"] if rehearse else []
        return [
            [
                python,
                "benchmarks/loss_kernels.py",
                "--out",
                str(out / f"{name}.json"),
                "--minutes",
                "{minutes}",
                *arguments,
                *sizes,
            ]
        ]

    # Names before results (pytest.ini has a -q), and where a test that hangs hangs.
    pytest = [
        python,
        "-m",
        "pytest",
        "-vv",
        "-rs",
        "-o",
        "faulthandler_timeout=100",
        "-p",
        "no:cacheprovider",
        "tests/gpu",
        "--continue-on-collection-errors",
    ]  # one file that lacks a package must not cost the others
    # In a rehearsal those are imported and skipped, and something that needs no GPU runs beside them.
    pytest += ["tests/kernels/test_dense_launches.py::test_layouts"] if rehearse else []
    processes = 2 if rehearse else TEST_PROCESSES
    tests = [pytest + [f"--junitxml={out}/tests_{i}.xml", f"--shard={i}/{processes}"] for i in range(processes)]
    target = ("--vocab", "151936", "--rows", "8192", "--families", "dense", "--methods", "ours", "--gate-rows", "2048")
    steps = ["training.steps=2", "optimizer.warmup_steps=1", "evaluation.num_records=2", "evaluation.max_new_tokens=8"]
    if not rehearse:
        steps = ["training.steps=30", "optimizer.warmup_steps=5", "training.log_every=5", "evaluation.num_records=8"]
    train = [python, "launch/train.py", "--config", "configs/demo.yaml", "--fresh"]
    for setting in (*steps, f"run.output_dir={out / 'train'}"):
        train += ["--set", setting]
    tune = [python, "benchmarks/tune.py", "--out", str(out / "tune.json"), "--minutes", "{minutes}"]
    return [
        Part("tests", 0.2, tests, {}),
        Part(
            "parity",
            0.1,
            loss_kernels("parity", "--parity-only", "--methods", "ours", "--rows", "8192", "--gate-rows", "8192"),
            {},
        ),
        Part("loss_kernels", 0.35, loss_kernels("loss_kernels"), {}),
        Part("streamed", 0.07, loss_kernels("streamed", *target), {"SPANWISE_DENSE_LAUNCH": "streamed"}),
        Part("cooperative", 0.07, loss_kernels("cooperative", *target), {"SPANWISE_DENSE_LAUNCH": "cooperative"}),
        Part("train", 0.1, [train], {}, TRAIN_NEEDS),
        Part("tune", 0.11, [tune + ["--rehearse"] * rehearse], {"TRITON_INTERPRET": "1"} if rehearse else {}),
    ]


def run_part(part: Part, seconds: float, out: Path, env: dict[str, str]) -> dict:
    """Its exits, its time, its last lines. Whole process groups end with it: no child outlives its share."""
    start = time.monotonic()
    search = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    missing = [name for name in part.needs if not _installed(name, search)]
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


def install_wheels(folder: Path, target: Path) -> str:
    wheels = [str(wheel) for wheel in sorted(folder.glob("*.whl"))]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(target),
        *wheels,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"{len(wheels)} wheels, exit {done.returncode} {done.stderr[-500:]}"


def summary(out: Path) -> list[str]:
    """List what was wrong; of each workload ours and the fastest other way; what was asked for, met or short; the best
    layouts.
    """
    lines = []
    for name in ("parity", "loss_kernels", "streamed", "cooperative"):
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
        lines += verdicts(timed) if name == "loss_kernels" and rows else []
    if (out / "tune.json").exists():
        lines += [f"tune: {layout}" for layout in json.loads((out / "tune.json").read_text()).get("best", [])]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """0 where all parts passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_option, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU even where there is a GPU")
    parser.add_argument("--only", nargs="+", help="names of the parts to run")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install into DIR first")
    chosen = parser.parse_args(arguments)
    if not chosen.rehearse and not torch.cuda.is_available():
        sys.exit("no GPU here: --rehearse runs the parts at tiny sizes on the CPU")
    out = chosen.out.resolve()
    todo = [part for part in parts(out, chosen.rehearse) if not chosen.only or part.name in chosen.only]
    if not todo or len(todo) < len(chosen.only or ()):
        sys.exit(f"--only {chosen.only}: parts are {[part.name for part in parts(out, chosen.rehearse)]}")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    check_out(out / "suite.json")
    if "suite.json" not in found and found - {".suite.json.lock"}:  # which a killed start leaves
        sys.exit(f"error: --out: {out} is no folder of this suite, and not empty: name another")
    until = time.monotonic() + 60 * chosen.minutes
    suite = facts(torch.device("cpu" if chosen.rehearse else "cuda"))
    suite |= {"rehearsal": chosen.rehearse, "minutes": chosen.minutes, "parts": []}
    # The interpreter must be off on a GPU; in a rehearsal no process may find one.
    unset = ("TRITON_INTERPRET", "SPANWISE_DENSE_LAUNCH", "SPANWISE_DENSE_FORM")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if chosen.rehearse else {}
    env["PYTHONUNBUFFERED"] = "1"  # a log of what is killed is whole
    search = [str(ROOT), *([str(out / "packages")] if chosen.wheels else []), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(path for path in search if path)
    if chosen.wheels:
        suite["wheels"] = install_wheels(chosen.wheels, out / "packages")
    for index, part in enumerate(todo):
        share = part.share / sum(other.share for other in todo[index:])
        suite["parts"].append({"part": part.name, "ended": "started"})
        write_json(out / "suite.json", suite)
        suite["parts"][-1] = result = run_part(part, max(0.0, until - time.monotonic()) * share, out, env)
        write_json(out / "suite.json", suite)
        print(f"{part.name:14} {result['ended']:12} {result['seconds']:7.1f} s", flush=True)
    suite["summary"] = summary(out)
    write_json(out / "suite.json", suite)
    print(*suite["summary"], sep="\n")
    return 0 if all(result["ended"] == "passed" for result in suite["parts"]) else 1


if __name__ == "__main__":
    sys.exit(main())
