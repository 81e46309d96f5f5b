"""Dialogues: a model is asked turn by turn, and its own calls are executed until it stops calling.

All dialogues go on together, one step of each at a time, so that a local model answers them in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kd.evaluation.answerers.answer import Answer, Answerer, Progress, Prompt
from kd.evaluation.bfcl_rules.reading import read_as_bfcl
from kd.records.checks import DataError

Call = dict[str, Any]  # {"name", "arguments"}
Execute = Callable[[list[Call]], "list[str] | None"]

MOST_STEPS = 20


class Turn(NamedTuple):
    """Beginning of a turn: the messages before its first answer, and the tools that are offered from here on."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


class Step(NamedTuple):
    """Answer of a turn, with the calls that were executed and their results; both are empty in a turn's last step."""

    answer: Answer
    calls: list[Call]
    results: list[str]


class Dialogue:
    """One conversation.

    A step with no call that can be read ends its turn. A broken block beside calls is left out, and is in the answer's
    problems.

    Args:
        name: of it, for messages.
        turns: beginnings, in order.
        execute: calls -> a text for each, or None where nothing follows: that ends the dialogue.
        most_steps: with calls, of one turn; one with more ends the dialogue.

    Attributes:
        steps: of each turn that was asked.
        problem: why it ended early; "" where it did not.
    """

    def __init__(self, name: str, turns: Sequence[Turn], execute: Execute, *, most_steps: int = MOST_STEPS):
        self.name = name
        self.steps: list[list[Step]] = []
        self.problem = ""
        self._turns, self._execute, self._most_steps = list(turns), execute, most_steps
        self._messages: list[dict[str, Any]] = []
        self._num_calls = 0
        self._ended = False
        self._begin_turn()

    @property
    def prompt(self) -> Prompt | None:
        """The prompt of the next step; None where the dialogue has ended."""
        return None if self._ended else Prompt(list(self._messages), self._turns[len(self.steps) - 1].tools)

    def take(self, answer: Answer) -> None:
        """Take the answer to `prompt`, and execute its calls."""
        calls = read_as_bfcl(answer.text, answer.calls)
        if not calls:
            self.steps[-1].append(Step(answer, [], []))
            self._messages.append({"role": "assistant", "content": answer.text.strip()})
            self._begin_turn()
            return
        results = self._execute(calls)
        self.steps[-1].append(Step(answer, calls, results or []))
        if results is None:
            self._ended = True
            return
        ids = [f"call{self._num_calls + at:05}" for at in range(len(calls))]  # nine characters, as some templates want
        self._num_calls += len(calls)
        made = [{"id": name, "type": "function", "function": call} for name, call in zip(ids, calls)]
        self._messages.append({"role": "assistant", "content": answer.calls.text_outside, "tool_calls": made})
        self._messages += [
            {"role": "tool", "tool_call_id": name, "name": call["name"], "content": result}
            for name, call, result in zip(ids, calls, results, strict=True)
        ]
        if len(self.steps[-1]) > self._most_steps:
            self.stop(f"turn {len(self.steps)}: still calling after {self._most_steps} steps")

    def stop(self, problem: str) -> None:
        """End the dialogue early."""
        self.problem, self._ended = problem, True

    def _begin_turn(self) -> None:
        if len(self.steps) == len(self._turns):
            self._ended = True
            return
        self._messages += self._turns[len(self.steps)].messages
        self.steps.append([])


def run_dialogues(answerer: Answerer, dialogues: Sequence[Dialogue], *, progress: Progress | None = None) -> None:
    """Run dialogues to their ends.

    One whose next prompt the chat template refuses ends there.

    Raises:
        DataError: the template refuses every prompt of a step.
        SpanwiseError: nothing more can be asked.
    """
    while asked := [(dialogue, prompt) for dialogue in dialogues if (prompt := dialogue.prompt) is not None]:
        if progress is not None:
            progress(len(dialogues) - len(asked), len(dialogues))
        for (dialogue, _), answer in zip(asked, _ask(answerer, [prompt for _, prompt in asked]), strict=True):
            if isinstance(answer, DataError):
                dialogue.stop(str(answer))
            else:
                dialogue.take(answer)
    if progress is not None:
        progress(len(dialogues), len(dialogues))


def _ask(answerer: Answerer, prompts: list[Prompt]) -> Sequence[Answer | DataError]:
    """Ask all at once, or where one of them is refused, each by itself."""
    try:
        return answerer.answer(prompts)
    except DataError:
        if len(prompts) == 1:
            raise
    found: list[Answer | DataError] = []
    for prompt in prompts:
        try:
            found += answerer.answer([prompt])
        except DataError as error:
            found.append(error)
    refused = [one for one in found if isinstance(one, DataError)]
    if len(refused) == len(found):
        raise refused[0]
    return found
