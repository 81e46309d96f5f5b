"""Measurements while training: what they say is what training's own lines say, and training has the same bits."""

from __future__ import annotations

import pytest
import torch

from kd.training.validation import LOSS_METRICS

TERMS = {"kd": 0.5, "hard": 0.3, "truth": 0.2, "tool": 0.15, "args": 0.15, "integration": 0.1}


def test_training_has_the_same_bits_with_and_without(runs):
    for rank in (0, 1):
        plain, seen = runs(2, "two_steps", rank), runs(2, "seen", rank)
        assert "error" not in seen, seen.get("error")
        assert len(plain["weights"]) == len(seen["weights"]) == 3
        for one, other in zip(plain["weights"], seen["weights"]):
            assert all(torch.equal(one[name], other[name]) for name in one)
        kept = {"loss", *TERMS, "grad_norm"}
        for one, other in zip(plain["lines"], seen["lines"]):
            assert {k: one[k] for k in kept} == {k: other[k] for k in kept}
        assert seen["training"]  # the engine is back in training mode


def test_a_split_that_is_the_step_measures_what_the_step_logged(runs):
    """The weights stand still, so that the loss after the step is the one before it."""
    run = runs(1, "seen")
    assert "error" not in run, run.get("error")
    (line,), (step, values) = run["lines"], run["seen"][0]
    assert step == 1 and values.keys() == {"one", "other"}
    for found in values.values():
        assert found.keys() == set(LOSS_METRICS)
        assert found["loss"] == pytest.approx(line["loss"], rel=1e-5)
        for name, weight in TERMS.items():
            assert weight * found[name] == pytest.approx(line[name], rel=1e-5)
        for name in LOSS_METRICS:
            if name.endswith("_accuracy"):
                assert found[name] == pytest.approx(line[name], rel=1e-6)


def test_every_rank_has_the_same_values_and_keeps_the_best_step(runs):
    one, other = runs(2, "seen", 0), runs(2, "seen", 1)
    assert one["seen"] == other["seen"]
    losses = {step: values["one"]["truth"] for step, values in one["seen"] if "truth" in values["one"]}
    assert sorted(losses) == [1, 2]
    assert one["result"]["best"][:2] == other["result"]["best"][:2]
    step, value, num_since = one["result"]["best"]
    assert step == min(losses, key=losses.get) and value == pytest.approx(losses[step]) and num_since == 2 - step
    greedy = [values for at, values in one["seen"] if at == 2 and "json_validity" in values["one"]]
    assert len(greedy) == 1
