"""A training step against other trainers' at the same models, data and optimizer: time, memory, loss at the first step.

    python benchmarks/peers.py                      # writes benchmarks/results/peers.json and peers.md
    python benchmarks/peers.py --size gpu --vocab 151936 --length 1024 --batch 8 --rounds 2        # on a GPU
    python benchmarks/peers.py --methods spanwise_ce spanwise_sampled --rounds 10                  # pairs for one ratio

The methods are in peer_methods.py. A peer is what the interpreter that runs this can import: `pip install trl` into it,
or see "missing" in its row; one that fails is "broken", with its last words. Each method runs in a process of its own,
so that its peak of memory is its own, in every round, the order turned round in every other one. Ratios are of the
methods' medians in the same round, and their median over the rounds; those of processor time, of all threads, are what
other programs change least. The losses of the first step must agree, to
TOLERANCE; draws, which estimate the divergence, are shown and not asked. Exit code 1: they do not, or a method broke.

--supervised is the share of each record that is trained: ours makes logits of those tokens alone. Time is of a step
from a batch at hand to its loss as a number; reading data is not in it. Memory is the most in any step:
resident on a CPU, with the libraries, whose part stands beside it; allocated on a GPU. `teacher` is its forward, which
in ours and trl_distillation ends before the logits: they are made in the loss, under `forward`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.peer_job import OPTIMIZER, PARTS, Job  # noqa: E402
from benchmarks.peer_methods import METHODS, NUM_DRAWS, SIZES  # noqa: E402
from kd.atomic_files import publish  # noqa: E402
from kd.paths import path_option  # noqa: E402

NEEDS = {"trl_gkd": "trl", "trl_distillation": "trl", "distillkit": "distillkit"}  # packages, by import name
NAMES = (*METHODS, "distillkit")
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}  # of the losses, relative: fp32 sums over the vocabulary; bf16 logits
AGREE = (("spanwise_live", "trl_gkd", "trl_distillation", "eager"), ("spanwise_ce", "ce"))
LIVE = ("spanwise_live", "spanwise_ce + teacher_forward")
RATIOS = (
    *(("spanwise_live", peer) for peer in ("trl_gkd", "trl_distillation", "eager")),
    ("spanwise_ce", "ce"),
    ("spanwise_sampled", "spanwise_ce"),
    LIVE,
)
OF = {"rounds_ms": "time", "rounds_processor_ms": "processor time", "rounds_peak_bytes": "memory"}
_SETTINGS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(method: str, job: Job, seconds: float) -> dict:
    """Run a method in a process of its own; return what it measured, or why it did not."""
    package = NEEDS.get(method)
    if package is not None and importlib.util.find_spec(package) is None:
        return {"status": "missing", "reason": f"{package} is not installed"}
    if method not in METHODS and method != "prepare":
        return {"status": "missing", "reason": f"{package} trains by a command of its own, which has no step to time"}
    command = [sys.executable, str(ROOT / "benchmarks/peer_methods.py"), method, job.folder]
    env = os.environ | _SETTINGS | {"OMP_NUM_THREADS": str(job.threads)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"status": "broken", "reason": f"it took more than {seconds:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"status": "broken", "reason": f"exit code {done.returncode}: {last[-300:]}"}
    return {"status": "measured"} | json.loads((Path(job.folder) / f"{method}.json").read_text())


def summarize(method: str, job: Job, rounds: list[dict]) -> dict:
    """Make a method's row of its rounds."""
    row = {"vocab": job.vocab, "method": method}
    measured = [found for found in rounds if found["status"] == "measured"]
    failed = next((found for found in rounds if found["status"] != "measured"), None)
    if not measured:
        return row | (failed or {"status": "not run", "reason": "no time was left"})
    times = [ms for found in measured for ms in found["step_ms"]]
    median = statistics.median(times)
    row |= {"status": "measured"} if failed is None else failed
    return row | {
        "step_ms": {"median": round(median, 2), "min": round(min(times), 2), "max": round(max(times), 2)},
        "tokens_s": round(job.batch * job.length / median * 1e3, 1),
        "peak_bytes": int(statistics.median(found["peak_bytes"] for found in measured)),
        "libraries_bytes": int(statistics.median(found["libraries_bytes"] for found in measured)),
        "parts_ms": {
            part: round(statistics.median(found["parts_ms"][part] for found in measured), 2) for part in PARTS
        },
        "first_loss": measured[0]["losses"][0],
        "rounds_ms": [
            round(statistics.median(found["step_ms"]), 2) if found["status"] == "measured" else None for found in rounds
        ],
        "rounds_processor_ms": [
            statistics.median(found["processor_ms"]) if found["status"] == "measured" else None for found in rounds
        ],
        "rounds_peak_bytes": [found.get("peak_bytes") for found in rounds],
    }


