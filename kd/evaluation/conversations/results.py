"""Results of a model's own calls: the record's, or those of a simulator that the user gives."""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from itertools import takewhile
from typing import Any

from kd.config.registries import import_extension
from kd.errors import SpanwiseError, first_line, text_of
from kd.evaluation.conversations.dialogue import Call, Execute
from kd.records.record import Record
from kd.toolcalls.json_values import as_text, same_json

Simulate = Callable[[Call, Record, dict[str, Any]], Any]
"""(call {"name", "arguments"}, record, state of this conversation, {} at its start) -> text or a JSON value.

What it raises is the call's result, as an error.
"""

NOT_RECORDED = "Error: no such result is recorded."
SIMULATOR_SECONDS = 60.0  # of one call, by default


class SimulatorError(SpanwiseError, ValueError):
    """Simulator that cannot be used, ends the program, or takes too long."""


def load_simulator(name: str) -> Simulate:
    """Load a simulator by its place, module:function.

    Raises:
        SimulatorError: there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise SimulatorError(f"--simulator: {name!r} is no module:function, as in my_tools:simulate")
    if (problem := import_extension(module)) is not None:
        raise SimulatorError(f"--simulator: {name}: {problem}")
    found = getattr(sys.modules[module], function, None)
    if not callable(found):
        raise SimulatorError(f"--simulator: {name}: {module} has no function of that name")
    try:
        inspect.signature(found).bind("call", "record", "state")
    except TypeError as error:  # each call would be told it as its result
        raise SimulatorError(f"--simulator: {name} does not take (call, record, state): {error}") from error
    except ValueError:  # some functions in C do not say what they take
        pass
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        raise SimulatorError(f"--simulator: {name} is async, or yields: have it return a text or a JSON value")
    return found


def run_simulator(simulate: Simulate, call: Call, record: Record, state: dict[str, Any]) -> str:
    """Ask a simulator for a call's result; what it changes of call and record changes nothing else.

    Raises:
        SimulatorError: it ends the program.
    """
    try:
        text = as_text(simulate(copy.deepcopy(call), copy.deepcopy(record), state))
        return text.encode(errors="replace").decode()  # half a character is none that a tokenizer takes
    except Exception as error:  # a tool that fails tells its caller
        return f"Error: {text_of(error)}"
    except BaseException as error:  # an exit, a cancelled task
        raise SimulatorError(
            f"the simulator of results ends the program ({first_line(error)}) at a call of {call['name']!r}: have it "
            "return a result, or raise an Exception"
        ) from error


def start_simulator(simulate: Simulate, call: Call, record: Record, state: dict[str, Any]) -> Future[str]:
    """Ask a simulator, as `run_simulator` does, in a thread of its own, which the program's end does not wait for."""
    future: Future[str] = Future()
    future.set_running_or_notify_cancel()  # a result that comes too late is set all the same, and read by nobody

    def work() -> None:
        try:
            future.set_result(run_simulator(simulate, call, record, state))
        except BaseException as error:  # any other would end this thread alone, and never be heard of
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def make_simulated(simulate: Simulate, record: Record, seconds: float = SIMULATOR_SECONDS) -> Execute:
    """Make an executor of a record's conversation that asks a simulator, `seconds` at most for each call.

    It raises SimulatorError where the simulator ends the program, or takes longer.
    """
    state: dict[str, Any] = {}

    def ask(call: Call) -> str:
        try:
            return start_simulator(simulate, call, record, state).result(seconds)
        except TimeoutError:
            raise SimulatorError(
                f"--simulator: it has no result of a call of {call['name']!r} within {seconds:g} s (record "
                f"{record.id}): mend it, or raise --simulator-timeout"
            ) from None

    return lambda calls: [ask(call) for call in calls]


class RecordedResults:
    """Executor that gives a call that equals one of the record's the result of that one.

    Of equal calls each gives its own result, in order, and the last one gives it again. A call that the record leaves
    without a result ends the conversation, as it ends the record.
    """

    def __init__(self, record: Record):
        self._left = list_results(record)
        self._given: list[tuple[Call, str | None]] = []

    def __call__(self, calls: list[Call]) -> list[str] | None:
        found = [self._find(call) for call in calls]
        results = [result for result in found if result is not None]
        return results if len(results) == len(found) else None

    def _find(self, call: Call) -> str | None:
        for at, (other, result) in enumerate(self._left):
            if same_json(other, call):
                self._given.append(self._left.pop(at))
                return result
        return next((result for other, result in reversed(self._given) if same_json(other, call)), NOT_RECORDED)


def list_results(record: Record) -> list[tuple[Call, str | None]]:
    """List the calls of a record with their results, which follow in the order of the calls; None where it has none."""
    pairs: list[tuple[Call, str | None]] = []
    for at, message in enumerate(record.messages):
        calls = [call["function"] for call in message.get("tool_calls") or []]
        following = takewhile(lambda other: other["role"] == "tool", record.messages[at + 1 :])
        results = [other["content"] or "" for other in following][: len(calls)]
        for function, result in zip(calls, [*results, *[None] * (len(calls) - len(results))]):
            pairs.append(({"name": function["name"], "arguments": function["arguments"]}, result))
    return pairs
