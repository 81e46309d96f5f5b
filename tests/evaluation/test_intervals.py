"""Intervals hold the truth in 94 to 96 % of samples, and paired differences need discordant records to be found."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from kd.evaluation.intervals import Parts, find_difference, find_interval, leave_out

N, SAMPLES = 200, 1500


def holds(interval, truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_coverage_of_a_proportion_of_records(p):
    """By the binomial itself, not by draws: every number of right records, weighted by how often it comes."""
    log_choose = [math.lgamma(N + 1) - math.lgamma(k + 1) - math.lgamma(N - k + 1) for k in range(N + 1)]
    likely = [math.exp(c + k * math.log(p) + (N - k) * math.log(1 - p)) for k, c in enumerate(log_choose)]
    covered = sum(likely[k] for k in range(N + 1) if holds(find_interval(Parts([1] * k + [0] * (N - k), [1] * N)), p))
    assert 0.94 <= covered <= 0.96


def draw_turns(rng, p: float, likeness: float) -> Parts:
    """One to four turns a record, more alike within one than between."""
    counts = rng.integers(1, 5, N)
    own = rng.beta(p * (1 / likeness - 1), (1 - p) * (1 / likeness - 1), N)
    return Parts(rng.binomial(counts, own).tolist(), counts.tolist())


def draw_f1(rng, p: float, likeness: float) -> Parts:
    """Arguments: right ones twice, over wanted and given ones together; a model may give more or fewer."""
    right = draw_turns(rng, p, likeness)
    given = [count + int(n) for count, n in zip(right.counts, rng.integers(0, 2, N))]
    return Parts([2 * s for s in right.sums], [c + g for c, g in zip(right.counts, given)])


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("draw", [draw_turns, draw_f1])
def test_coverage_of_ratios_over_records_of_several_turns(draw, p):
    """Within what 1,500 samples can tell (two standard deviations) of 94 to 96 %."""
    rng = np.random.default_rng(0)
    truth = statistics.fmean(draw(rng, p, 0.3).value for _ in range(1500))
    covered = statistics.fmean(holds(find_interval(draw(rng, p, 0.3)), truth) for _ in range(SAMPLES))
    assert 0.94 - 0.012 <= covered <= 0.96 + 0.012


def test_turns_of_one_record_are_no_new_evidence():
    """Four turns that are always right or wrong together say what one says."""
    once = find_interval(Parts([1] * 60 + [0] * 40, [1] * 100))
    four = find_interval(Parts([4] * 60 + [0] * 40, [4] * 100))
    assert four == pytest.approx(once) and once[1] - once[0] > 0.18


def test_edges():
    assert find_interval(Parts([], [])) is None and find_interval(Parts([0], [0])) is None
    low, high = find_interval(Parts([0] * 200, [1] * 200))
    assert low == 0 and 0.01 < high < 0.02
    low, high = find_interval(Parts([1] * 200, [1] * 200))
    assert high == 1 and 0.98 < low < 0.99
    assert find_interval(Parts([1], [1])) == (0.0, 1.0)
    assert find_interval(Parts([7], [1]), fraction=False) is None
    tokens = find_interval(Parts([10, 12, 14], [1, 1, 1]), fraction=False)
    assert tokens == pytest.approx((12 - 1.96 * 2 / math.sqrt(3), 12 + 1.96 * 2 / math.sqrt(3)), abs=1e-3)


def test_a_function_that_is_no_ratio_has_the_interval_of_one_that_is():
    """Left out record by record, or in groups, a mean moves as its ratio does."""
    rng = np.random.default_rng(2)
    for num, near in ((80, 1e-9), (2000, 0.01)):
        right = (rng.random(num) < 0.6).astype(int).tolist()
        parts = leave_out(lambda cases: sum(cases) / len(cases) if cases else None, [[r] for r in right])
        wanted = find_interval(Parts(right, [1] * num))
        assert parts is not None and not parts.by_record and len(parts.sums) == min(num, 100)
        assert find_interval(parts) == pytest.approx(wanted, abs=near)
    assert leave_out(lambda cases: None, [[1], [0]]) is None


@pytest.mark.parametrize(("first", "second", "alike"), [(0.6, 0.5, 0.0), (0.6, 0.5, 0.9), (0.95, 0.93, 0.5)])
def test_coverage_of_paired_differences(first, second, alike):
    """Alike models share their luck on a part of the records. Few discordant ones make the interval wider than due."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(500):
        luck = rng.random(N)
        own = np.where(rng.random(N) < alike, luck, rng.random(N))
        one, two = ((u < p).astype(int).tolist() for u, p in ((luck, first), (own, second)))
        found = find_difference(Parts(one, [1] * N), Parts(two, [1] * N))
        hits += found.low <= first - second <= found.high
    assert 0.93 <= hits / 500 <= 0.98


def test_a_difference_is_found_by_its_discordant_records():
    """Ten of 200 records lost and none won is a difference; as two samples of 200 it would be none."""
    one, two = [1] * 110 + [0] * 90, [1] * 100 + [0] * 100
    paired = find_difference(Parts(one, [1] * 200), Parts(two, [1] * 200))
    assert paired.difference == pytest.approx(0.05) and paired.num_discordant == 10 and not paired.within_noise
    won = [0] * 50 + [1] * 50 + [1] * 60 + [0] * 40  # 60 won, 50 lost
    noisy = find_difference(Parts(won, [1] * 200), Parts(two, [1] * 200))
    assert noisy.difference == pytest.approx(0.05) and noisy.num_discordant == 110 and noisy.within_noise


def test_models_that_agree_everywhere_are_not_known_to_be_equal():
    same = Parts([1] * 150 + [0] * 50, [1] * 200)
    found = find_difference(same, same)
    assert found.difference == 0 and found.num_discordant == 0 and found.num_records == 200
    assert (
        found.low == pytest.approx(-found.high) and 0.01 < found.high < 0.02
    )  # three in 200, as the rule of three has


def test_records_without_a_count_in_both_are_not_counted():
    found = find_difference(Parts([1, 0, 0], [1, 0, 0]), Parts([0, 0, 0], [1, 0, 2]))
    assert found.num_records == 2 and found.num_discordant == 2
    assert find_difference(Parts([0], [0]), Parts([1], [1])) is None
