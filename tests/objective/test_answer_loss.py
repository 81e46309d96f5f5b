"""Distill, repair and reward: the gradient of each is that of its exact expectation, by finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch

from helpers.answer_cases import ANSWERS, PROMPT, Policy, loss_of, make_answer
from kd.config.schema import Loss, Rollouts
from kd.objective.answer_loss import ANSWER_SUMS, AnswerSettings
from kd.rendering.spans import TOOL, TRUTH
from kd.rollouts.answer import advantages
from kd.rollouts.correction import Correction

VALUES = dict(zip(ANSWERS, (0.1, 0.9, 0.4, 0.0, 1.0, 0.3, 0.7)))
FIX = Correction(1, [2, 0], [TRUTH | TOOL, TRUTH], "record")  # of an answer that begins with 1


def settings(is_stale=False, **rollouts) -> AnswerSettings:
    return AnswerSettings(Rollouts(**rollouts), Loss(), is_stale)


def gradient(loss, policy):
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, [*policy], allow_unused=False)])


def finite_differences(value, policy, eps=1e-5):
    found = []
    for tensor in policy:
        flat = tensor.data.view(-1)
        for at in range(len(flat)):
            before = flat[at].item()
            ends = []
            for sign in (1, -1):
                flat[at] = before + sign * eps
                ends.append(float(value()))
            flat[at] = before
            found.append((ends[0] - ends[1]) / (2 * eps))
    return torch.tensor(found, dtype=torch.float64)


def answer(ids, number=0, sample=0, policy=None, **fields):
    known = policy.log_probs(ids).detach().tolist() if policy is not None else [0.0] * len(ids)
    return make_answer(ids, VALUES[ids], number=number, sample=sample, log_probs=known, **fields)


def every_pair(policy):
    """(probability now, pair of answers) of every two samples of the prompt."""
    for pair in itertools.product(ANSWERS, repeat=2):
        yield policy.probability(pair[0]).item() * policy.probability(pair[1]).item(), pair


def close(found, expected, tolerance=1e-5):
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("is_stale", [False, True])
def test_reward_has_the_gradient_of_the_expected_reward(is_stale):
    """Leave-one-out leaves no bias: the mean over all pairs of samples is d E[r] exactly, also by a ratio that is 1."""
    policy = Policy.make(1)
    given = settings(is_stale, reward=1.0, samples=2, normaliser="answers")
    found = torch.zeros(40, dtype=torch.float64)
    for weight, pair in every_pair(policy):
        answers = [answer(ids, sample=at, policy=policy) for at, ids in enumerate(pair)]
        found += weight * gradient(loss_of(policy, answers, given)[0], policy)
    expected = finite_differences(lambda: sum(VALUES[ids] * policy.probability(ids) for ids in ANSWERS), policy)
    close(found, -expected)  # a loss falls where the reward rises


def test_the_estimators_mean_is_the_gradient_by_chance_too():
    """4,000 draws of a pair: every component within 4.5 standard errors, and the test would see a tenth of the
    gradient: the largest component stands more than 45 standard errors from 0.
    """
    policy = Policy.make(1)
    given = settings(reward=1.0, samples=2, normaliser="answers")
    weights, rows = [], []
    for weight, pair in every_pair(policy):
        answers = [answer(ids, sample=at, policy=policy) for at, ids in enumerate(pair)]
        weights.append(weight)
        rows.append(gradient(loss_of(policy, answers, given)[0], policy))
    weights, rows = torch.tensor(weights, dtype=torch.float64), torch.stack(rows)
    exact = weights @ rows
    generator, num = torch.Generator().manual_seed(3), 4000
    drawn = rows[torch.multinomial(weights, num, replacement=True, generator=generator)]
    error = drawn.std(0) / num**0.5
    assert ((drawn.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    assert (exact.abs() / error.clamp(min=1e-12)).max() > 45


def test_tokens_or_answers_divide_the_reward():
    policy = Policy.make(2)
    answers = [answer((1, 0), sample=0), answer((2, 1), sample=1)]
    by_answers, by_tokens = (
        loss_of(policy, answers, settings(reward=1.0, samples=2, normaliser=one))[0] for one in ("answers", "tokens")
    )
    assert by_answers.item() == pytest.approx(2 * by_tokens.item())


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_distill_has_the_gradient_of_the_divergence_on_the_students_own_tokens(divergence):
    """With the samples' probabilities held: there is no gradient through sampling. Names weigh w_tool more."""
    policy, teacher = Policy.make(3), Policy.make(4)
    beta = {"beta": 0.3} if divergence == "jsd" else {}
    given = settings(distill=0.7, divergence=divergence, distill_temperature=1.5, **beta)
    own = [(policy.probability(ids).item(), answer(ids, bits=[TRUTH | TOOL, TRUTH][: len(ids)])) for ids in ANSWERS]

    def divergence_of(ids):
        before = torch.tensor([PROMPT, *ids[:-1]])
        log_p, log_q = (
            ((one.embedding[before] @ one.head[:PROMPT].T) / 1.5).log_softmax(-1) for one in (teacher, policy)
        )
        p, q = log_p.exp(), log_q.exp()
        if divergence == "forward_kl":
            return (p * (log_p - log_q)).sum(-1)
        if divergence == "reverse_kl":
            return (q * (log_q - log_p)).sum(-1)
        log_m = (0.3 * p + 0.7 * q).log()
        return 0.3 * (p * (log_p - log_m)).sum(-1) + 0.7 * (q * (log_q - log_m)).sum(-1)

    def expectation():
        total = 0.0
        for weight, one in own:
            rows = divergence_of(one.ids)
            total += weight * 0.7 * 1.5**2 * (rows.mean() + Loss().w_tool * rows[0])
        return total

    found = sum(weight * gradient(loss_of(policy, [one], given, teacher=teacher)[0], policy) for weight, one in own)
    close(found, finite_differences(expectation, policy))
    loss, sums = loss_of(policy, [own[3][1]], given, teacher=teacher)
    assert sums[0].item() == pytest.approx(loss.item(), rel=1e-6)


