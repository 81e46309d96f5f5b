"""Quality of a sparse teacher: gradient angles and held-out metrics against the live dense teacher.

    python benchmarks/teacher_targets.py                        # all; hours on two cores: captures, then a run of the
                                                                demo a row
    python benchmarks/teacher_targets.py --parts language       # V = 151,936, some minutes

Writes benchmarks/results/teacher_targets.json and, as tables, teacher_targets.md beside it, anew after each row; a row
that is there already is kept, so a call that was stopped resumes there. benchmarks/target_angles.py and
target_metrics.py describe the measurements.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch
from measure import ROOT, check_out, commit, count, facts, write_json
from target_angles import demo_angles, language_angles
from target_metrics import VARIANTS, folder_name, live_of, metrics_of

from kd.atomic_files import publish
from kd.outputs import read_object
from kd.paths import path_option

SHOWN = {
    "tool_name_accuracy": "names",
    "exact_arguments": "exact arguments",
    "json_validity": "JSON valid",
    "integration": "values carried",
}


def _tokens(row: dict) -> str:
    return f"{row['tokens_a_row']:.1f}" if row["tokens_a_row"] else "all"


def angle_table(rows: list[dict]) -> str:
    lines = [
        "| place | student | T | targets | tokens a row | degrees | length, of the dense one's | teacher's entropy "
        "| rows |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        lines.append(
            f"| {row['place']} | {row['checkpoint']} | {row['temperature']:g} | {row['targets']} | {_tokens(row)} | "
            f"{row['degrees']:.2f} | "
            f"{row['norm_ratio']:.3f} | {row['entropy']:.2f} | {row['rows']} |"
        )
    return "\n".join(lines)


def metric_table(rows: list[dict]) -> str:
    """Means over seeds in percent, with the range; then the mean difference from the live dense teacher at that
    temperature and seed, with its standard error."""
    lines = [
        "| teacher | tokens a row | split | " + " | ".join(SHOWN.values()) + " | training s | seeds |",
        "|" + "---|" * (5 + len(SHOWN)),
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = {row["seed"]: row for row in rows if row["variant"] == name}
        live = {row["seed"]: row for row in rows if row["variant"] == live_of(name) and row["seed"] in mine}
        first = next(iter(mine.values()))
        for split in first["metrics"]:
            cells = []
            for metric in SHOWN:
                values, theirs = (
                    {seed: 100 * row["metrics"][split][metric] for seed, row in found.items()} for found in (mine, live)
                )
                cell = (
                    f"{statistics.mean(values.values()):.1f} ({min(values.values()):.1f} to {max(values.values()):.1f}"
                )
                if theirs and VARIANTS[name].cache:
                    apart = [values[seed] - theirs[seed] for seed in theirs]
                    cell += f"; {statistics.mean(apart):+.1f}" + (
                        f" ± {statistics.stdev(apart) / len(apart) ** 0.5:.1f}" if len(apart) > 1 else ""
                    )
                cells.append(cell + ")")
            seconds = statistics.median(row["training_seconds"] for row in mine.values())
            lines.append(
                f"| {name} | {_tokens(first)} | {split} | " + " | ".join(cells) + f" | {seconds:.0f} | {len(mine)} |"
            )
    return "\n".join(lines)


class Results:
    """Results file: rows by part, added one at a time."""

    def __init__(self, path: Path):
        self._path = path
        self.parts: dict[str, list[dict]] = {"angles": [], "metrics": []}
        self.parts |= {part: read_object(path).get(part, []) for part in self.parts}

    def add(self, part: str, rows: Iterable[dict]) -> None:
        for row in rows:
            self.parts[part].append(row | {"commit": commit()})
            self.write()
            print(row, flush=True)

    def write(self) -> None:
        write_json(self._path, facts(torch.device("cpu")) | self.parts)
        tables = angle_table(self.parts["angles"]), metric_table(self.parts["metrics"])
        text = (
            "Written by `python benchmarks/teacher_targets.py`, whose docstrings describe the measurements.\n\n"
            + "\n\n".join(tables)
            + "\n"
        )
        publish(self._path.with_suffix(".md"), text.encode())

    def has(self, part: str, **facts) -> bool:
        return any(all(row[k] == v for k, v in facts.items()) for row in self.parts[part])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["language", "metrics", "demo"], default=["language", "metrics", "demo"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1338, 1339])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--students",
        type=Path,
        nargs="+",
        help="folders of the demo's students for its angles; by default the metrics' live dense ones",
    )
    parser.add_argument("--ranks", type=count, default=2)
    parser.add_argument(
        "--output", type=path_option, default=ROOT / "runs" / "targets", help="caches, run folders and logs"
    )
    parser.add_argument("--out", type=path_option, default=ROOT / "benchmarks" / "results" / "teacher_targets.json")
    args = parser.parse_args()
    check_out(args.out, ".md")
    results = Results(args.out)
    if "language" in args.parts and not results.has("angles", place="language"):
        results.add("angles", language_angles())
    if "metrics" in args.parts:
        for seed in args.seeds:
            for name in args.variants:
                if not results.has("metrics", variant=name, seed=seed):
                    results.add("metrics", [metrics_of(name, seed, args.output, args.ranks) | {"variant": name}])
    if "demo" in args.parts and not results.has("angles", place="demo"):
        live = (name for name in args.variants if not VARIANTS[name].cache)
        folders = args.students or [args.output / f"{folder_name(name)}_{args.seeds[0]}" / "student" for name in live]
        results.add("angles", demo_angles({f"{folder.parent.name}, {_step(folder)}": folder for folder in folders}))


def _step(folder: Path) -> str:
    return f"step {json.loads((folder.parent / 'run.json').read_text())['steps']}"


if __name__ == "__main__":
    main()
