"""Prompts of files: records of any format, or {"prompt": text}, each conversation up to its first user message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from kd.config.sections.generation import Prompts, Splits
from kd.generation.prompts.duplicates import Seen
from kd.generation.prompts.splits import TRAIN, UNSEEN_TOOLS, is_held_out
from kd.generation.prompts.task import Task
from kd.records.checks import DataError, decode_json
from kd.records.files import expand
from kd.records.lines import is_header, read_lines
from kd.records.record import parse_record
from kd.toolcalls.registry import ToolRegistry


class GivenPrompts:
    """Prompts of files.

    Attributes:
        duplicates: prompts that were left out, by "equal" and "near".
    """

    def __init__(self, tools: ToolRegistry | None, prompts: Prompts, splits: Splits, seed: int):
        self._tools, self._prompts, self._splits, self._seed = tools, prompts, splits, seed
        self.duplicates: Counter[str] = Counter()

    def read(self) -> Iterator[Task]:
        """Yield the tasks, as many as prompts.num says.

        Raises:
            DataError: a line is no prompt, or there are none; names file, line and field.
        """
        seen, num = Seen(self._prompts.near_duplicates), 0
        for path in expand(self._prompts.files or ()):
            for line in read_lines(path):
                if num == self._prompts.num:
                    return
                where = f"{path}:{line.number}"
                if line.fault:
                    raise DataError(f"{where}: {line.fault}")
                data = decode_json(line.raw, where)
                if line.number == 1 and is_header(data):
                    continue  # of a copy out of the hub, or of a quarantine
                task = self._read(data, where)
                again = seen.add(task.text)
                self.duplicates[again] += bool(again)
                if not again:
                    num += 1
                    yield task
        if not num:
            raise DataError("prompts.files: no prompt in them: give others")

    def _read(self, data: Any, where: str) -> Task:
        if not isinstance(data, dict):
            raise DataError(f"{where}: a prompt is a JSON object, not {type(data).__name__}")
        if isinstance(data.get("prompt"), str) and "teacher_text" not in data:
            if not data["prompt"].strip():
                raise DataError(f"{where}: prompt: it is blank: remove the line")
            data = {**data, "messages": [{"role": "user", "content": data["prompt"]}]}
        messages = data.get("messages")
        whole, is_open = data, False
        if isinstance(messages, list):
            roles = [one.get("role") for one in messages if isinstance(one, dict)]
            is_open = "assistant" not in roles
            # the checks of a record need an answer: a stand-in is put after the prompt, and cut off again
            whole = {**data, "messages": [*messages, {"role": "assistant", "content": "-"}]} if is_open else data
        record = parse_record(whole, where)
        found = record.messages[:-1] if is_open else record.messages
        first = next((at for at, one in enumerate(found) if one["role"] == "user"), None)
        if first is None:
            raise DataError(
                f"{where}: messages: no user message, so there is nothing to ask: add one, or remove the line"
            )
        for at, one in enumerate(found):
            if one["role"] == "user" and not (one["content"] or "").strip():
                raise DataError(f"{where}: messages[{at}]: it is blank, so there is nothing to ask: remove it")
        tools = record.tools or list(self._tools or ())
        try:
            names = ToolRegistry(tools).names
        except ValueError as error:
            raise DataError(f"{where}: tools: {error}") from None
        held = any(is_held_out(name, self._splits.tools, self._seed) for name in names)
        return Task(
            found[: first + 1],
            tools,
            followups=tuple(one["content"] for one in found[first + 1 :] if one["role"] == "user"),
            gold=None if is_open else found,
            split=UNSEEN_TOOLS if held else TRAIN,
            source=where,
        )
