"""Hardware counters of one launch of each loss kernel, by Nsight Compute: DRAM bytes a logit, L2 hits, issue.

    python benchmarks/counters.py --out counters.json --minutes 4

Only a DRAM counter tells how much of a row's second sweep L2 answered. Times under the profiler mean nothing and are
not kept. `--clock-control none` leaves the device's clocks alone.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measure import ROOT, check_out, count, facts, write_json
from benchmarks.methods import Workload, make_data, ours
from benchmarks.parity import loss_and_gradients
from kd.paths import path_option
from kernels.fused.language import INTERPRETED

METRICS = {
    "dram__bytes_read.sum": "dram_read",
    "dram__bytes_write.sum": "dram_written",
    "lts__t_sectors_op_read_lookup_hit.sum": "l2_read_hits",
    "lts__t_sectors_op_read.sum": "l2_reads",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue_percent",
    "launch__registers_per_thread": "registers",
}
# Name -> family, terms, divergence, beta, kept tokens.
FORMS = {
    "dense": ("dense", "kd+ce", "forward_kl", None, 0),
    "sparse": ("sparse", "kd+ce", "forward_kl", None, 64),
    "jsd": ("dense", "kd", "jsd", 0.5, 0),
    "reverse_kl": ("dense", "kd", "reverse_kl", None, 0),
}
_BYTES = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def workload(form: str, rows: int, vocab: int, dtype: str) -> Workload:
    """Return the workload of a form at T = 2."""
    family, terms, divergence, beta, kept = FORMS[form]
    return Workload(family, terms, divergence, beta, 2.0, rows, vocab, dtype, kept=kept)


def launch_once(work: Workload) -> None:
    """Compute a workload once: loss and gradient, in place."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss_and_gradients(ours("triton", inplace=True), make_data(work, device))


def read_counters(text: str) -> dict[str, float]:
    """Read `ncu --csv` of one launch: METRICS' names -> value, bytes as such. ValueError where one is missing."""
    lines = text.splitlines()
    head = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        raise ValueError(f"ncu printed no table: {text.strip()[-300:]}")
    found = {}
    for row in csv.DictReader(lines[head:]):
        name = METRICS.get(row["Metric Name"])
        if name is not None:
            found[name] = float(row["Metric Value"].replace(",", "")) * _BYTES.get(row["Metric Unit"], 1)
    missing = sorted(set(METRICS.values()) - set(found))
    if missing:
        raise ValueError(f"ncu gave no {', '.join(missing)}")
    return found


def a_logit(counters: dict[str, float], work: Workload) -> dict[str, float]:
    """Return what the counters say of one logit, rounded."""
    logits = work.num_rows * work.vocab
    return {
        "dram_bytes_a_logit": round((counters["dram_read"] + counters["dram_written"]) / logits, 2),
        "l2_read_hits_percent": round(100 * counters["l2_read_hits"] / counters["l2_reads"], 1),
        "issue_percent": round(counters["issue_percent"], 1),
        "registers": round(counters["registers"]),
    }


def profile(form: str, rows: int, vocab: int, seconds: float) -> dict[str, float]:
    """Run ncu on one launch of a form, in a process of its own."""
    command = ["ncu", "--clock-control", "none", "--csv", "--launch-count", "1", "--kernel-name", "regex:_kernel"]
    command += ["--metrics", ",".join(METRICS), sys.executable, __file__, "--form", form]
    command += ["--rows", str(rows), "--vocab", str(vocab)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    try:
        return read_counters(done.stdout)
    except ValueError as error:
        raise ValueError(f"{error}; exit {done.returncode}: {done.stderr.strip()[-300:]}") from None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_option)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--rows", type=count, default=2048)
    parser.add_argument("--vocab", type=count, default=151936)
    parser.add_argument("--form", choices=FORMS, help="only launch this form once, for ncu")
    parser.add_argument("--rehearse", action="store_true", help="launch each form in the interpreter, without ncu")
    chosen = parser.parse_args(arguments)
    if chosen.form:
        return launch_once(workload(chosen.form, chosen.rows, chosen.vocab, "bfloat16"))
    if chosen.out is None:
        parser.error("--out is needed")
    on_gpu = torch.cuda.is_available() and not chosen.rehearse
    if not on_gpu and not (chosen.rehearse and INTERPRETED):
        sys.exit("needs a GPU; to rehearse, set TRITON_INTERPRET=1 and give --rehearse")
    check_out(chosen.out)
    results = facts(torch.device("cuda" if on_gpu else "cpu")) | {"rows": []}
    deadline = time.monotonic() + 60 * chosen.minutes
    for form in FORMS:
        row: dict = {"form": form}
        if time.monotonic() > deadline:
            row["skipped"] = "no time left"
        elif not on_gpu:
            launch_once(workload(form, 2, 500, "float32"))
            row["skipped"] = "rehearsal: launched, not counted"
        else:
            try:
                found = profile(form, chosen.rows, chosen.vocab, deadline - time.monotonic())
                row |= a_logit(found, workload(form, chosen.rows, chosen.vocab, "bfloat16"))
            except (ValueError, OSError, subprocess.TimeoutExpired) as error:  # one form's failure is its own
                row["skipped"] = str(error)[:600]
        results["rows"].append(row)
        write_json(chosen.out, results)
        print(row, flush=True)
    return None


if __name__ == "__main__":
    main()
