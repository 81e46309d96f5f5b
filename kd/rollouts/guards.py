"""Guards: figures of a round's answers, and what is done where one passes its limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kd.config.schema import Guards, Rollouts
from kd.rendering.spans import TOOL
from kd.rollouts.answer import Answer, deviation, list_groups
from kd.rollouts.correction import KINDS


class Breach(NamedTuple):
    """Figure that passed its limit."""

    name: str
    action: str  # warn, skip or stop
    sentence: str


def measure(answers: Sequence[Answer], rollouts: Rollouts) -> dict[str, float]:
    """Measure a step's answers; numbers are means over answers, or over prompts where they say so.

    answer_tokens, answer_entropy (nats a token, by the sampled tokens), reward_mean, reward_spread (mean standard
    deviation within a prompt), reward_NAME, unfinished, repeated, no_signal (of prompts), hacked, called_needlessly (of
    answers to prompts where no tool is due: those in which a call is read), and with repair corrected, and
    corrected_KIND by what the correction took (kd/rollouts/correction.py).
    """
    if not answers:
        return {}
    num = len(answers)
    tokens = sum(len(answer.ids) for answer in answers)
    groups = list_groups(answers)
    found = {
        "answer_tokens": tokens / num,
        "answer_entropy": -sum(sum(answer.log_probs) for answer in answers) / max(tokens, 1),
        "unfinished": sum(not answer.finished for answer in answers) / num,
        "repeated": sum(answer.repeats_from is not None for answer in answers) / num,
        "hacked": sum(answer.hacked for answer in answers) / num,
        "reward_mean": sum(answer.value for answer in answers) / num,
        "reward_spread": sum(deviation([answer.value for answer in group]) for group in groups) / len(groups),
        "no_signal": sum(len({answer.value for answer in group}) == 1 for group in groups) / len(groups),
    }
    for name in answers[0].parts:
        found[f"reward_{name}"] = sum(answer.parts[name] for answer in answers) / num
    if refraining := [answer for answer in answers if answer.no_tool]:
        calling = sum(any(bits & TOOL for bits in answer.bits) for answer in refraining)
        found["called_needlessly"] = calling / len(refraining)
    if rollouts.repair:
        kinds = [answer.correction.kind for answer in answers if answer.correction is not None]
        found["corrected"] = len(kinds) / num
        found |= {f"corrected_{kind}": kinds.count(kind) / num for kind in KINDS}
    return found


def check(figures: dict[str, float], guards: Guards) -> list[Breach]:
    """List the guards whose limit a figure passes; figures: of `measure`, and `impossible`, a divergence in nats."""
    found = []
    for name, remedy in _REMEDIES.items():
        guard = getattr(guards, name)
        key = "answer_entropy" if name == "entropy" else name
        if guard is None or key not in figures:
            continue
        value = figures[key]
        passed = value < guard.limit if name == "entropy" else value > guard.limit
        if passed:
            than = "below" if name == "entropy" else "above"
            sentence = f"{name} is {value:.3g}, {than} guards.{name}.limit ({guard.limit:g}): {remedy}"
            found.append(Breach(name, guard.action, sentence))
    return found


_REMEDIES = {
    "unfinished": "answers are cut; raise max_new_tokens, or lower reward or the learning rate",
    "entropy": "all answers are alike; lower reward or the learning rate, or give distill a weight",
    "repeated": "answers go round in circles; lower the learning rate, or raise the part of records",
    "no_signal": "rewards tell no answer of a prompt from another; raise samples, or weigh finer rewards",
    "hacked": "answers are empty or call twice; weigh argument_values or exact_call, or give distill a weight",
    "impossible": "the teacher would never say this; lower reward, or begin with more records",
}