def test_repair_has_the_gradient_of_the_correction_after_the_students_own_tokens():
    policy = Policy.make(5)
    given = settings(repair=2.0)
    wrong = [answer(ids, correction=FIX) for ids in ANSWERS if ids[0] == 1]
    chances = [policy.probability(tuple(one.ids)).item() for one in wrong]

    def expectation():
        nll = -policy.log_probs((1, 2, 0))[1:]
        return sum(chances) * 2.0 * (nll.mean() + Loss().w_tool * nll[0])

    found = sum(weight * gradient(loss_of(policy, [one], given)[0], policy) for weight, one in zip(chances, wrong))
    close(found, finite_differences(expectation, policy))


def test_a_step_raises_the_corrections_token_and_lowers_the_wrong_one():
    policy = Policy.make(5)
    before = policy.log_probs((1, 2)).detach()[1], policy.log_probs((1, 1)).detach()[1]
    grads = torch.autograd.grad(loss_of(policy, [answer((1, 1), correction=FIX)], settings(repair=1.0))[0], [*policy])
    for tensor, grad in zip(policy, grads):
        tensor.data -= 0.1 * grad
    after = policy.log_probs((1, 2))[1], policy.log_probs((1, 1))[1]
    assert after[0] > before[0] and after[1] < before[1]


ALL = {"distill": 0.5, "repair": 1.0, "reward": 0.3, "samples": 2}


def four_answers(policy):
    given = [(1, 1), (2, 0), (0,), (1, 0)]
    return [
        answer(
            ids, number=at // 2, sample=at % 2, policy=policy, correction=FIX if ids[0] == 1 else None, weight=1 + at
        )
        for at, ids in enumerate(given)
    ]


@pytest.mark.parametrize("off", ["distill", "repair", "reward"])
def test_a_term_of_weight_0_is_off_and_the_others_add_up(off):
    policy, teacher = Policy.make(6), Policy.make(7)
    given = settings(**ALL | {off: 0.0})
    loss, sums = loss_of(policy, four_answers(policy), given, teacher=teacher if off != "distill" else None)
    named = dict(zip(ANSWER_SUMS, sums.tolist()))
    assert named[off] == 0 and all(named[name] for name in ("distill", "repair", "reward") if name != off)
    assert sum(named[name] for name in ("distill", "repair", "reward")) == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_split_changes_no_gradient(parts):
    policy, teacher = Policy.make(6), Policy.make(7)
    found = [
        gradient(loss_of(policy, four_answers(policy), settings(**ALL), teacher=teacher, parts=one)[0], policy)
        for one in (1, parts)
    ]
    close(found[1], found[0], 1e-6)


def test_equal_rewards_give_exactly_nothing_and_no_sequence():
    policy = Policy.make(1)
    given = settings(reward=1.0, samples=2)
    answers = [make_answer((1, 0), 0.7, sample=0), make_answer((2, 1), 0.7, sample=1)]
    loss, sums = loss_of(policy, answers, given)
    assert loss.item() == 0 and not sums.any()


def test_a_ratio_that_has_left_its_range_stops_counting():
    """Better than the mean and grown past 1 + clip, or worse and fallen below 1 - clip: no gradient; else the
    ratio's."""
    policy = Policy.make(1)
    given = settings(True, reward=1.0, samples=2, clip=0.2, normaliser="answers", sync_every=2)
    for shift, clipped in ((0.0, 0), (0.1, 0), (0.5, 2), (-0.5, 2)):
        answers = [
            answer(ids, sample=at)._replace(log_probs=(policy.log_probs(ids).detach() - shift).tolist())
            for at, ids in enumerate([(1, 0), (1, 1)])
        ]
        # (1, 0) is the better one: its two tokens are clipped where they have grown, the other's where they have fallen
        _, sums = loss_of(policy, answers, given)
        assert dict(zip(ANSWER_SUMS, sums.tolist()))["clipped"] == clipped


def test_no_tool_turns_and_loops_are_not_distilled():
    policy, teacher = Policy.make(3), Policy.make(4)
    given = settings(distill=1.0)
    for one, num in ((answer((1, 2)), 2), (answer((1, 2), no_tool=True), 0), (answer((1, 2), repeats_from=1), 1)):
        loss, sums = loss_of(policy, [one], given, teacher=teacher)
        assert (loss.item() > 0) == (num > 0)
        assert sums[3].item() == pytest.approx(loss.item() * num, rel=1e-6)
    assert (
        loss_of(policy, [answer((1, 2), no_tool=True)], settings(distill=1.0, distill_no_tool=True), teacher=teacher)[
            0
        ].item()
        > 0
    )


def test_advantages():
    assert advantages([1.0, 0.0, 0.5]) == pytest.approx([0.75, -0.75, 0.0])
    assert advantages([0.3] * 4) == [0.0] * 4 and advantages([1.0]) == [0.0] and advantages([]) == []
    assert advantages([1.0, 0.0], scale_by_deviation=True) == pytest.approx([2.0, -2.0])
