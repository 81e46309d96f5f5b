"""Calls of a record, held to the schemas of the tools that it offers: the same check for verify and for training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from kd.records.checks import ArgumentsError, DataError, UnknownToolError
from kd.records.columns import holds_null, holds_whole_fraction, restore_integers
from kd.toolcalls.json_scan import TextCall
from kd.toolcalls.registry import ToolRegistry
from kd.toolcalls.text.text_calls import find_mentions, read_text_calls, split_text_calls

Message = dict[str, Any]


class Judged(NamedTuple):
    """Calls as the tools' schemas see them."""

    refusal: DataError | None  # a tool that is not offered, or arguments that its schema forbids by the letter
    problems: tuple[str, ...] = ()  # arguments that a schema does not list, and does not forbid either
    num_unchecked: int = 0  # calls of records that offer no tools, of names that no registry has


def list_text_calls(messages: list[Message], tools: list[dict]) -> Iterator[tuple[int, list[TextCall]]]:
    """Yield the calls in the text of each assistant message without `tool_calls`, where there are any."""
    for index, message in enumerate(messages):
        silent = message["role"] != "assistant" or message.get("tool_calls")
        if calls := [] if silent else read_text_calls(message["content"].strip(), tools):
            yield index, calls


def list_calls(messages: list[Message], tools: list[dict]) -> list[tuple[int, str, dict]]:
    """List the calls of all turns, those in texts last: (message, name, arguments)."""
    made = [(index, call["function"]) for index, m in enumerate(messages) for call in m.get("tool_calls", ())]
    found = [(index, function["name"], function["arguments"]) for index, function in made]
    written = list_text_calls(messages, tools)
    return found + [(index, call.name, call.arguments) for index, calls in written for call in calls]


def judge_calls(messages: list[Message], tools: list[dict], where: str, given: ToolRegistry | None = None) -> Judged:
    """Hold every call to its tool; `where` opens the refusal's message.

    given: tools for a record that offers none, whose every call must then be one of theirs; by default the six of
        kd/toolcalls/default_tools.py, and a call of another name is not checked.
    """
    try:
        registry = ToolRegistry(tools) if tools else given or _default_tools()
    except ValueError as error:
        return Judged(ArgumentsError(f"{where}: tools: {error}"))
    problems: list[str] = []
    num_unchecked = 0
    for index, name, arguments in list_calls(messages, tools):
        spot = f"messages[{index}]: "
        if name not in registry and not tools and given is None:
            num_unchecked += 1
            continue
        try:
            wrong = registry.validate_call(name, arguments)
            forbidden = registry.validate_call(name, arguments, closed=False) if wrong else []
        except ValueError as error:
            return Judged(ArgumentsError(f"{where}: {spot}{error}"), tuple(problems), num_unchecked)
        if forbidden:
            kind = ArgumentsError if name in registry else UnknownToolError
            return Judged(kind(f"{where}: {spot}{'; '.join(forbidden)}"), tuple(problems), num_unchecked)
        problems += [spot + problem for problem in wrong]
    return Judged(None, tuple(problems), num_unchecked)


def note_text_calls(messages: list[Message], tools: list[dict]) -> tuple[str, ...]:
    """Name the notes (kd.records.conversation.NOTES) on the calls in texts: those read, and those that are not."""
    read = dict(list_text_calls(messages, tools))
    return ("read",) * bool(read) + ("unread",) * any(_find_unread(messages, tools, read))


def find_unread(messages: list[Message], tools: list[dict]) -> Iterator[tuple[int, str]]:
    """Yield the message and the text of everything in the shape of a call that is trained as prose.

    A turn without `tool_calls` that results follow is one, where no call is read in its text.
    """
    return _find_unread(messages, tools, dict(list_text_calls(messages, tools)))


def _find_unread(
    messages: list[Message], tools: list[dict], read: dict[int, list[TextCall]]
) -> Iterator[tuple[int, str]]:
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("tool_calls"):
            continue
        text, calls = message["content"].strip(), read.get(index, [])
        mentions = find_mentions(text, tools, calls)
        yield from ((index, text[start:end]) for start, end in mentions)
        answered = index + 1 < len(messages) and messages[index + 1]["role"] == "tool"
        if answered and not calls and not mentions:
            yield index, text


def rewrite_text_calls(messages: list[Message], tools: list[dict], where: str) -> tuple[list[Message], list[str]]:
    """Make `tool_calls` of the calls in the text of turns that have none: (messages, names of NOTES).

    Raises:
        DataError: text stands between or after the calls, where the chat format has no place for it.
    """
    rewritten: list[Message] = []
    read = dict(list_text_calls(messages, tools))
    for index, message in enumerate(messages):
        if calls := read.get(index):
            before = split_text_calls(message["content"].strip(), calls)
            if before is None:
                raise DataError(
                    f"{where}: messages[{index}]: text between or after its calls, which tool_calls have no place for; "
                    "remove it, or set data.rewrite_calls: false"
                )
            functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
            made_calls = [{"type": "function", "function": function} for function in functions]
            message = {**message, "content": before, "tool_calls": made_calls}
        rewritten.append(message)
    return rewritten, ["rewritten"] * (rewritten != messages)


def mend_arguments(messages: list[Message], tools: list[dict]) -> tuple[list[Message], list[str]]:
    """Undo what a columnar table does to arguments, by their tools' schemas: (messages, names of NOTES).

    Nulls that the schema forbids are left out, and whole fractions (3.0) are integers where it takes no other number.
    """
    given = [call["function"]["arguments"] for m in messages for call in m.get("tool_calls", ())]
    has_nulls, has_fractions = any(map(holds_null, given)), any(map(holds_whole_fraction, given))
    if not has_nulls and not has_fractions:
        return messages, []
    try:
        registry = ToolRegistry(tools) if tools else _default_tools()
        without = _change_arguments(messages, registry.drop_nulls) if has_nulls else messages
    except ValueError:  # a broken schema, which `judge_calls` names
        return messages, []
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in registry}
    restored = _change_arguments(without, lambda name, value: restore_integers(value, schemas.get(name)))
    # a fraction and its integer are equal values, so that they are told apart as text
    changed = has_fractions and json.dumps(restored) != json.dumps(without)
    return restored, ["nulls"] * (without != messages) + ["integers"] * changed


def _change_arguments(messages: list[Message], change: Callable[[str, dict], dict]) -> list[Message]:
    def changed(call: dict) -> dict:
        function = call["function"]
        return {**call, "function": {**function, "arguments": change(function["name"], function["arguments"])}}

    return [
        {**message, "tool_calls": list(map(changed, message["tool_calls"]))} if message.get("tool_calls") else message
        for message in messages
    ]


@cache
def _default_tools() -> ToolRegistry:
    return ToolRegistry.default()
