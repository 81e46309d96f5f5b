"""The demo's quality figures: the distilled student, and the same student on cross-entropy alone, over several seeds.

    python benchmarks/demo_quality.py --seeds 1337 1338 1339          # writes benchmarks/results/demo_quality.json

Every variant is `launch/train.py --config configs/demo.yaml` with the overrides named in VARIANTS, so each figure can
be made again by hand. `cross_entropy` trains on the truth alone for as many steps; `cross_entropy_same_seconds` for as
many steps as fit into the distilled run's training seconds; `scratch` variants start from random weights, with copying
practice first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import check_out, count, write_json  # noqa: E402
from kd.evaluation.metrics import METRICS  # noqa: E402
from kd.outputs import read_object  # noqa: E402
from kd.paths import path_option  # noqa: E402

TRUTH_ALONE = ["loss.weights.kd=0", "loss.weights.truth=1", "loss.w_tool=0", "loss.w_args=0", "loss.w_integr=0"]
SCRATCH = [
    "student={init: scratch, architecture: llama, hidden_size: 192, intermediate_size: 512, num_hidden_layers: 4, "
    "num_attention_heads: 3, num_key_value_heads: 1, head_dim: 64, tie_word_embeddings: true, "
    "attention_implementation: eager}",
    "data.stages=[{name: echo, mix: {echo: 1}, max_length: 768, until: {loss_below: 0.1, max_steps: 1000}}, "
    "{name: whole, mix: {single: 0.4, parallel: 0.18, multi: 0.08, near: 0.2, fits: 0.04, chat: 0.04, echo: 0.06}, "
    "max_length: 768}]",
]
VARIANTS = {  # name -> overrides; same_seconds variants get their step count from the runs before them
    "distilled": [],
    "cross_entropy": TRUTH_ALONE,
    "cross_entropy_same_seconds": TRUTH_ALONE,
    "distilled_scratch": SCRATCH,
    "cross_entropy_scratch": [*SCRATCH, *TRUTH_ALONE],
}


def launcher(ranks: int) -> list[str]:
    """DeepSpeed's, on a port that no other job has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_accelerators",
        str(ranks),
        "--master_port",
        str(port),
    ]


def run(name: str, seed: int, overrides: list[str], ranks: int, output: Path) -> dict:
    """One training and evaluation; returns run.json with the student's metrics by split."""
    folder = f"{name}_{seed}"
    overrides = [
        f"run.name={folder}",
        f"run.output_dir={output}",
        f"run.seed={seed}",
        "evaluation.baselines=false",
        *overrides,
    ]
    command = [*launcher(ranks), "launch/train.py", "--config", "configs/demo.yaml"]
    command += [part for override in overrides for part in ("--set", override)]
    log = output / f"{folder}.log"
    output.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:  # of an earlier call, or another's file: nothing is lost
        code = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{folder} failed with exit code {code}; see {log}")
    facts = json.loads((output / folder / "run.json").read_text())
    metrics = json.loads((output / folder / "evaluation.json").read_text())["student"]
    return {
        "variant": name,
        "seed": seed,
        "steps": facts["steps"],
        "training_seconds": facts["training_seconds"],
        "processor_seconds": facts["processor_seconds"],
        "tokens": facts["tokens"],
        "student_parameters": facts["student_parameters"],
        "teacher_parameters": facts["teacher_parameters"],
        "metrics": {
            split: {k: values[k] for k in (*METRICS.names(), "num_records")} for split, values in metrics.items()
        },
    }


def table(rows: list[dict]) -> str:
    """Mean and range over seeds, in percent, one line a variant and split."""
    lines = [
        "| variant | split | steps | training s | names | exact arguments | JSON valid | over-calling | integration "
        "| seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        for split in mine[0]["metrics"]:
            cells = []
            for metric in ("tool_name_accuracy", "exact_arguments", "json_validity", "over_calling", "integration"):
                values = [100 * row["metrics"][split][metric] for row in mine]
                cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
            steps = statistics.median(row["steps"] for row in mine)
            seconds = statistics.median(row["training_seconds"] for row in mine)
            lines.append(
                f"| {variant} | {split} | {steps:.0f} | {seconds:.0f} | " + " | ".join(cells) + f" | {len(mine)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1338, 1339])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS)[:3])
    parser.add_argument("--ranks", type=count, default=2)
    parser.add_argument("--output", type=path_option, default=ROOT / "runs" / "quality", help="run folders and logs")
    parser.add_argument("--out", type=path_option, default=ROOT / "benchmarks" / "results" / "demo_quality.json")
    args = parser.parse_args()
    import torch

    check_out(args.out)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    # Rows made before by the same commit are kept, so an interrupted call goes on where it was.
    old = read_object(args.out)
    rows = old.get("rows", []) if old.get("commit") == commit else []
    for seed in args.seeds:
        for name in args.variants:
            done = {(row["variant"], row["seed"]): row for row in rows}
            if (name, seed) in done:
                continue
            overrides = list(VARIANTS[name])
            if name == "cross_entropy_same_seconds":
                ours, plain = done[("distilled", seed)], done[("cross_entropy", seed)]
                overrides.append(
                    f"training.steps={round(plain['steps'] * ours['processor_seconds'] / plain['processor_seconds'])}"
                )
            rows.append(run(name, seed, overrides, args.ranks, args.output))
            facts = {
                "commit": commit,
                "device": platform.processor() or platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
                "torch": torch.__version__,
                "ranks": args.ranks,
                "rows": rows,
            }
            write_json(args.out, facts)
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
