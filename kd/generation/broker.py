"""Broker: executes the teacher's calls, so that it can go on; the same call always gets the same result.

Recorded fixtures come first, then what the given conversation itself records for an equal call, a function of the
user's, and a second endpoint that plays the tools. Without any of them the result is drawn from the tool's `returns` (a
JSON Schema beside its `parameters`), with a seed made of the call, or says that it is done.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from kd.endpoint.chat import Chat
from kd.errors import SpanwiseError
from kd.evaluation.conversations.results import Simulate, SimulatorError, list_results, start_simulator
from kd.generation.journal import Journal, name_value
from kd.generation.prompts.schema_values import draw
from kd.generation.prompts.task import Task
from kd.generation.teacher import Question, Teacher
from kd.records.checks import DataError, decode_json
from kd.records.lines import read_lines
from kd.records.record import Record
from kd.toolcalls.json_values import as_text, same_json

Call = dict[str, Any]  # {"name", "arguments"}
FAILURE = json.dumps({"error": "temporarily unavailable, try again"})
_DONE = json.dumps({"status": "done"})
_INSTRUCTIONS = (
    "You play a tool. Its declaration:\n{tool}\nYou are given the arguments of a call. Answer with the tool's result "
    "as one JSON value, invented where it must be, and with nothing else."
)


class BrokerError(SpanwiseError, ValueError):
    """Broker that cannot be set up."""


class Fixtures:
    """Recorded results. Raises DataError where the file holds something else."""

    def __init__(self, path: Path):
        self._exact: dict[str, list[tuple[Any, str]]] = {}
        self._any: dict[str, str] = {}
        for line in read_lines(path):
            where = f"{path}:{line.number}"
            found = line.fault or decode_json(line.raw, where)
            if not isinstance(found, dict) or not isinstance(found.get("name"), str) or "result" not in found:
                raise DataError(f"{where}: broker.fixtures: {{name, arguments, result}} is needed: write these fields")
            result = as_text(found["result"])
            if found.get("arguments") is None:
                self._any[found["name"]] = result
            else:
                self._exact.setdefault(found["name"], []).append((found["arguments"], result))

    def find(self, call: Call) -> str | None:
        """Find the result of a call; None where none is recorded."""
        for arguments, result in self._exact.get(call["name"], ()):
            if same_json(arguments, call["arguments"]):
                return result
        return self._any.get(call["name"])


class Function(NamedTuple):
    """Function of the user's that gives results: its place, itself, and the seconds that one call of it may take."""

    name: str
    simulate: Simulate
    seconds: float


class Broker:
    """Executor of calls.

    Args:
        seed: of simulated results.
        fixtures, function, player: where results come from, the first that is given and has one.
    """

    def __init__(
        self,
        seed: int,
        journal: Journal,
        *,
        fixtures: Fixtures | None = None,
        function: Function | None = None,
        player: Teacher | None = None,
    ):
        self._seed, self._journal = seed, journal
        self._fixtures, self._function, self._player = fixtures, function, player

    async def execute(self, call: Call, task: Task, state: dict[str, Any], place: list[Any]) -> str:
        """Return a call's result as text.

        Args:
            state: of this conversation, for the user's function.
            place: JSON values that tell this call from all others.

        Raises:
            SpanwiseError: as `Teacher.ask`, where a second endpoint is asked.
            BrokerError: the tool's `returns` gives no result, or the user's function none in its time.
        """
        if self._fixtures is not None and (found := self._fixtures.find(call)) is not None:
            return found
        if task.gold is not None and (found := _find_recorded(task.gold, call)) is not None:
            return found
        if self._function is not None:
            key = name_value("result", place, call)
            kept = self._journal.find("result", key)
            if kept is None:
                kept = await _run(self._function, call, task, state)
                self._journal.keep("result", key, kept)
            return kept
        tool = next((one for one in task.tools if one["function"]["name"] == call["name"]), {"function": {}})
        if self._player is not None:
            said = await self._player.ask(_make_question(tool, call, self._seed))
            return as_text(_read_result(said.chat))
        returns = tool["function"].get("returns")
        if not isinstance(returns, dict):
            return _DONE
        generator = random.Random(name_value(self._seed, call))
        try:
            return as_text(draw(returns, generator, optional=1.0))
        except ValueError as error:
            raise _refuse_returns(task.source, call["name"], error) from error


def _find_recorded(messages: list[dict[str, Any]], call: Call) -> str | None:
    """Find the result of an equal call in a conversation; None where it has none."""
    recorded = list_results(Record("", messages))
    return next((result for other, result in recorded if result is not None and same_json(other, call)), None)


async def _run(function: Function, call: Call, task: Task, state: dict[str, Any]) -> str:
    record = Record(task.key, task.gold or task.messages, task.tools)
    future = start_simulator(function.simulate, call, record, state)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), function.seconds)
    except SimulatorError as error:
        raise BrokerError(f"broker.function: {function.name}: {error}") from error
    except asyncio.TimeoutError:
        raise BrokerError(
            f"broker.function: {function.name} has no result of a call of {call['name']!r} within "
            f"{function.seconds:g} s: mend it, or raise broker.timeout_seconds; what was answered is kept"
        ) from None


def _make_question(tool: dict[str, Any], call: Call, seed: int) -> Question:
    system = _INSTRUCTIONS.format(tool=json.dumps(tool["function"], ensure_ascii=False))
    words = json.dumps(call["arguments"], ensure_ascii=False)
    return Question([{"role": "system", "content": system}, {"role": "user", "content": words}], [], seed)


def _read_result(chat: Chat) -> Any:
    text = chat.text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_returns(tools: list[dict[str, Any]], where: str) -> None:
    """Check that results can be drawn of every tool's `returns`; `where` opens the message.

    Raises:
        BrokerError: names the tool.
    """
    for tool in tools:
        function = tool["function"]
        if isinstance(returns := function.get("returns"), dict):
            try:
                draw(returns, random.Random(0), optional=1.0)
            except ValueError as error:
                raise _refuse_returns(where, function["name"], error) from error


def _refuse_returns(where: str, name: str, error: ValueError) -> BrokerError:
    return BrokerError(f"{where}: tool {name!r}: returns: {error}: give it `examples`")
