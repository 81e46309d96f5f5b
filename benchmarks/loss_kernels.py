# type: ignore  # pyright checks kd, kernels and launch (pyproject.toml)
"""The loss kernels against eager PyTorch, torch.compile and Liger: loss and gradient, through loss.backward().

    python benchmarks/loss_kernels.py                                   all shapes, benchmarks/results/loss_kernels.json
    python benchmarks/loss_kernels.py --minutes 10 --families dense     what comes first in the list, then stop
    python benchmarks/loss_kernels.py --parity-only --gate-rows 8192    no times: every row of every shape against fp64
    python benchmarks/loss_kernels.py --draw results.json               the plot of an earlier run (needs matplotlib)

Before each row of numbers a way must agree with fp64 (benchmarks/parity.py); one that does not, prints no time.
`useful` bandwidth counts one read of each logit and one write of its gradient (6 bytes a logit for a dense teacher in
bf16, 4 for a sparse one), whatever a way really moves; `raw` counts what our kernel issues (see kernels/README.md), so
L2's share is in it. The copy that percentages refer to is measured in the same run. The linear families are compared
with their bare GEMMs.

On a CPU: the reference against eager, time ratio and peak memory, at small shapes; the static table of what the kernels
do on GPUs; and a list of what was not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measure import (
    ROOT,
    check_out,
    copy_bandwidth,
    count,
    facts,
    is_results,
    peak_bytes,
    resident_bytes,
    restart_peak,
    time_by_kernel,
    time_it,
    write_json,
)
from benchmarks.methods import (
    OVERWRITES,
    Data,
    NotInstalledError,
    Way,
    Workload,
    bare_gemms,
    eager,
    issued_bytes,
    make_data,
    methods,
    no_fallback,
    ours,
    useful_bytes,
)
from benchmarks.parity import check, loss_and_gradients
from kd.atomic_files import replacing
from kd.outputs import read_object
from kd.paths import path_option
from kernels.divergences import kind_of
from kernels.fused import launches

FAMILIES = ("dense", "sparse", "linear", "linear_sparse")
VOCABS, ROWS = (151936, 32000, 128256, 262144), (8192, 1024)


def workloads(families, vocabs, rows, dtype="bfloat16", hidden=4096) -> list[Workload]:
    """Most telling first: a run that is cut short has the shape of the project's target."""

    def at(family, terms, n, v, divergence="forward_kl", beta=None, t=1.0):
        sizes = dict(hidden=hidden * family.startswith("linear"), kept=64 * family.endswith("sparse"))
        return Workload(family, terms, divergence, beta, t, n, v, dtype, **sizes)

    shapes = [(n, v) for n in rows for v in vocabs]
    first = [("dense", "kd+ce", 2.0), ("sparse", "kd+ce", 2.0), ("linear", "kd", 1.0), ("linear", "ce", 1.0)]
    found = [at(family, terms, *shape, t=t) for shape in shapes for family, terms, t in first]
    for shape in shapes:
        found += [
            at("dense", "kd", *shape),
            at("dense", "kd", *shape, "jsd", 0.5),
            at("dense", "kd", *shape, "reverse_kl"),
            at("linear_sparse", "kd+ce", *shape, t=2.0),
        ]
    return [work for work in found if work.family in families]


