"""AdamW's groups and the learning rate of each step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd.config.schema import Optimizer
from kd.training.optimizer import build_optimizer, learning_rate


def config(**options) -> Optimizer:
    return Optimizer.model_validate({"lr": 1.0, **options})


def rates(num_steps: int, **options) -> list[float]:
    return [learning_rate(config(**options), step, num_steps) for step in range(num_steps)]


def test_warm_up_rises_to_the_peak_in_equal_parts_and_is_never_zero():
    assert rates(10, schedule="constant", warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decay_ends_at_its_fraction_on_the_last_step_and_stays(schedule):
    made = rates(21, schedule=schedule, final_lr_fraction=0.2)
    assert (
        made[0] == 1
        and made[-1] == pytest.approx(0.2)
        and made[10] == pytest.approx(0.6)
        and made == sorted(made, reverse=True)
    )
    assert learning_rate(config(schedule=schedule, final_lr_fraction=0.2), 10**6, 21) == pytest.approx(0.2)


def test_wsd_is_constant_and_then_falls_in_the_last_part():
    made = rates(100, schedule="wsd", warmup_steps=10, decay_fraction=0.2, final_lr_fraction=0.0)
    assert made[9:81] == pytest.approx([1.0] * 72)
    assert (
        made[-1] == pytest.approx(0)
        and made[80:] == sorted(made[80:], reverse=True)
        and made[90] == pytest.approx(1 - 10 / 19)
    )


def test_a_decay_of_the_whole_run_begins_after_the_warm_up():
    made = rates(10, schedule="wsd", warmup_steps=5, decay_fraction=1.0, final_lr_fraction=0.0)
    assert made[4] == made[5] == 1 and made[-1] == pytest.approx(0)


@pytest.fixture
def model():
    return nn.ModuleDict({"embed": nn.Embedding(10, 4), "linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


def decays(optimizer) -> dict[int, float]:
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_matrices_decay_and_vectors_do_not(model):
    optimizer = build_optimizer(model, config(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6), {})
    assert isinstance(optimizer, torch.optim.AdamW)
    found = decays(optimizer)
    assert {name: found[id(p)] for name, p in model.named_parameters()} == {
        "embed.weight": 0.3,
        "linear.weight": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
    }
    assert all((g["lr"], g["betas"], g["eps"]) == (1.0, (0.8, 0.9), 1e-6) for g in optimizer.param_groups)


def test_a_partitioned_parameter_is_known_by_the_shape_it_had(model):
    """ZeRO-3 leaves one dimension, or none; ds_shape keeps the matrix's own."""
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = parameter.data.flatten()[:0]
    found = decays(build_optimizer(model, config(weight_decay=0.3), {}))
    assert sorted(found.values()) == [0.0, 0.0, 0.0, 0.3, 0.3]


def test_a_model_of_matrices_alone_has_one_group():
    assert len(build_optimizer(nn.Linear(3, 3, bias=False), config(), {}).param_groups) == 1
