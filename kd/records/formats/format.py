"""Record formats: one a file, registered in kd.config.registries.FORMATS with the rule that detects it.

    chat      {"messages": [...], "tools": [...]}: ours, and OpenAI's fine-tuning format
    chatml    {"text": "<|im_start|>system\\n...<|im_end|>..."}: Hermes and Qwen text
    sharegpt  {"conversations": [{"from": "human", "value": ...}, ...], "tools": "[...]"}
    xlam      {"query": ..., "tools": [...], "answers": [...]}: xLAM, APIGen
    bfcl      {"question": ..., "function": [...]}, the truth joined from the possible_answer file
    flat      {"prompt": ..., "teacher_text": ...}: the first system's record

A converter changes the format and nothing else. What it does not understand it refuses, naming the field. To add one:

    FORMATS.register("mine", Format(detect=lambda data: "dialogue" in data, convert=from_mine))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kd.config.registries import FORMATS
from kd.records.checks import DataError, decode_json

_KEPT = ("id", "quality", "caws", "meta")
TOOL_KEYS = ("tools", "functions", "tool_defs")  # the last: files of rollouts, as verifiers writes them


class Format(NamedTuple):
    """A format that records come in.

    Args:
        detect: whether a record's fields show this format.
        convert: (data, "file:line") -> {"messages", "tools"} in the chat format, not yet checked; raises DataError
            that names the field which the format does not allow.
        order: formats are asked in ascending order, and among equals as registered; the built-in ones have 0 to 50.
    """

    detect: Callable[[dict], bool]
    convert: Callable[[dict, str], dict]
    order: int = 100


def detect_format(data: dict) -> str:
    """Return the name of the format that a record's fields show; `chat` where they show none."""
    formats = sorted(((name, FORMATS[name]) for name in FORMATS.names()), key=lambda item: item[1].order)
    return next((name for name, format in formats if format.detect(data)), "chat")


def to_chat(data: dict, where: str, format: str | None = None) -> dict:
    """Convert a record to {"messages", "tools", "id", "quality", "caws", "meta"}, not yet checked
    (kd.records.record.parse_record).

    Raises:
        DataError: names the field that the format does not allow; or no format has that name.
    """
    name = format or detect_format(data)
    if name not in FORMATS:
        raise DataError(f"{where}: no format of records is called {name!r}; there are {', '.join(FORMATS.names())}")
    kept = {key: data[key] for key in _KEPT if data.get(key) is not None}
    if name != "chat":
        where = f"{where}: as {name}"
    return {**kept, **FORMATS[name].convert(data, where)}


def find_tools(data: dict) -> Any:
    """Return what a record declares as tools, under any of their names; None where it declares none."""
    return next((data[name] for name in TOOL_KEYS if data.get(name)), None)


def read_tools(value: Any, where: str) -> list[dict]:
    """Read declarations in the chat format from a list, one declaration, or JSON text of either.

    None and "" are none.
    """
    if isinstance(value, str):
        value = decode_json(value, where) if value.strip() else []
    value = [value] if isinstance(value, dict) and ("name" in value or "function" in value) else value
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where}: a list of function declarations is needed")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]


def read_calls(value: Any, where: str) -> list[dict]:
    """Read calls in the chat format from JSON text, one call, or a list.

    A call is {"name", "arguments"}, bare or under "function".
    """
    value = decode_json(value, where) if isinstance(value, str) else value
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: a call is an object with name and arguments")
        arguments = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls
