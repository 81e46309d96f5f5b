"""Evaluation of a record as a whole conversation, in which the model's own calls and answers are the history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd.evaluation.answerers.answer import Answerer, Progress
from kd.evaluation.conversations.dialogue import Call, Dialogue, Turn, run_dialogues
from kd.evaluation.conversations.judge import describe_steps, join_answers, judge_turns
from kd.evaluation.conversations.results import SIMULATOR_SECONDS, RecordedResults, Simulate, make_simulated
from kd.records.record import Record

CONVERSATION = "conversation"  # kind of the outcome


def evaluate_conversations(
    answerer: Answerer,
    records: Sequence[Record],
    simulate: Simulate | None = None,
    *,
    seconds: float = SIMULATOR_SECONDS,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Hold each record's conversation, of those that call a tool, and judge it.

    Args:
        simulate: answers the model's calls; by default the record's results do.
        seconds: that it may take for one call.
        share: (rank, world size): this rank's share of the conversations is held.

    Returns one outcome a record, of plain JSON values, as `kd.evaluation.evaluate.evaluate_cases` does; `outcome` is
    that of `kd.evaluation.conversations.judge.judge_turns`, and `steps`, the answers of each turn with their calls and
    results.

    Raises:
        DataError: the chat template refuses every conversation.
        SimulatorError: the simulator takes longer, or ends the program.
    """
    first = sum(len(record.messages) for record in records)  # cases of turns are fewer
    asked = []
    for number, record in enumerate(records):
        turns, wanted = split_turns(record)
        if any(wanted):
            execute = RecordedResults(record) if simulate is None else make_simulated(simulate, record, seconds)
            asked.append((number, record, wanted, Dialogue(record.id, turns, execute)))
    asked = asked[share[0] :: share[1]]
    run_dialogues(answerer, [dialogue for *_, dialogue in asked], progress=progress)
    outcomes = []
    for number, record, wanted, dialogue in asked:
        verdict = judge_turns(dialogue.steps, wanted)
        joined = join_answers(dialogue)
        outcomes.append(
            {
                "case": first + number,
                "record": number,
                "record_id": record.id,
                "turn": 0,
                "kind": CONVERSATION,
                "prompt": {
                    "user": next(one["content"] for one in record.messages if one["role"] == "user"),
                    "tools": [tool["function"]["name"] for tool in record.tools],
                    "results": [],
                },
                "gold": {"calls": [call for calls in wanted for call in calls], "text": "", "carried": []},
                **joined,
                "correct": verdict["right"],
                "outcome": {**verdict, "steps": describe_steps(dialogue.steps)},
            }
        )
    return outcomes


def split_turns(record: Record) -> tuple[list[Turn], list[list[Call]]]:
    """Split a record at its user's messages: beginnings of turns, and the calls that it makes in each.

    What stands before the first user's message is part of the first beginning. A last message of the user's that the
    record does not answer is no turn; without a user's message there is none.
    """
    turns: list[Turn] = []
    wanted: list[list[Call]] = []
    waiting: list[dict[str, Any]] = []
    for message in record.messages:
        if message["role"] not in ("assistant", "tool"):
            waiting.append(message)
        elif message["role"] == "assistant" and any(one["role"] == "user" for one in waiting):
            turns.append(Turn(waiting, record.tools))
            wanted.append([])
            waiting = []
        elif not turns:
            waiting.append(message)
        if wanted and message["role"] == "assistant":
            wanted[-1] += [
                {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
                for call in message.get("tool_calls") or []
            ]
    return turns, wanted
