"""Schedules and weights by optimizer step: their ends, their clamps, and what replaces what."""

from __future__ import annotations

import math

import pytest

from kd.config.schedules import adaptive_temperature, scheduled
from kd.config.schema import Loss
from kd.objective.terms import TERMS, loss_weight_schedule, weights_at


def loss(**options) -> Loss:
    return Loss.model_validate(options)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 2.0), ("cosine", 2.0)])
def test_a_schedule_goes_from_start_to_end_and_is_clamped(schedule, middle):
    values = [scheduled(schedule, 3.0, 1.0, step, 101) for step in range(-20, 300)]
    assert values[20] == 3.0 and values[120] == pytest.approx(1.0) and values[70] == pytest.approx(middle)
    assert all(1.0 - 1e-12 <= v <= 3.0 for v in values) and values == sorted(values, reverse=True)
    quarter = scheduled(schedule, 0.0, 1.0, 25, 101)
    assert quarter == pytest.approx(0.25 if schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi / 4))


def test_a_run_of_one_step_has_the_start():
    assert scheduled("linear", 3.0, 1.0, 0, 1) == 3.0


def test_a_constant_has_no_end_and_others_need_one():
    assert scheduled("constant", 2.0, None, 10**6, 5) == 2.0
    for schedule, end in (("linear", None), ("cosine", None), ("step", 1.0)):
        with pytest.raises(ValueError, match="use constant, or linear or cosine with an end"):
            scheduled(schedule, 1.0, end, 0, 10)


def test_the_named_schedules_and_their_defaults():
    assert (
        adaptive_temperature(0, 100) == 3.0
        and adaptive_temperature(99, 100) == 1.5
        and adaptive_temperature(10**9, 100) == 1.5
    )
    kl, hard, truth = loss_weight_schedule(0, 100)
    assert (kl, hard, truth) == pytest.approx((0.42, 0.28, 0.3)) and kl + hard + truth == pytest.approx(1)
    assert loss_weight_schedule(99, 100) == pytest.approx((0.18, 0.12, 0.7))


def test_the_temperature_of_a_run_and_its_weights_follow_the_step():
    section = loss(
        temperature={"schedule": "linear", "start": 3.0, "end": 1.5},
        teacher_share={"schedule": "linear", "start": 0.7, "end": 0.3},
    )
    first, last = (weights_at(section, step, 11, has_teacher=True) for step in (0, 10))
    assert first == pytest.approx((3.0, 0.42, 0.28, 0.3, 0.15, 0.15, 0.1, None))
    assert last == pytest.approx((1.5, 0.18, 0.12, 0.7, 0.15, 0.15, 0.1, None))
    assert weights_at(section, 5, 11, has_teacher=True).temperature == pytest.approx(2.25)


def test_constant_weights_and_their_default():
    given = weights_at(
        loss(weights={"kd": 0.1, "hard": 0.0, "truth": 0.9}, w_tool=0.5, w_args=0.0, w_integr=0.2),
        3,
        9,
        has_teacher=True,
    )
    assert given[1:7] == (0.1, 0.0, 0.9, 0.5, 0.0, 0.2)
    assert weights_at(loss(), 3, 9, has_teacher=True)[1:4] == (0.5, 0.3, 0.2)


def test_without_a_teacher_only_truth_and_spans_are_left():
    for section, truth in ((loss(), 1.0), (loss(weights={"truth": 0.4}), 0.4)):
        terms = weights_at(section, 0, 9, has_teacher=False)
        assert terms[1:7] == (0.0, 0.0, truth, 0.15, 0.15, 0.1) and terms.entropy is None


def test_entropy_weights_replace_the_three_and_leave_the_spans():
    terms = weights_at(loss(entropy_weighting={}, w_tool=0.5), 0, 9, has_teacher=True)
    assert terms[1:7] == (1.0, 1.0, 1.0, 0.5, 0.15, 0.1)
    assert (terms.entropy.h_min, terms.entropy.h_max) == (2.0, 8.0)
    assert (terms.entropy.kd, terms.entropy.hard, terms.entropy.truth) == ((0.4, 0.6), (0.2, 0.2), (0.4, 0.2))


def test_the_terms_are_named_as_the_weights_are():
    assert weights_at(loss(), 0, 1, has_teacher=True)._fields[1:7] == TERMS
