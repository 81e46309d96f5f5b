"""Quality of a conversation: the weighted mean of its parts, each in [0, 1].

    written    part of its call blocks that were valid as written
    wanted     where the first answer's calls are known: part of their names that it calls, 0 where it should call none
    grounded   where results came back: 1 if a later answer carries a value out of them
    <reward>   each reward of answers.rewards, of the first answer where it is known what is right, else of all answers

The weights of the first three are 1; a part that says nothing of a conversation is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kd.config.sections.generation import Answers
from kd.generation.conversation import Played
from kd.generation.prompts.task import Task
from kd.records.record import Record
from kd.rewards.reward import Mixture
from kd.toolcalls.compare import count_same_names
from kd.toolcalls.grounding import find_carried
from kd.toolcalls.parsed import ParsedCalls


class Quality(NamedTuple):
    """Quality in [0, 1], and its parts."""

    value: float
    parts: dict[str, float]


class Judge:
    """Judges conversations by its own parts and the rewards of the configuration.

    Raises:
        RewardError: a reward cannot be found.
    """

    def __init__(self, answers: Answers):
        self._weights = {name: weight for name, weight in answers.rewards.items() if weight}
        self._rewards = Mixture(self._weights) if self._weights else None

    def judge(self, task: Task, played: Played) -> Quality:
        """Judge a whole conversation.

        Raises:
            RewardError: a reward raised.
        """
        parts: dict[str, float] = {}
        num = sum(len(turn.calls.spans) for turn in played.turns)
        if num:
            parts["written"] = 1 - sum(len(turn.calls.problems) for turn in played.turns) / num
        if task.wanted is not None:
            made = played.turns[0].calls.repaired_calls
            most = max(len(made), len(task.wanted))
            parts["wanted"] = count_same_names(made, list(task.wanted)) / most if most else 1.0
        if (grounded := _find_grounded(played)) is not None:
            parts["grounded"] = grounded
        weights = dict.fromkeys(parts, 1.0)
        if self._rewards is not None:
            parts |= self._rewards(*_choose_answer(task, played)).parts
            weights |= self._weights
        total = sum(weights.values())
        value = sum(weights[name] * part for name, part in parts.items()) / total if total else 1.0
        return Quality(round(min(value, 1.0), 4), {name: round(part, 4) for name, part in parts.items()})


def _find_grounded(played: Played) -> float | None:
    results: list[str] = []
    answers: list[str] = []
    for message in played.messages:
        if message["role"] == "tool":
            results.append(message["content"])
        elif message["role"] == "assistant" and results and not message.get("tool_calls"):
            answers.append(message["content"])
    if not answers:
        return None
    return float(any(find_carried(answer, results) for answer in answers))


def _choose_answer(task: Task, played: Played) -> tuple[Record, int, str, ParsedCalls]:
    """Choose what rewards judge: (record with what is right, turn, text, calls)."""
    first = played.turns[0]
    if task.gold is not None:
        turn = next(at for at, message in enumerate(task.gold) if message["role"] == "assistant")
        return Record(task.key, task.gold, task.tools, caws=task.caws), turn, first.text, first.calls
    if task.wanted is not None:
        calls = [{"type": "function", "function": call} for call in task.wanted]
        right: dict[str, Any] = {"role": "assistant", "content": "" if calls else first.text, "tool_calls": calls}
        record = Record(task.key, [*task.messages, right], task.tools, caws=task.caws)
        return record, len(task.messages), first.text, first.calls
    texts = "\n".join(turn.text for turn in played.turns)
    every = [turn.calls for turn in played.turns]
    joined = ParsedCalls(
        [call for calls in every for call in calls.calls],
        [problem for calls in every for problem in calls.problems],
        [span for calls in every for span in calls.spans],
        "\n".join(calls.text_outside for calls in every),
        [call for calls in every for call in calls.repaired_calls],
    )
    return Record(task.key, played.messages, task.tools, caws=task.caws), first.at, texts, joined
