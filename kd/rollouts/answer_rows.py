"""Rows of answers: samples, span bits and weights that make a step's answers a micro-batch like any other.

An answer is one sequence as it was sampled (distill, reward), and one with its correction (repair), where these weigh.
What a term is divided by is counted over all answers of the step, which every rank has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.batching.fit import Sample, find_rows
from kd.batching.micro_batch import pad_samples
from kd.batching.record_key import record_key
from kd.config.schema import Rollouts
from kd.objective.answer_loss import COUNTS, AnswerBatch, AnswerRows
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kd.rollouts.answer import Answer, advantages, list_groups


class _Sequence(NamedTuple):
    sample: Sample
    rows: dict[str, NDArray[np.float32]]  # field of AnswerRows -> [T], of the token that a row trains


class WeighedAnswer(NamedTuple):
    """Answer with its advantage over the prompt's others."""

    answer: Answer
    advantage: float


def weigh(answers: Sequence[Answer], rollouts: Rollouts) -> list[WeighedAnswer]:
    """Give each answer of a step its advantage, in the order of the prompts."""
    found = []
    for group in list_groups(answers):
        values = [answer.value for answer in group]
        both = zip(group, advantages(values, scale_by_deviation=rollouts.scale_by_deviation))
        found += [WeighedAnswer(*pair) for pair in both]
    return found


def has_distill(answer: Answer, rollouts: Rollouts) -> bool:
    """Tell whether the divergence from the teacher is taken on an answer."""
    return rollouts.distill > 0 and (rollouts.distill_no_tool or not answer.no_tool)


def count_answers(answers: Sequence[WeighedAnswer], rollouts: Rollouts) -> Tensor:
    """Count what each term is divided by, [9] float64 by COUNTS, over all answers of a step."""
    counts = dict.fromkeys(COUNTS, 0.0)
    for answer, _ in answers:
        for token, bits in enumerate(answer.bits if has_distill(answer, rollouts) else ()):
            if _is_distilled(answer, token):
                _add(counts, "distill", bits, answer.weight)
        for bits in answer.correction.bits if answer.correction is not None and rollouts.repair else ():
            _add(counts, "repair", bits, answer.weight)
        counts["reward"] += answer.weight * (len(answer.ids) if rollouts.normaliser == "tokens" else 1)
    return torch.tensor([counts[name] for name in COUNTS], dtype=torch.float64)


def make_batch(answers: Sequence[WeighedAnswer], rollouts: Rollouts, padding: int, max_length: int) -> AnswerBatch:
    """Make the tensors of a micro-batch's answers; none give a padding token and no rows."""
    sequences = [one for weighed in answers for one in _list_sequences(*weighed, rollouts)]
    micro = pad_samples([one.sample for one in sequences], padding, max_length)
    rows = []
    for field in AnswerRows._fields:
        parts = [one.rows[field][find_rows(one.sample.bits) + 1] for one in sequences]
        rows.append(torch.from_numpy(np.concatenate([np.empty(0, np.float32), *parts])))
    return AnswerBatch(micro, AnswerRows(*rows))


def list_weights(weighed: WeighedAnswer, rollouts: Rollouts) -> list[float]:
    """List, for a person, what weighs on each token of an answer: its advantage, or 1 where it is distilled alone."""
    answer, advantage = weighed
    distilled = has_distill(answer, rollouts)
    own = advantage if rollouts.reward else 0.0
    return [own or float(distilled and _is_distilled(answer, token)) for token in range(len(answer.ids))]


def _is_distilled(answer: Answer, token: int) -> bool:
    """A loop is no text to learn from past its first time."""
    return answer.repeats_from is None or token < answer.repeats_from


def _add(counts: dict[str, float], term: str, bits: int, weight: float) -> None:
    for bit in (TRUTH, TOOL, ARGS, INTEGRATION):
        counts[f"{term}_{bit}"] += weight * bool(bits & bit)


def _list_sequences(answer: Answer, advantage: float, rollouts: Rollouts) -> list[_Sequence]:
    found, num_prompt = [], len(answer.prompt)
    distilled = has_distill(answer, rollouts)
    advantage = advantage * answer.weight if rollouts.reward else 0.0
    if answer.ids and (distilled or advantage):
        sequence = _make(answer, "", answer.ids, answer.bits)
        for token in range(len(answer.ids)):
            at = num_prompt + token
            sequence.rows["distill"][at] = answer.weight * (distilled and _is_distilled(answer, token))
            sequence.rows["log_probs"][at] = answer.log_probs[token]
        sequence.rows["advantage"][num_prompt:] = advantage
        found.append(sequence)
    if rollouts.repair and answer.correction is not None:
        kept, ids, bits, _ = answer.correction
        sequence = _make(answer, "+", [*answer.ids[:kept], *ids], [0] * kept + list(bits))
        sequence.rows["repair"][num_prompt + kept :] = answer.weight
        found.append(sequence)
    return found


def _make(answer: Answer, mark: str, ids: Sequence[int], bits: Sequence[int]) -> _Sequence:
    whole = np.asarray([*answer.prompt, *ids], np.int32)
    mask = np.asarray([0] * len(answer.prompt) + list(bits), np.uint8)
    name = f"{answer.record_id}#{answer.turn}~{answer.sample}{mark}"
    rows = {field: np.zeros(len(whole), np.float32) for field in AnswerRows._fields}
    return _Sequence(Sample(name, whole, mask, answer.weight, record_key(whole)), rows)
