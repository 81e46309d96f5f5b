"""Gradients of a head's loss in pieces under DeepSpeed and accumulation: ours against DeepSpeed's TiledFusedLogitsLoss.

    python benchmarks/tiled_loss.py

Two gloo ranks on the CPU, one small model in fp32 with a batch that does not depend on the accumulation, mean
cross-entropy, four pieces a micro-batch. For each ZeRO stage and accumulation: the largest error of a gradient,
relative to the largest value of plain fp64 autograd's, of the head's parameters and of all others; "plain" computes
whole logits in the same engine. Untied head with bias, head tied to the embedding, and the untied one with a factor of
3 on the loss. tests/distributed/accumulation.py runs it.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from distributed.accumulation import Case, plain_gradients, relative_errors  # noqa: E402
from helpers.jobs import Job  # noqa: E402

METHODS, STAGES, ACCUMULATIONS = ("plain", "ours", "tiled"), (2, 3), (1, 2, 4)


def figures(found: dict[str, torch.Tensor] | str, tied: bool, factor: float) -> str:
    """Errors of the head's and of the other gradients, and the size of the head's weight's by the true one's."""
    if isinstance(found, str):
        return found.splitlines()[0][:80]
    truth = plain_gradients(tied, "mean", factor)
    head = {"embedding.weight"} if tied else {"head.weight", "head.bias"}
    errors = relative_errors(found, truth)
    name = min(head & truth.keys() - {"head.bias"})
    ratio = float((found[name].double() * truth[name]).sum() / truth[name].square().sum())
    first, others = (max(e for n, e in errors.items() if (n in head) == inside) for inside in (True, False))
    return f"{first:.1e}  {others:.1e}  x{ratio:.3f}"


def main() -> None:
    settings = [
        *itertools.product((False, True), STAGES, ACCUMULATIONS, (1.0,)),
        *((False, stage, 1, 3.0) for stage in STAGES),
    ]
    cases = [
        Case(method, stage, steps, tied, "mean", factor)
        for tied, stage, steps, factor in settings
        for method in METHODS
    ]
    print(f"torch {torch.__version__}, deepspeed {__import__('deepspeed').__version__}; 2 ranks, gloo, fp32")
    print("error of the head's gradients, of all others, and the head's weight's size by plain fp64 autograd's")
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({"out": folder, "cases": cases}))
        Job([str(ROOT / "tests/distributed/accumulation.py"), str(job)], 2).wait(timeout=1800)
        for case in cases:
            if case.method == METHODS[0]:
                print(
                    f"{'tied' if case.tied else 'untied'}, ZeRO-{case.stage}, accumulation {case.accumulation}, loss "
                    f"times {case.factor:g}"
                )
            found = torch.load(Path(folder) / f"{case.name}.pt")
            print(f"    {case.method:6} {figures(found, case.tied, case.factor)}")


if __name__ == "__main__":
    main()
