"""Parts of a record that its rendering must hold, for a template may leave any of them out without a word.

    tools      each tool on offer is named in the prompt of the first turn after a user's words, if only by the data
               itself, in its system prompt. A template that shows none of them (DeepSeek's own: who serves the model
               writes them into the system prompt) is taken, and told; one that shows some is refused
    messages   what a user, a tool or the system says is in the prompt of the turn after it, outside of earlier turns;
               what a template leaves out later is missing at inference as well
    answers    the text of a turn without calls is in it
    calls      a turn's calls are read back from it as evaluation reads a generated answer's, in the template's syntax

A text may be written trimmed, indented or as a JSON string: it is there if it stands there so, or nine tenths of its
words do. Reading calls back takes time, so calls whose values any syntax can write are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.beginnings import Beginnings
from kd.rendering.call_syntax import CallSyntaxError, find_syntax
from kd.toolcalls.compare import same_calls_in_order
from kd.toolcalls.json_values import show_json
from kd.toolcalls.text.text_calls import offered_names

Turns = list[tuple[int, int, int]]  # index of an assistant message, first character, end

_WORD = re.compile(r"\w+")
_ENOUGH = 0.9  # of a text's words
_PLAIN = re.compile(r"(?!(?i:null|none|true|false|nan|inf|infinity)\Z)[^\W\d_][\w.:/@-]*(?: [\w.:/@-]+)*")


def check_sequence(beginnings: Beginnings, text: str, turns: Turns) -> bool:
    """Check a whole conversation, with all of its turns; tell whether tools are offered and none of them is shown.

    Raises:
        DataError: a tool, a message, an answer or a call is not written; names it.
    """
    record = beginnings.record
    first = next((index for index, *_ in turns if _is_asked(record, index)), turns[0][0])
    are_unseen = _check_tools(beginnings, first, beginnings.prompts([first - beginnings.merged])[0])
    done = 0
    for index, start, end in turns:
        _check_system(record, range(_find_start(record, index), index), text)
        _check_context(record, index, text[done:start])
        _check_answer(record, index, text[start:end])
        _check_calls(record, index, text[start:end], beginnings.tokenizer)
        done = end
    return are_unseen


def check_turn(beginnings: Beginnings, text: str, turn: tuple[int, int, int]) -> bool:
    """Check one turn, rendered after its prompt; as `check_sequence`."""
    index, start, end = turn
    are_unseen = check_prompt(beginnings, index, text[:start])
    _check_answer(beginnings.record, index, text[start:end])
    _check_calls(beginnings.record, index, text[start:end], beginnings.tokenizer)
    return are_unseen


def check_prompt(beginnings: Beginnings, index: int, prompt: str) -> bool:
    """Check what the model sees before it writes messages[index] of the record; as `check_sequence`."""
    record = beginnings.record
    are_unseen = _is_asked(record, index) and _check_tools(beginnings, index, prompt)
    start, new = _find_start(record, index), prompt
    if start:
        try:
            (through,) = beginnings.through([start - beginnings.merged])
        except DataError:  # no conversation that this template takes ends there
            through = ""
        new = prompt[_count_shared(prompt, through) :]
    _check_system(record, range(index), prompt)
    _check_context(record, index, new)
    return are_unseen


def _is_asked(record: Record, index: int) -> bool:
    """Tell whether a user speaks before messages[index]: some templates write the tools before a user's words alone."""
    return any(message["role"] == "user" for message in record.messages[:index])


def _find_start(record: Record, index: int) -> int:
    """Find the first message after the turn before messages[index]."""
    while index and record.messages[index - 1]["role"] != "assistant":
        index -= 1
    return index


