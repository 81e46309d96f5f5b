"""Defaults that depend on other keys, and the weights that are normalised when a file is loaded."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD, problems
from kd.config.defaults import normalise_weights
from kd.config.load import load_config
from kd.config.schema import EntropyWeighting


def test_each_end_of_the_entropy_weights_is_divided_by_its_sum():
    weighting = normalise_weights(EntropyWeighting(h_min=0.0, h_max=1.0, kd=(1, 6), hard=(2, 0), truth=(1, 2)))
    assert (weighting.kd, weighting.hard, weighting.truth) == ((0.25, 0.75), (0.5, 0.0), (0.25, 0.25))
    for end in (0, 1):
        assert sum(pair[end] for pair in (weighting.kd, weighting.hard, weighting.truth)) == pytest.approx(1)
    assert normalise_weights(weighting) == weighting


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{h_min: 2, h_max: 2}", "h_min (2) must be below h_max (2)"),
        ("{kd: [-0.1, 1]}", "must be at least 0, got -0.1"),
        ("{kd: [0, 1], hard: [0, 1], truth: [0, 1]}", "the first values of kd, hard and truth are all 0"),
    ],
)
def test_entropy_weights_that_mean_nothing_are_refused(write, options, said):
    (problem,) = problems(write(GOOD), [f"loss.entropy_weighting={options}"])
    assert said in problem


def test_the_source_of_targets_follows_the_cache(write):
    from kd.config.defaults import teacher_source

    assert teacher_source(load_config(write(GOOD)).teacher) == "live"
    cached = load_config(write(GOOD), ["teacher.cache={path: c, temperatures: [2.0]}"])
    assert teacher_source(cached.teacher) == "cache" and cached.teacher.source is None
