"""Gradient accumulation does not change a step: 1, 2 and 4 micro-batches give the gradient of plain autograd in every
parameter.

Real DeepSpeed processes, ZeRO-2 and ZeRO-3, two ranks; the linear form inside engine.forward, head tied to the
embedding or with a weight and a bias of its own. One launch for all.
"""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from distributed.accumulation import Case, plain_gradients, relative_errors
from helpers.jobs import Job

TOLERANCE = 1e-5  # of the largest value of a parameter's gradient
CASES = [Case("ours", *rest) for rest in itertools.product((2, 3), (1, 2, 4), (False, True), ("distill", "mean"))]
TRIPLED = [Case("ours", stage, 2, False, "distill", 3.0) for stage in (2, 3)]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """gradients(case): by parameter."""
    out = tmp_path_factory.mktemp("accumulation")
    (out / "job.json").write_text(json.dumps({"out": str(out), "cases": CASES + TRIPLED}))
    Job(["tests/distributed/accumulation.py", str(out / "job.json")], 2).wait()

    def read(case: Case) -> dict[str, torch.Tensor]:
        found = torch.load(out / f"{case.name}.pt")
        assert not isinstance(found, str), found
        return found

    return read


@pytest.mark.parametrize("loss", ["distill", "mean"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("stage", [2, 3])
def test_every_accumulation_has_the_same_gradient_of_every_parameter(gradients, stage, tied, loss):
    truth = plain_gradients(tied, loss)
    assert {"embedding.weight", "body.0.weight"} < truth.keys()
    assert ("head.weight" in truth) == ("head.bias" in truth) == (not tied)
    whole = gradients(Case("ours", stage, 1, tied, loss))
    for accumulation in (1, 2, 4):
        found = gradients(Case("ours", stage, accumulation, tied, loss))
        for other in (truth, {name: g.double() for name, g in whole.items()}):
            errors = relative_errors(found, other)
            assert max(errors.values()) < TOLERANCE, (accumulation, errors)


@pytest.mark.parametrize("case", TRIPLED, ids=lambda case: f"zero{case.stage}")
def test_a_factor_on_the_loss_is_one_on_every_gradient(gradients, case):
    errors = relative_errors(gradients(case), plain_gradients(False, "distill", 3.0))
    assert max(errors.values()) < TOLERANCE, errors