def ratios(rows: list[dict]) -> list[dict]:
    """Compare pairs of methods round by round, in time and memory; the second may be a sum of two, in time alone."""
    by_name = {row["method"]: row for row in rows if "step_ms" in row}
    found = []
    for ours, theirs in RATIOS:
        names = theirs.split(" + ")
        if any(name not in by_name for name in (ours, *names)):
            continue
        for key, of in OF.items():
            if len(names) > 1 and of == "memory":
                continue
            pairs = [
                top / sum(below)
                for top, *below in zip(by_name[ours][key], *(by_name[name][key] for name in names))
                if top is not None and None not in below
            ]
            if pairs:
                median, low, high = (round(value, 4) for value in (statistics.median(pairs), min(pairs), max(pairs)))
                found.append(
                    {"of": of, "ours": ours, "over": theirs, "median": median, "min": low, "max": high}
                    | {"pairs": len(pairs), "vocab": by_name[ours]["vocab"]}
                )
    return found


def agreement(rows: list[dict], tolerance: float) -> list[dict]:
    """Compare the first steps' losses of methods that compute the same."""
    found = []
    for names in AGREE:
        losses = {row["method"]: row["first_loss"] for row in rows if row["method"] in names and "first_loss" in row}
        if len(losses) > 1:
            apart = (max(losses.values()) - min(losses.values())) / abs(statistics.median(losses.values()))
            agrees = apart <= tolerance  # not so of NaN
            found.append({"losses": losses, "apart": apart, "tolerance": tolerance, "agrees": agrees})
    return found


