"""Tasks of a configuration in their order, each with its system message and its working spec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.config.sections.generation import GenerationConfig
from kd.generation.prompts.compose import Composer
from kd.generation.prompts.given import GivenPrompts
from kd.generation.prompts.task import Task
from kd.hashing import hash_text
from kd.records.caws.context import extract_caws_context, format_caws_context_for_prompt, list_specs
from kd.records.checks import DataError
from kd.toolcalls.json_values import encode_json
from kd.toolcalls.registry import ToolRegistry

_FREE = {"output_dir", "spending", "extensions"}
"""Sections that do not change what a task's conversation is."""


class Source:
    """Source of the tasks; each call of `read` begins anew.

    Attributes:
        tools: of prompts.tools; None where they are not given.
        fingerprint: of all in the configuration that changes what a conversation is.

    Raises:
        DataError: a tool file, or a file of CAWS, cannot be read.
    """

    def __init__(self, config: GenerationConfig):
        self._config = config
        try:
            self.tools = ToolRegistry.load(config.prompts.tools) if config.prompts.tools else None
        except ValueError as error:
            raise DataError(f"prompts.tools: {error}") from None
        self._contexts = _read_contexts(config)
        kept = config.model_dump(exclude=_FREE | {"endpoint"}, mode="json")
        kept["prompts"] = {key: value for key, value in kept["prompts"].items() if key not in ("num", "files", "tools")}
        kept["broker"]["endpoint"] = None if config.broker.endpoint is None else config.broker.endpoint.model
        self.fingerprint = hash_text(encode_json([kept, config.endpoint.model]).decode())
        self.duplicates: Counter[str] = Counter()

    def read(self, most: int | None = None) -> Iterator[Task]:
        """Yield the tasks, at most so many."""
        prompts = self._config.prompts
        given = (self.tools, prompts, self._config.splits, self._config.seed)
        if prompts.files is not None:
            read: GivenPrompts | Composer = GivenPrompts(*given)
            tasks = read.read()
        else:
            assert self.tools is not None and prompts.num is not None, "a conflict of the configuration"
            read = Composer(self.tools, *given[1:])
            tasks = read.compose(prompts.num if most is None else min(most, prompts.num))
        for index, task in enumerate(tasks):
            if index == most:
                break
            yield self._finish(task, index)
        self.duplicates = read.duplicates

    def _finish(self, task: Task, index: int) -> Task:
        """Put the system message and the working spec before a task's messages."""
        own = task.messages[0]["content"] if task.messages[0]["role"] == "system" else self._config.prompts.system
        context, text = self._contexts[index % len(self._contexts)] if self._contexts else (None, None)
        system = "\n\n".join(filter(None, [own, text]))
        rest = [message for message in task.messages if message["role"] != "system"]
        messages = [{"role": "system", "content": system}, *rest] if system else rest
        return task._replace(messages=messages, caws=context)


def _read_contexts(config: GenerationConfig) -> list[tuple[dict[str, Any], str]]:
    """Read the contexts of config.caws, each with the text that the teacher sees."""
    if (caws := config.caws) is None:
        return []
    place = Path(caws.project)
    contexts = [extract_caws_context(place, name, date=caws.date) for name in caws.specs or list_specs(place)]
    if not contexts:
        raise DataError(f"caws.project: {place}: no spec is active: activate one, or name some in caws.specs")
    return [(context, format_caws_context_for_prompt(context, caws.form)) for context in contexts]
