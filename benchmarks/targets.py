"""Targets of the kernels on a GPU, against the results of loss_kernels.py: met, or short and by what
kernels.

Asked at N=8192, V=151936 in bf16, through loss.backward(): dense and sparse a share of the copy bandwidth measured in
the same run, in useful bytes (6 and 4 a logit); linear a multiple of its bare GEMMs' time; each a multiple of the best
peer's speed.
"""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    family: str
    terms: str
    key: str  # of a row of results
    bound: float
    at_least: bool


ROWS, VOCAB, TIMES_THE_BEST_PEER = 8192, 151936, 3.0
TARGETS = (
    Target("dense", "kd+ce", "percent_of_copy", 80.0, True),
    Target("sparse", "kd+ce", "percent_of_copy", 85.0, True),
    Target("linear", "kd", "percent_of_bare_gemms", 110.0, False),
    Target("linear", "ce", "percent_of_bare_gemms", 110.0, False),
    Target("linear_sparse", "kd+ce", "percent_of_bare_gemms", 110.0, False),
)
WORKLOAD = ("family", "terms", "divergence", "temperature", "num_rows", "vocab")


def best_peer(row: dict, rows: list[dict]) -> dict | None:
    """The fastest way of another's to the same loss."""
    timed = (other for other in rows if "median_ms" in other and not other["method"].startswith("ours"))
    same = (other for other in timed if all(other[key] == row[key] for key in WORKLOAD))
    return min(same, key=lambda other: other["median_ms"], default=None)


def verdicts(rows: list[dict]) -> list[str]:
    """A line for each target, of the fastest of ours; what falls short has its time by kernel behind it."""
    lines = []
    for target in TARGETS:
        found = [
            row
            for row in rows
            if "median_ms" in row
            and row["method"].startswith("ours")
            and row["divergence"] == "forward_kl"
            and (row["family"], row["terms"], row["num_rows"], row["vocab"]) == (*target[:2], ROWS, VOCAB)
        ]
        row = min(found, key=lambda row: row["median_ms"], default=None)
        head = f"target: {target.family} {target.terms} {ROWS}x{VOCAB}"
        if row is None:
            lines.append(f"{head}: not measured")
            continue
        value, peer = row.get(target.key), best_peer(row, rows)
        met = value is not None and (value >= target.bound if target.at_least else value <= target.bound)
        what = f"{target.key} {'unknown' if value is None else f'{value:.1f}'}, asked {target.bound:g}"
        if peer is None:
            what, met = f"{what}; no peer measured", False
        else:
            ratio = peer["median_ms"] / row["median_ms"]
            what, met = (
                f"{what}; {ratio:.2f} times {peer['method']}, asked {TIMES_THE_BEST_PEER:g}",
                met and ratio >= TIMES_THE_BEST_PEER,
            )
        lines.append(f"{head} by {row['method']}: {'met' if met else 'SHORT'}: {what}")
        lines += (
            []
            if met
            else [f"    {part['ms']:.3f} ms in {part['launches']} of {part['name']}" for part in row.get("kernels", [])]
        )
    return lines
