"""Proof that distilling with spans pays: a matrix of runs, resumable, with paired intervals.

    make proof                                                     # every study that is not done yet
    python benchmarks/proof.py --studies records --seeds 1337      # a part of it
    python benchmarks/proof.py --list                              # what is done, and what is left
    python benchmarks/proof.py --show                              # the tables again, from what is done

A run (benchmarks/proof_cells.py says which) is launch/train.py over configs/demo.yaml. Its result is kept under its
configuration and the code that trained it, so that a second call makes only what is missing or has changed; a run that
is killed resumes from its checkpoint. --any-code takes what other commits made, as committed results are, and says so.
Where methods are given the same seconds, they are rank 0's of a processor, in which threads that wait busily count too:
one thread a rank (OMP_NUM_THREADS=1) makes them independent of other programs.
Methods are compared on the same held-out records, each record's verdict averaged over the seeds that both have, with
the interval of kd/evaluation/intervals.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from demo_quality import launcher  # noqa: E402
from measure import check_out, count  # noqa: E402
from proof_cells import METHODS, STEPS, STUDIES, Cell, choose_rate, list_cells, list_overrides  # noqa: E402
from target_metrics import remove_tails  # noqa: E402

from kd.atomic_files import publish, replacing  # noqa: E402
from kd.evaluation.intervals import Difference, Parts, find_difference  # noqa: E402
from kd.evaluation.metrics import METRICS  # noqa: E402
from kd.outputs import OutputError, check_writable, read_object  # noqa: E402
from kd.paths import path_option  # noqa: E402

CONFIG = ROOT / "configs" / "demo.yaml"
CODE = ("kd", "kernels", "launch", "ds_configs", "configs/demo_teacher")  # what a result depends on besides its YAML
KEPT = ("tool_name_accuracy", "exact_arguments", "json_validity", "over_calling", "integration")
_ROW = dict.fromkeys(("key", "code", "commit", "method"), (str,))  # what a result has
_ROW |= dict.fromkeys(("num_records", "seed", "steps"), (int,))
_ROW |= {"processor_seconds": (int, float), "best": (dict, type(None)), "scores": (dict,)}
SHOWN = ("tool_name_accuracy", "exact_arguments", "over_calling")


def hash_code() -> str:
    """Hash the committed trees of CODE, and what is changed in them since."""
    found = [
        subprocess.run(["git", "rev-parse", f"HEAD:{path}"], cwd=ROOT, capture_output=True).stdout for path in CODE
    ]
    changed = subprocess.run(["git", "diff", "HEAD", "--", *CODE], cwd=ROOT, capture_output=True).stdout
    return hashlib.sha256(b"".join([*found, changed])).hexdigest()[:12]


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Read the rows of a file of results. Raises SystemExit where one is none, as `parts_of` would stumble over it."""
    rows = read_object(results).get("rows", [])
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        if (
            not isinstance(row, dict)
            or not all(_is_of(row.get(name), kinds) for name, kinds in _ROW.items())
            or (not _has_scores(row["scores"]) or row["method"] not in METHODS)
        ):
            raise SystemExit(
                f"error: --out: {results}: row {number} is none of these runs: move the file away, or remove the row"
            )
    return rows


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _has_scores(scores: dict[str, Any]) -> bool:
    """Tell whether the scores of each model and split are as `_pack` made them."""
    try:
        return all(
            _is_of(split["metrics"][name], (int, float, type(None)))
            and len({len(digits) for digits in split["parts"][name]}) == 1
            and [digits.isdigit() or not digits for digits in split["parts"][name]] == [True, True]
            for model in scores.values()
            for split in model.values()
            for name in KEPT
        ) and (not scores or "student" in scores)
    except (AttributeError, KeyError, TypeError):
        return False