def measure_row(
    name: str, make, work: Workload, device: torch.device, copy: float | None, chosen: argparse.Namespace
) -> dict:
    row = {"method": name, **work._asdict()}
    try:
        if device.type == "cuda":
            no_fallback()
        way = make()
        if way is None:
            return row | {"skipped": "this peer has no such loss"}
        few = work._replace(num_rows=min(work.num_rows, chosen.gate_rows))
        row["parity"] = check(way, few, device, is_ours=name.startswith("ours"))._asdict()
        if not row["parity"]["passed"]:
            return row | {"skipped": "parity check failed"}
        return row if chosen.parity_only else row | _timed(name, way, work, device, copy, chosen.seconds)
    except NotInstalledError as error:
        return row | {"skipped": str(error)}
    except (
        Exception
    ) as error:  # a way that cannot run one shape must not cost the others; what it said is in the results
        return row | {"skipped": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _timed(name: str, way: Way, work: Workload, device: torch.device, copy: float | None, seconds: float) -> dict:
    data = make_data(work, device)
    kept = [leaf.detach().clone() for leaf in data.leaves] if name in OVERWRITES else []

    def restore():
        with torch.no_grad():
            for leaf, copy_of in zip(data.leaves, kept):
                leaf.copy_(copy_of)

    timing = time_it(lambda: loss_and_gradients(way, data), device, prepare=restore, seconds=seconds)
    out = timing._asdict()
    if device.type == "cuda":
        restore()
        out["peak_bytes"] = peak_bytes(lambda: loss_and_gradients(way, data), device)
        if name.startswith("ours"):
            out["kernels"] = time_by_kernel(lambda: loss_and_gradients(way, data), device)
        if work.family.startswith("linear"):
            gemms = time_it(lambda: bare_gemms(data), device, seconds=seconds)
            out |= {"bare_gemms_ms": gemms.median_ms, "percent_of_bare_gemms": 100 * timing.median_ms / gemms.median_ms}
        else:
            out |= _bandwidths(name, data, timing.median_ms * 1e-3, copy)
    return out


def _bandwidths(name: str, data: Data, seconds: float, copy: float) -> dict:
    useful = useful_bytes(data.work)
    out = {"useful_gb_s": useful / seconds / 1e9, "percent_of_copy": 100 * useful / seconds / copy}
    if name.startswith("ours"):
        out["launch"] = launch_of(data)
        out["raw_gb_s"] = issued_bytes(data.work, out["launch"]) / seconds / 1e9
    return out


def launch_of(data: Data) -> str:
    """Name the launch that the dense kernel takes for this; the sparse one has a single launch."""
    if data.work.family == "sparse":
        return "row"
    student, kind = data.leaves[0], kind_of(data.work.divergence)
    return launches.choose(student.device, student, data.teacher, data.work.vocab, kind, gradient=True).name


def peak_in_a_process(name: str, work: Workload) -> int:
    """CPU: what a way adds to the memory of a fresh process that has the data and has done a tiny call."""
    command = [sys.executable, __file__, "--peak-of", name, "--workload", json.dumps(work._asdict())]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return int(done.stdout.split()[-1])


def _print_peak(name: str, work: Workload) -> None:
    device = torch.device("cpu")
    way = {"eager": eager, "ours (reference)": ours("reference")}[name]
    loss_and_gradients(way, make_data(work._replace(num_rows=2, vocab=1024), device))
    data = make_data(work, device)
    restart_peak()
    before = resident_bytes("VmHWM")
    loss_and_gradients(way, data)
    print(resident_bytes("VmHWM") - before)


def line(row: dict) -> str:
    head = f"{Workload(**{k: row[k] for k in Workload._fields}).name():62} {row['method']:18}"
    if "skipped" in row:
        return f"{head} -- {row['skipped']}"
    if "median_ms" not in row:
        return f"{head} agrees with fp64 on {row['parity']['rows']} rows: errors {row['parity']['errors']}"
    text = f"{head} {row['median_ms']:9.3f} ms [{row['low_ms']:.3f}, {row['high_ms']:.3f}]"
    for key, unit in (
        ("useful_gb_s", "GB/s useful"),
        ("raw_gb_s", "GB/s raw"),
        ("percent_of_copy", "% of copy"),
        ("percent_of_bare_gemms", "% of the bare GEMMs' time"),
        ("over_eager", "x eager's time"),
        ("peak_bytes", "B peak"),
    ):
        text += f"  {row[key]:.4g} {unit}" if key in row else ""
    return text


def static_table(arches: list[str]) -> str:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.kernel_proof.static_proof", "--quick", "--arch", *arches]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else f"(no static table: {done.stderr.strip().splitlines()[-1]})"


def draw(results: dict, path: Path) -> None:
    """GPU: percent of the copy bandwidth by vocabulary. CPU: time and peak memory over eager's, a bar a workload."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in results["rows"] if "median_ms" in row]
    if results["device"]["type"] == "cuda":
        for axis, family in ((left, "dense"), (right, "sparse")):
            here = [row for row in rows if row["family"] == family and row["terms"] == "kd+ce"]
            here = [row for row in here if row["num_rows"] == max(other["num_rows"] for other in here)]
            for method in dict.fromkeys(row["method"] for row in here):
                points = sorted((row["vocab"], row["percent_of_copy"]) for row in here if row["method"] == method)
                axis.plot(*zip(*points), marker="o", label=method)
            axis.set(title=family, xlabel="vocabulary", ylabel="useful bytes, % of the copy bandwidth", ylim=(0, 105))
            axis.legend()
    else:
        rows = [row for row in rows if row["method"] != "eager"]
        names = [Workload(**{k: row[k] for k in Workload._fields}).name() for row in rows]
        for axis, key, what in ((left, "over_eager", "time"), (right, "peak_over_eager", "peak memory")):
            axis.barh(names, [row.get(key, 0) for row in rows])
            axis.set(xlabel=f"the reference's {what} over eager's", yticks=names if axis is left else [])
    figure.suptitle(f"{results['device']['name']}, {results['date'][:10]}, commit {str(results['commit'])[:9]}")
    with replacing(path) as file:
        figure.savefig(file, format="png")


def _eager_row(rows: list[dict], row: dict) -> dict:
    same = (other for other in rows if all(other[field] == row[field] for field in Workload._fields))
    return next((other for other in same if other["method"] == "eager"), {})


def run(chosen: argparse.Namespace) -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu, deadline = device.type == "cuda", time.monotonic() + 60 * chosen.minutes
    results = facts(device) | {"command": sys.argv, "rows": [], "not_measured": []}
    copy = copy_bandwidth(device) if on_gpu and not chosen.parity_only else None
    results["copy_gb_s"] = None if copy is None else copy / 1e9
    shapes = (VOCABS, ROWS, "bfloat16", 4096) if on_gpu else ((32000,), (1024,), "float32", 256)
    given = (chosen.vocab, chosen.rows, chosen.dtype, chosen.hidden)
    for work in workloads(chosen.families, *(value or default for value, default in zip(given, shapes))):
        for name, make in methods(work, device).items():
            if chosen.methods and name.split(" (")[0] not in chosen.methods:
                continue
            if time.monotonic() > deadline:
                results["not_measured"].append(f"{work.name()}, {name}: no time left")
                continue
            row = measure_row(name, make, work, device, copy, chosen)
            if "median_ms" in row:
                row |= {} if on_gpu else {"peak_bytes": peak_in_a_process(name, work)}
                base = _eager_row(results["rows"] + [row], row)
                row |= {"over_eager": row["median_ms"] / base["median_ms"]} if "median_ms" in base else {}
                row |= {"peak_over_eager": row["peak_bytes"] / base["peak_bytes"]} if base.get("peak_bytes") else {}
            results["rows"].append(row)
            print(line(row), flush=True)
            write_json(chosen.out, results)
    if not on_gpu:
        results["not_measured"].append(
            "no GPU here: no kernel's time, bandwidth or device memory, no torch.compile, no Liger. The rows above "
            "are the "
            "reference in PyTorch against eager; the table is read off machine code, not off a clock"
        )
    for text in results["not_measured"]:
        print("not measured:", text)
    write_json(chosen.out, results)
    if not on_gpu and chosen.static:
        print(static_table(chosen.static))
    return results


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 where a way of ours was wrong or could not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_option, default=ROOT / "benchmarks" / "results" / "loss_kernels.json")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--methods", nargs="+", help="eager, ours, torch.compile, liger; all of them by default")
    parser.add_argument("--vocab", nargs="+", type=count)
    parser.add_argument("--rows", nargs="+", type=count)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="bfloat16; on a CPU float32")
    parser.add_argument("--hidden", type=count, help="of the linear families: 4096; on a CPU 256")
    parser.add_argument(
        "--gate-rows", type=count, default=16, help="rows that are compared with fp64 before a way is timed"
    )
    parser.add_argument("--parity-only", action="store_true")
    parser.add_argument("--minutes", type=float, default=60, help="no new row is begun after this long")
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time a row")
    parser.add_argument("--static", nargs="*", default=["sm_90"], help="architectures of the table printed on a CPU")
    parser.add_argument("--draw", type=path_option, metavar="JSON", help="only draw the plot of these results")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--workload", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.peak_of:
        _print_peak(chosen.peak_of, Workload(**chosen.workload))
        return 0
    if chosen.draw:
        if not is_results(chosen.draw) or "rows" not in read_object(chosen.draw):
            parser.error(f"--draw: {chosen.draw} is no file of results")
        check_out(chosen.draw, ".png")
        draw(json.loads(chosen.draw.read_text()), chosen.draw.with_suffix(".png"))
        return 0
    check_out(chosen.out, ".png")
    results = run(chosen)
    if not chosen.parity_only:
        try:
            draw(results, chosen.out.with_suffix(".png"))
        except ImportError:
            print(f"no plot: matplotlib is not installed; where it is, --draw {chosen.out} makes it")
    return int(any("skipped" in row for row in results["rows"] if row["method"].startswith("ours")))


if __name__ == "__main__":
    sys.exit(main())