def markdown(results: dict) -> str:
    """Write the rows, ratios and losses as tables."""
    shape, device = results["shape"], results["device"]
    lines = [
        f"{device['name']}, {shape['threads']} threads, {shape['dtype']}; size {shape['size']}, {shape['batch']} "
        f"records of {shape['length']} tokens, {shape['length'] - shape['prompt']} of them supervised; "
        f"{shape['rounds']} rounds of {shape['steps']} steps after {shape['warmup']}; load before "
        f"{device.get('load_before', '-')}.",
        "",
        "| vocabulary | method | step ms (min to max) | tokens/s | peak MB (libraries) | teacher, forward, backward, "
        "optimizer ms | loss at step 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        head = f"| {row['vocab']:,} | {row['method']} | "
        if "step_ms" not in row:
            lines.append(f"{head}{row['status']}: {row['reason'].replace('|', '/')} | | | | |")
            continue
        step, parts = row["step_ms"], ", ".join(f"{row['parts_ms'][part]:.1f}" for part in PARTS)
        loss = "" if row["method"] == "teacher_forward" else f"{row['first_loss']:.6f}"
        lines.append(
            f"{head}{step['median']:.1f} ({step['min']:.1f} to {step['max']:.1f}) | {row['tokens_s']:.0f} | "
            f"{row['peak_bytes'] / 1e6:.0f} ({row['libraries_bytes'] / 1e6:.0f}) | {parts} | {loss} |"
        )
    lines += ["", "| vocabulary | of | ratio | median (min to max) | pairs |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['vocab']:,} | {row['of']} | {row['ours']} / {'(' * (' ' in row['over'])}{row['over']}"
        f"{')' * (' ' in row['over'])} | {row['median']:.3f} ({row['min']:.3f} to {row['max']:.3f}) | {row['pairs']} |"
        for row in results["ratios"]
    ]
    lines += ["", "Losses at step 0, of methods that compute the same:", ""]
    for row in results["agreement"]:
        says = "agree" if row["agrees"] else "DO NOT AGREE"
        lines.append(
            f"- {', '.join(row['losses'])}: {row['apart']:.1e} apart, relative; they {says} to {row['tolerance']:.0e}"
        )
    return "\n".join(lines) + "\n"


def compare(job: Job, args: argparse.Namespace, results: dict, until: float) -> None:
    """Measure all methods at one vocabulary, and write the results after every round."""
    found: dict[str, list[dict]] = {name: [] for name in args.methods}
    kept = {key: list(results[key]) for key in ("rows", "ratios", "agreement")}
    prepared = run("prepare", job, max(1.0, until - time.monotonic()))
    if prepared["status"] == "broken":
        raise SystemExit(f"error: the models cannot be made: {prepared['reason']}")
    results["draws"][str(job.vocab)] = prepared
    for number in range(args.rounds):
        for name in args.methods[:: -1 if number % 2 else 1]:
            left = min(args.seconds, until - time.monotonic())
            if left <= 0:
                continue
            found[name].append(run(name, job, left))
            last = found[name][-1]
            said = f"{statistics.median(last['step_ms']):.1f} ms" if "step_ms" in last else last["reason"]
            print(f"vocabulary {job.vocab}, round {number + 1}: {name}: {last['status']}, {said}", flush=True)
        rows = [summarize(name, job, rounds) for name, rounds in found.items()]
        device = results["device"]["type"]
        results["rows"] = kept["rows"] + rows
        results["ratios"] = kept["ratios"] + ratios(rows)
        results["agreement"] = kept["agreement"] + agreement(rows, TOLERANCE[device])
        measure.write_json(args.out, results)
        publish(args.out.with_suffix(".md"), markdown(results).encode())


def main(arguments: list[str] | None = None) -> int:
    """Return 0 where nothing broke and all losses agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=measure.count, nargs="+", default=[49_152, 151_936])
    parser.add_argument("--size", choices=SIZES, default="small", help="of the models: small")
    parser.add_argument("--length", type=measure.count, default=256, help="tokens of a record: 256")
    parser.add_argument("--batch", type=measure.count, default=4, help="records of a step: 4")
    parser.add_argument("--supervised", type=float, default=0.5, help="share of a record, above 0, at most 1: 0.5")
    parser.add_argument("--warmup", type=measure.count, default=2, help="steps that are not timed: 2")
    parser.add_argument("--steps", type=measure.count, default=6, help="timed steps of a round: 6")
    parser.add_argument("--rounds", type=measure.count, default=3)
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=measure.count, default=len(os.sched_getaffinity(0)), help="all cores")
    parser.add_argument("--deepspeed", type=Path, help="JSON of our engine: ds_configs/zero3.json, zero3_cpu.json here")
    parser.add_argument("--seconds", type=float, default=1800, help="longest time of a method in a round: 1800")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="longest time of all")
    parser.add_argument("--out", type=path_option, default=ROOT / "benchmarks/results/peers.json")
    args = parser.parse_args(arguments)
    if not 0 < args.supervised <= 1:
        parser.error("--supervised: above 0, at most 1")
    if args.length < 2 or min(args.vocab) < max(3, NUM_DRAWS):
        parser.error(f"--length is 2 or more, and --vocab {NUM_DRAWS} or more")
    measure.check_out(args.out, ".md")
    until = time.monotonic() + 60 * args.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = args.deepspeed or ROOT / "ds_configs" / ("zero3.json" if device.type == "cuda" else "zero3_cpu.json")
    results: dict[str, Any] = measure.facts(device)
    with tempfile.TemporaryDirectory() as top:
        jobs = [
            Job(
                folder=str(Path(top) / str(vocab)),
                size=args.size,
                vocab=vocab,
                length=args.length,
                batch=args.batch,
                prompt=max(1, args.length - max(1, round(args.supervised * args.length))),
                warmup=args.warmup,
                steps=args.steps,
                threads=args.threads,
                deepspeed=str(engine.resolve()),
            )
            for vocab in args.vocab
        ]
        shape = {key: value for key, value in jobs[0]._asdict().items() if key not in ("folder", "vocab", "deepspeed")}
        shape |= {"deepspeed": engine.name, "dtype": jobs[0].dtype, "rounds": args.rounds}
        results |= {"shape": shape, "optimizer": OPTIMIZER.model_dump(mode="json"), "draws": {}}
        results |= {"rows": [], "ratios": [], "agreement": []}
        for job in jobs:
            Path(job.folder).mkdir()
            (Path(job.folder) / "job.json").write_text(json.dumps(job._asdict()))
            compare(job, args, results, until)
    print(markdown(results))
    broken = any(row["status"] == "broken" for row in results["rows"])
    return int(broken or not all(row["agrees"] for row in results["agreement"]))


if __name__ == "__main__":
    sys.exit(main())
