"""pass@k of sampled answers: the chance that one of k answers to a call turn is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.evaluation.intervals import Parts, find_interval

Case = dict[str, Any]


def estimate_pass(num_samples: int, num_right: int, k: int) -> float:
    """Estimate pass@k of one turn without bias: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    n answers were drawn, c of them are right, and 1 <= k <= n.
    """
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def list_ks(num_samples: int) -> list[int]:
    """List the numbers of answers to estimate for: powers of two, and all that were drawn."""
    return sorted({2**power for power in range(num_samples.bit_length())} | {num_samples})


def measure_pass(
    records: Sequence[Sequence[Case]], is_right: Mapping[str, Any], num_samples: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure pass@k over the call turns: metric -> k -> {"value", "interval"}.

    Args:
        records: judged cases, all samples of each, grouped by record.
        is_right: metric -> function of one judged case.
        num_samples: of each turn.
    """
    turns: list[list[list[Case]]] = []
    for record in records:
        own: dict[int, list[Case]] = {}
        for case in record:
            if case["kind"] == "call":
                own.setdefault(case["case"], []).append(case)
        turns.append(list(own.values()))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, right in is_right.items():
        counts = [[sum(bool(right(case)) for case in turn) for turn in own] for own in turns]
        for k in list_ks(num_samples):
            sums = [sum(estimate_pass(num_samples, count, k) for count in own) for own in counts]
            turns_of = [float(len(own)) for own in counts]
            parts = Parts(sums, turns_of, most=sum(turns_of) * num_samples)
            found.setdefault(name, {})[str(k)] = {"value": parts.value, "interval": find_interval(parts)}
    return found
