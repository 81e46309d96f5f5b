"""Records: one JSON line each, in the chat format everyone uses, checked as they are read.

    {"id": "...", "messages": [...], "tools": [...], "quality": 0.9, "caws": {...}, "meta": {...}}

`messages` hold roles system, user, assistant (with `tool_calls`, arguments as an object) and tool; `tools` are
function declarations with JSON Schemas. Chain-of-thought is refused: this trainer never learns a teacher's private reasoning.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterable, Iterator

ROLES = ("system", "user", "assistant", "tool")
COT_FIELDS = frozenset({"reasoning_content", "teacher_reasoning_content", "teacher_reasoning", "reasoning", "thinking"})
COT_TAG = re.compile(r"</?think(ing)?>", re.IGNORECASE)  # some models write the closing one alone: their prompt holds the opening


class DataError(ValueError):
    """A record or data file that cannot be used; the message names the file, the line, the field and the remedy."""


@dataclass(frozen=True)
class Record:
    """One conversation. `quality` in [0, 1] weighs it; `caws` and `meta` are carried along."""

    id: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    quality: float | None = None
    caws: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def check_no_reasoning(value: Any, where: str) -> None:
    """Raises DataError where a chain-of-thought field, or a <think> block in a content, is found at any depth of messages."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in COT_FIELDS and inner not in (None, "", [], {}):
                raise DataError(f"{where}.{key}: chain-of-thought is never trained on; remove the field")
            if key == "content" and isinstance(inner, str) and (tag := COT_TAG.search(inner)):
                raise DataError(f"{where}.content: holds a {tag[0]} block; remove the reasoning from the text")
            if key != "arguments":
                check_no_reasoning(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_no_reasoning(inner, f"{where}[{index}]")


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{where}: a tool call needs function.name and function.arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's wire form
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise DataError(f"{where}.function.arguments: not JSON ({error})") from None
    if not isinstance(arguments, dict):
        raise DataError(f"{where}.function.arguments: an object is needed, not {type(arguments).__name__}")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def parse_record(data: Any, where: str) -> Record:
    """A checked Record from a decoded JSON line; `where` ("file:line") opens every message.

    Raises:
        DataError: names the field and what to do.
    """
    if not isinstance(data, dict):
        raise DataError(f"{where}: a record is a JSON object, not {type(data).__name__}")
    for key in data:
        if key in COT_FIELDS and data[key] not in (None, "", [], {}):
            raise DataError(f"{where}: {key}: chain-of-thought is never trained on; remove the field")
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages: a non-empty list is needed")
    check_no_reasoning(messages, f"{where}: messages")
    clean = []
    for index, message in enumerate(messages):
        spot = f"{where}: messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"{spot}: role must be one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), (str, type(None))):
            raise DataError(f"{spot}.content: text is needed, not {type(message['content']).__name__}")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or (calls and message["role"] != "assistant"):
            raise DataError(f"{spot}.tool_calls: a list, on assistant messages alone")
        message = {**message, "content": message.get("content") or ""}
        message.pop("tool_calls", None)
        if calls:
            message["tool_calls"] = [_call(c, f"{spot}.tool_calls[{i}]") for i, c in enumerate(calls)]
        clean.append(message)
    if not any(m["role"] == "assistant" for m in clean):
        raise DataError(f"{where}: messages: no assistant message, so nothing to train on")
    tools = data.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise DataError(f"{where}: tools: a list of function declarations is needed")
    tools = [t if "function" in t else {"type": "function", "function": t} for t in tools]
    quality = data.get("quality")
    if quality is not None and not (isinstance(quality, (int, float)) and 0 <= quality <= 1):
        raise DataError(f"{where}: quality: a number in [0, 1] is needed, not {quality!r}")
    return Record(str(data.get("id") or where), clean, tools, quality, data.get("caws"), data.get("meta") or {})


def parse_line(line: bytes, where: str) -> Record:
    """A checked Record from one line of a JSONL file; as `parse_record`."""
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{where}: not a line of JSON in UTF-8: {error}") from None
    return parse_record(data, where)


def read_records(path: str | Path) -> Iterator[Record]:
    """Streams the records of a JSONL file, one line in memory at a time.

    Raises:
        DataError: the file is missing or empty, or a line is no record; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such data file; check data.* in the config (paths are relative to where you start the run)")
    seen = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                seen += 1
                yield parse_line(line, f"{path}:{number}")
    if not seen:
        raise DataError(f"{path}: holds no record")


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes records as JSONL and returns their number."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as out:
        for count, record in enumerate(records, 1):
            out.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
    return count