class Proof:
    """Results so far, in one JSON file, and the means to make more.

    Args:
        results: the file; made when missing.
        output: folder of runs, caches and logs.
    """

    def __init__(self, results: Path, output: Path, ranks: int, *, any_code: bool = False):
        self._results, self._output, self._ranks, self._code = results, output, ranks, hash_code()
        self._any_code = any_code
        self._lock, self._capturing = Lock(), Lock()
        rows = read_rows(results)
        self._rows: dict[tuple[str, str], dict[str, Any]] = {(row["key"], row["code"]): row for row in rows}

    def done(self, cell: Cell) -> dict[str, Any] | None:
        """Return the result of a run, or None where it, or one that it needs, is yet to be made."""
        try:
            key = self._key(self._resolve(cell))
        except KeyError:
            return None
        others = [row for (of, _), row in self._rows.items() if of == key] if self._any_code else []
        return self._rows.get((key, self._code)) or (others[-1] if others else None)

    def make(self, cell: Cell) -> dict[str, Any]:
        """Make a run, or resume it, and keep its result.

        Raises:
            SystemExit: it failed; its log is named.
        """
        overrides = self._resolve(cell)
        if METHODS[cell.method].cache is not None:
            self._capture(cell, overrides)
        self._launch("train", cell.name, overrides)
        folder = self._output / cell.name
        run = json.loads((folder / "run.json").read_text())
        row = {
            "key": self._key(overrides),
            "code": self._code,
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip(),
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))},
            **cell._asdict(),
            **{name: run[name] for name in ("steps", "training_seconds", "processor_seconds", "tokens", "best")},
            "scores": {},
        }
        if cell.rate is None:
            models = json.loads((folder / "evaluation.json").read_text())
            row["scores"] = {
                model: {split: _pack(of) for split, of in splits.items()} for model, splits in models.items()
            }
        with self._lock:
            self._rows[row["key"], self._code] = row
            publish(self._results, (json.dumps({"rows": list(self._rows.values())}, indent=0) + "\n").encode())
        return row

    def make_all(self, cells: Iterable[Cell], jobs: int = 1) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Make the runs that are not done, up to `jobs` at once, each when those that it needs are; yield as they end.

        Raises:
            SystemExit: one failed; those that had begun have ended.
        """
        left, running = [cell for cell in cells if self.done(cell) is None], {}
        with ThreadPoolExecutor(jobs) as pool:
            while left or running:
                for cell in [cell for cell in left if self._is_ready(cell)][: jobs - len(running)]:
                    left.remove(cell)
                    running[pool.submit(self.make, cell)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()

    def _is_ready(self, cell: Cell) -> bool:
        try:
            return bool(self._resolve(cell))
        except KeyError:
            return False

    def _resolve(self, cell: Cell) -> list[str]:
        """List the overrides of a run as they stand now; KeyError where they depend on a run that is not made."""
        method, steps, rate = METHODS[cell.method], STEPS, None
        if cell.rate is None and method.tuned:
            source = "ce_scratch" if "scratch" in cell.method else "ce"
            runs = [other for other in list_cells(tuple(STUDIES), (cell.seed,)) if other.rate is not None]
            runs = [run for run in runs if (run.method, run.num_records) == (source, cell.num_records)]
            rate = choose_rate(cell, {run: self._need(run)["best"]["value"] for run in runs})
        if method.as_long_as is not None:
            ours = self._need(Cell(method.as_long_as, cell.num_records, cell.seed))
            plain = self._need(Cell(method.paced_by, cell.num_records, cell.seed))
            steps = round(plain["steps"] * ours["processor_seconds"] / plain["processor_seconds"])
        found = list_overrides(cell, rate, steps, self._ranks)
        if method.cache is not None:
            found["teacher.cache"] = f"{{path: {self._cache(cell)}, {method.cache}, temperatures: [2.0]}}"
        return [f"{key}={value}" for key, value in found.items()]

    def _need(self, cell: Cell) -> dict[str, Any]:
        row = self.done(cell)
        if row is None:
            raise KeyError(cell)
        return row

    def _key(self, overrides: list[str]) -> str:
        demo = json.dumps(yaml.safe_load(CONFIG.read_text(encoding="utf-8")), sort_keys=True)
        text = "\n".join([demo, *sorted(overrides)]).replace(str(self._output), "")
        return hashlib.sha256(f"{self._ranks} {text}".encode()).hexdigest()[:16]

    def _cache(self, cell: Cell) -> Path:
        method = METHODS[cell.method]
        kind = hashlib.sha256(f"{method.cache} {method.renormalised}".encode()).hexdigest()[:6]
        return self._output / f"cache_{cell.num_records}_{kind}"

    def _capture(self, cell: Cell, overrides: list[str]) -> None:
        folder = self._cache(cell)
        captured = folder.with_name(folder.name + "_captured") if METHODS[cell.method].renormalised else folder
        with self._capturing:  # of several runs, whose seeds are all that differs
            if not (captured / "manifest.json").exists():
                self._launch("capture", captured.name, [one.replace(str(folder), str(captured)) for one in overrides])
            if captured != folder and not (folder / "manifest.json").exists():
                remove_tails(captured, folder)

    def _launch(self, program: str, name: str, overrides: list[str]) -> None:
        settings = [*overrides, f"run.name={name}", f"run.output_dir={self._output}"]
        command = [*launcher(self._ranks), f"launch/{program}.py", "--config", str(CONFIG)]
        command += [part for one in settings for part in ("--set", one)]
        log = self._output / f"{name}.{program}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            code = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode
        if code:
            raise SystemExit(f"{name}: launch/{program}.py ended with exit code {code}; its log is {log}")


def _pack(metrics: dict[str, Any]) -> dict[str, Any]:
    """Keep a split's metrics, and of KEPT the verdicts by record, a digit each."""
    parts = metrics["records"]["parts"]
    return {
        "metrics": {name: metrics[name] for name in KEPT},
        "parts": {
            name: ["".join(str(int(n)) for n in parts[name][key]) for key in ("sums", "counts")] for name in KEPT
        },
    }


