"""Judgement of a whole conversation: the calls of each turn against those that the record makes in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd.evaluation.conversations.dialogue import Call, Dialogue, Step
from kd.toolcalls.json_values import same_json


def judge_turns(made: Sequence[Sequence[Step]], wanted: Sequence[Sequence[Call]]) -> dict[str, Any]:
    """Judge the steps of each turn by the calls that are wanted in it, in any order.

    A turn is right where its steps make every wanted call once, no other, and no broken block. Returns:

        right               every turn is
        turns               right or not, for each turn
        calls_before_error  wanted calls made before the first one that is not wanted, broken or left out
        num_calls           wanted in all
        turns_reached       turns up to the one of the first error; all where there is none
        num_turns           in all
    """
    turns: list[bool] = []
    before, failed = 0, False
    for at, calls in enumerate(wanted):
        left, wrong = list(calls), at >= len(made)
        for step in made[at] if at < len(made) else ():
            for call in step.calls:
                match = next((place for place, other in enumerate(left) if same_json(call, other)), None)
                if match is None:
                    wrong = True
                    continue
                del left[match]
                before += not (failed or wrong)
            wrong = wrong or bool(step.answer.calls.problems)
        turns.append(not wrong and not left)
        failed = failed or not turns[-1]
    return {
        "right": all(turns),
        "turns": turns,
        "calls_before_error": before,
        "num_calls": sum(map(len, wanted)),
        "turns_reached": turns.index(False) + 1 if failed else len(turns),
        "num_turns": len(turns),
    }


def describe_steps(steps: Sequence[Sequence[Step]]) -> list[list[dict[str, Any]]]:
    """Describe the steps of each turn as JSON values: text, calls, results."""
    return [[{"text": one.answer.text, "calls": one.calls, "results": one.results} for one in turn] for turn in steps]


def join_answers(dialogue: Dialogue) -> dict[str, Any]:
    """Join the answers of a conversation into the fields of one outcome: output, calls, problems, sample, num_tokens,
    finished.

    As in `kd.evaluation.evaluate.evaluate_cases`; tokens are those of all steps.
    """
    every = [step for turn in dialogue.steps for step in turn]
    problems = [problem for step in every for problem in (*step.answer.calls.problems, *step.answer.problems)]
    return {
        "output": "\n\n".join(step.answer.text for step in every),
        "calls": [call for step in every for call in step.calls],
        "problems": [*problems, *([dialogue.problem] if dialogue.problem else [])],
        "sample": 0,
        "num_tokens": sum(step.answer.num_tokens for step in every),
        "finished": all(step.answer.finished for step in every),
    }
