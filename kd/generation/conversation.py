"""Conversation: a task asked turn by turn, its calls executed, until the teacher has answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kd.config.sections.generation import Answers, Sampling
from kd.endpoint.calls import read_calls
from kd.generation.broker import FAILURE, Broker
from kd.generation.prompts.task import Task
from kd.generation.teacher import Question, Teacher
from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.registry import ToolRegistry


class Turn(NamedTuple):
    """Answer of the teacher: where it stands in the messages, its text, its calls as read."""

    at: int
    text: str
    calls: ParsedCalls


@dataclass
class Played:
    """Conversation as it went.

    Attributes:
        messages: from the system message to the last answer, as a record has them.
        turns: the teacher's.
        problem: reason why it is dropped; "" where it is whole.
        notes: counts of what was cut out or mended in it.
        usage: prompt and completion tokens of its answers, as far as the server told them.
    """

    messages: list[dict[str, Any]]
    turns: list[Turn] = field(default_factory=list)
    problem: str = ""
    notes: Counter[str] = field(default_factory=Counter)
    usage: list[int] = field(default_factory=lambda: [0, 0])


class Player:
    """Plays tasks with one teacher and one broker."""

    def __init__(self, teacher: Teacher, broker: Broker, sampling: Sampling, answers: Answers):
        self._teacher, self._broker, self._sampling, self._answers = teacher, broker, sampling, answers

    async def play(self, task: Task, seed: int) -> Played:
        """Play one task; `seed` is that of its draws.

        Raises:
            BudgetReached, Refused, Failed, EndpointError: as `Teacher.ask`.
        """
        played, state = Played(list(task.messages)), {}
        tools = ToolRegistry(task.tools)
        fails, num_calls = task.fails, 0
        for followup in (None, *task.followups):
            if followup is not None:
                played.messages.append({"role": "user", "content": followup})
            for round_number in range(self._sampling.max_rounds + 1):
                calls = await self._take_turn(played, task, tools, seed)
                if played.problem or not calls:
                    break
                if round_number == self._sampling.max_rounds:
                    played.problem = "still calling after max_rounds"
                    break
                ids = [f"call{num_calls + at:05}" for at in range(len(calls))]  # nine characters: some templates want
                played.messages[-1]["tool_calls"] = [
                    {"id": name, "type": "function", "function": call} for name, call in zip(ids, calls)
                ]
                for name, call in zip(ids, calls):
                    place = [task.key, seed, num_calls]
                    num_calls += 1
                    if fails:
                        fails, result = fails - 1, FAILURE
                    else:
                        result = await self._broker.execute(call, task, state, place)
                    played.messages.append(
                        {"role": "tool", "tool_call_id": name, "name": call["name"], "content": result}
                    )
            if played.problem:
                break
        return played

    async def _take_turn(self, played: Played, task: Task, tools: ToolRegistry, seed: int) -> list[dict[str, Any]]:
        """Ask for one turn, add it, and return its calls; where it cannot be used, played.problem says why."""
        said = await self._teacher.ask(Question(played.messages, task.tools, seed, task.caws))
        if said.usage is not None:
            played.usage = [one + other for one, other in zip(played.usage, said.usage)]
        if said.had_reasoning:
            played.notes["reasoning_cut"] += 1
            if self._answers.reasoning == "refuse":
                played.problem = "reasoning"
                return []
        chat = said.chat
        if not chat.finished:
            played.problem = "cut at max_new_tokens"
            return []
        parsed = read_calls(chat, task.tools)
        calls, problem = self._choose(parsed, tools, played)
        text = parsed.text_outside if parsed.spans else chat.text.strip()
        if not problem and not calls and not text:
            problem = "empty answer"
        if problem:
            played.problem = problem
            return []
        played.turns.append(Turn(len(played.messages), chat.text, parsed))
        played.messages.append({"role": "assistant", "content": text})
        return calls

    def _choose(self, parsed: ParsedCalls, tools: ToolRegistry, played: Played) -> tuple[list[dict[str, Any]], str]:
        """Choose the calls of a turn, mended ones where that is asked for: (calls, reason to drop)."""
        calls = parsed.calls
        if parsed.problems:
            played.notes["broken_calls"] += len(parsed.problems)
            if not self._answers.repair or not parsed.valid_after_repair:
                return [], "broken call"
            calls = parsed.repaired_calls
            played.notes["repaired_calls"] += len(parsed.problems)
        for call in calls:
            if call["name"] not in tools:
                return [], "call of a tool that is not on offer"
            if tools.validate_call(call["name"], call["arguments"]):
                return [], "arguments that the schema forbids"
        return calls, ""