def evaluated(row: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of a run's last step: cross-entropy's "best" ones by validation loss answer worse (LOG.md)."""
    return row["scores"]["student"]


def parts_of(rows: Iterable[dict[str, Any]], split: str, metric: str) -> Parts:
    """Add up the verdicts of several seeds' runs, record by record."""
    packed = [evaluated(row)[split]["parts"][metric] for row in rows]
    sums, counts = ([list(map(int, one[at])) for one in packed] for at in (0, 1))
    return Parts([float(sum(of)) for of in zip(*sums)], [float(sum(of)) for of in zip(*counts)])


def compare(
    rows: list[dict[str, Any]], one: str, two: str, num_records: int, split: str, metric: str
) -> Difference | None:
    """Compare two methods at a number of records over the seeds that both have; None where there is none."""
    of = {
        m: {row["seed"]: row for row in rows if (row["method"], row["num_records"]) == (m, num_records)}
        for m in (one, two)
    }
    seeds = sorted(of[one].keys() & of[two].keys())
    if not seeds:
        return None
    return find_difference(*(parts_of([of[m][seed] for seed in seeds], split, metric) for m in (one, two)))


def write_table(rows: list[dict[str, Any]], baseline: str = "ce") -> str:
    """Write a Markdown table: each method's scores in percent, and their paired differences from the baseline's."""
    lines = [
        "| records | method | seeds | steps | processor s | split | "
        + " | ".join(METRICS[m].title for m in SHOWN)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(SHOWN),
    ]
    for num_records, method in sorted({(row["num_records"], row["method"]) for row in rows}, key=_order):
        mine = [row for row in rows if (row["num_records"], row["method"]) == (num_records, method)]
        steps, seconds = (sum(row[key] for row in mine) / len(mine) for key in ("steps", "processor_seconds"))
        for split in evaluated(mine[0]):
            cells = []
            for metric in SHOWN:
                value, found = parts_of(mine, split, metric).value, None
                if method != baseline:
                    found = compare(rows, method, baseline, num_records, split, metric)
                cell = "none" if value is None else f"{100 * value:.1f}"
                if found is not None:
                    cell += f" ({100 * found.difference:+.1f}, {100 * found.low:+.1f} to {100 * found.high:+.1f})"
                cells.append(cell)
            run = f"{num_records} | {method} | {len(mine)} | {steps:.0f} | {seconds:.0f}"
            lines.append(f"| {run} | {split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(key: tuple[int, str]) -> tuple[int, int]:
    return key[0], list(METHODS).index(key[1])


def find_equal(
    rows: list[dict[str, Any]], method: str, split: str, metric: str, baseline: str = "ce"
) -> dict[int, str]:
    """Find for each number of records of `method` the records with which the baseline does as well, as text.

    The baseline's mean over seeds is interpolated in the logarithm of the records; outside of what was run it is only
    bounded.
    """

    def curve(of: str) -> list[tuple[int, float]]:
        sizes = sorted({row["num_records"] for row in rows if row["method"] == of})
        runs = {size: [row for row in rows if (row["num_records"], row["method"]) == (size, of)] for size in sizes}
        values = ((size, parts_of(of_size, split, metric).value) for size, of_size in runs.items())
        return [(size, value) for size, value in values if value is not None]

    found, plain = {}, curve(baseline)
    for size, value in curve(method):
        crossed = [(a, b) for a, b in zip(plain, plain[1:]) if min(a[1], b[1]) <= value <= max(a[1], b[1])]
        if crossed:
            (a, low), (b, high) = crossed[-1]
            share = 0.0 if high == low else (value - low) / (high - low)
            found[size] = f"{math.exp(math.log(a) + share * math.log(b / a)):.0f}"
        elif plain:
            found[size] = f"over {plain[-1][0]}" if value > max(v for _, v in plain) else f"under {plain[0][0]}"
    return found


def draw(rows: list[dict[str, Any]], path: Path, metric: str = "exact_arguments") -> None:
    """Draw quality against records and against seconds, each method's mean over seeds with their range, as SVG."""
    from matplotlib.figure import Figure

    splits = list(evaluated(rows[0]))
    figure = Figure(figsize=(9, 3.2 * len(splits)), layout="constrained")
    for at, split in enumerate(splits):
        for column, (label, by) in enumerate(
            (("training records", "num_records"), ("processor seconds of training", "processor_seconds"))
        ):
            axes = figure.add_subplot(len(splits), 2, 2 * at + column + 1)
            for method in STUDIES["records"]:
                points = []
                for num_records in sorted({row["num_records"] for row in rows}):
                    mine = [row for row in rows if (row["num_records"], row["method"]) == (num_records, method)]
                    if mine:
                        values = [100 * evaluated(row)[split]["metrics"][metric] for row in mine]
                        points.append((sum(row[by] for row in mine) / len(mine), sum(values) / len(values), values))
                if points:
                    x, y, values = zip(*sorted(points, key=lambda point: point[0]))
                    spread = [[m - min(v) for m, v in zip(y, values)], [max(v) - m for m, v in zip(y, values)]]
                    style = "-" if by == "num_records" else ""
                    axes.errorbar(x, y, spread, marker="o", markersize=3, capsize=2, linestyle=style, label=method)
            axes.set(xscale="log", xlabel=label, ylabel=f"{METRICS[metric].title}, %, {split.replace('_', ' ')}")
            axes.grid(alpha=0.3)
            if not at and not column:
                axes.legend(fontsize=7)
    with replacing(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1338, 1339])
    parser.add_argument("--ranks", type=count, default=2)
    parser.add_argument("--jobs", type=count, default=1, help="runs at once: with --ranks 1, as many as cores")
    parser.add_argument("--output", type=path_option, default=ROOT / "runs" / "proof", help="runs, caches and logs")
    parser.add_argument("--out", type=path_option, default=ROOT / "benchmarks" / "results" / "proof.json")
    parser.add_argument("--list", action="store_true", help="say what is done and what is left, and make nothing")
    parser.add_argument("--show", action="store_true", help="write table and plot of what is done, and make nothing")
    parser.add_argument("--any-code", action="store_true", help="take the results of other commits as done")
    args = parser.parse_args()
    check_out(args.out, ".svg", alone=not (args.list or args.show))
    try:
        check_writable("--output", args.output)
    except OutputError as error:
        raise SystemExit(f"error: {error}") from None
    proof = Proof(args.out, args.output.resolve(), args.ranks, any_code=args.any_code)
    cells = list(list_cells(tuple(args.studies), tuple(args.seeds)))
    if args.list:
        for cell in cells:
            print(f"{'done' if proof.done(cell) else 'left'}  {cell.name}")
        return
    for cell, row in proof.make_all(cells, args.jobs) if not args.show else ():
        left = sum(proof.done(other) is None for other in cells)
        print(
            f"{cell.name}: {row['processor_seconds']:.0f} s of processor time; {left} of {len(cells)} runs left",
            flush=True,
        )
    rows = [row for cell in cells if cell.rate is None and (row := proof.done(cell)) is not None]
    if not rows:
        raise SystemExit("no run is done: run it without --show")
    print(f"made by {', '.join(sorted({row['commit'][:9] for row in rows}))}\n\n{write_table(rows)}")
    for split in evaluated(rows[0]):
        for method in ("kd", "kd_spans", "kd_spans_sampled"):
            for num_records, equal in find_equal(rows, method, split, "exact_arguments").items():
                print(f"exact arguments, {split}: {method} with {num_records} records equals ce with {equal}")
    draw(rows, args.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