def _count_shared(one: str, other: str) -> int:
    """Count the characters at the beginning of two long texts that are the same, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _check_tools(beginnings: Beginnings, index: int, prompt: str) -> bool:
    record = beginnings.record
    names = offered_names(record.tools)
    absent = [name for name in names if name not in prompt and _quote(name) not in prompt]
    # A name may stand there as a user's word, or in an earlier call.
    if 0 < len(absent) < len(names) and _render_without_tools(beginnings, index) != prompt:
        raise DataError(
            f"record {record.id}: tools: the chat template leaves {', '.join(absent[:5])} out of the prompt, and shows "
            "others, so the model would be asked to call what it never sees: use a template that writes all tools, or "
            "declare them in the system prompt"
        )
    return bool(absent)


def _render_without_tools(beginnings: Beginnings, index: int) -> str:
    try:
        bare = Beginnings(replace(beginnings.record, tools=[]), beginnings.tokenizer)
        return bare.prompts([index - beginnings.merged])[0]
    except DataError:  # it takes no conversation without tools
        return ""


def _check_system(record: Record, places: range, text: str) -> None:
    """Check the system prompts among messages: some templates write them elsewhere than they stand."""
    for at in places:
        message = record.messages[at]
        if message["role"] == "system" and not _is_written(message["content"].strip(), text):
            raise DataError(
                f"record {record.id}: messages[{at}]: the chat template leaves this system prompt out of the "
                "conversation; write it into the first user message"
            )


def _check_context(record: Record, index: int, new: str) -> None:
    """Check what users and tools say between two turns, the second of which is messages[index], in the text `new`."""
    places = range(_find_start(record, index), index)
    said = [(at, record.messages[at]) for at in places if record.messages[at]["role"] != "system"]
    texts = [message["content"].strip() for _, message in said]
    for (at, message), content in zip(said, texts):
        times = sum(other.count(content) for other in texts) if content and len(texts) > 1 else 1
        if not _is_written(content, new, times):
            raise DataError(
                f"record {record.id}: messages[{at}]: the chat template leaves this {message['role']} message out "
                f"({content[:40]!r}), and the turn after it would be trained without it: use a template that writes "
                "it, or remove the record"
            )


def _check_answer(record: Record, index: int, turn: str) -> None:
    message = record.messages[index]
    if not message.get("tool_calls") and not _is_written(message["content"].strip(), turn):
        raise DataError(
            f"record {record.id}: messages[{index}]: the chat template leaves this answer out of its turn "
            f"({turn[:40]!r}): use a template that writes it, or remove the record"
        )


def _is_written(content: str, text: str, times: int = 1) -> bool:
    """Tell whether a text holds a content at least so many times, in one of the ways of this file."""
    for spelling in _spell(content):
        if found := text.count(spelling):
            return found >= times
    words = set(_WORD.findall(content))
    return not content or bool(words) and sum(word in text for word in words) >= _ENOUGH * len(words)


def _spell(content: str) -> Iterator[str]:
    """Yield a text as it is, and as a JSON string has it, of Unicode and of ASCII."""
    if content:
        yield content
        yield _quote(content)
        yield json.dumps(content)[1:-1]


def _quote(content: str) -> str:
    return json.dumps(content, ensure_ascii=False)[1:-1]


def _check_calls(record: Record, index: int, turn: str, tokenizer: Any) -> None:
    """Read a turn's calls back, where a value is not plain."""
    functions = [call["function"] for call in record.messages[index].get("tool_calls", ())]
    given = [item for function in functions for item in function["arguments"].items()]
    if all(key.isidentifier() and _is_plain(value) for key, value in given):
        return
    try:
        reader = find_syntax(tokenizer)
    except CallSyntaxError:  # verify says so of the template
        return
    parsed = reader.parse(turn, record.tools)
    if parsed.problems or not same_calls_in_order(parsed.calls, [_strip_call(function) for function in functions]):
        found = f"a problem ({parsed.problems[0]})" if parsed.problems else show_json(parsed.calls)
        raise DataError(
            f"record {record.id}: messages[{index}]: the calls are not read back from the turn as the chat template "
            f"writes them ({turn.strip()[:80]!r} reads as {found}), so no server could run them: a value holds what "
            f"the syntax `{reader.syntax}` of this template does not escape; change the value, or use another template"
        )


def _strip_call(function: dict[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function["arguments"]}


def _is_plain(value: object) -> bool:
    """Tell whether every syntax writes a value so that it is read back: words that are no literal, a number."""
    return isinstance(value, (int, float)) or isinstance(value, str) and _PLAIN.fullmatch(value) is not None
