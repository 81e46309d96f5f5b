"""Records: one JSON object each, in the chat format everyone uses, checked as they are read.

    {"id": "...", "messages": [...], "tools": [...], "quality": 0.9, "caws": {...}, "meta": {...}}

`messages` hold roles system, user, assistant (with `tool_calls`, arguments as an object) and tool; `tools` are
function declarations with JSON Schemas. Records of other formats become this one first (kd/records/formats/).
Chain-of-thought is refused: this trainer never learns a teacher's private reasoning (kd/records/checks.py, with the
limits on size and depth).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kd.config.sections.data import RewriteCalls
from kd.records.calls import mend_arguments, note_text_calls, rewrite_text_calls
from kd.records.checks import DataError, check_no_reasoning, check_shape, decode_json
from kd.records.columns import clean_declaration, drop_null_columns
from kd.records.conversation import settle_turns
from kd.records.formats.format import to_chat
from kd.records.formats.hermes import keeping_text

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Record:
    """One conversation. `quality` in [0, 1] weighs it; `caws` and `meta` are carried along."""

    id: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    quality: float | None = None
    caws: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


class Read(NamedTuple):
    """A record, and the names of what reading changed or noticed in it (kd.records.conversation.NOTES)."""

    record: Record
    notes: tuple[str, ...] = ()


def parse_record(data: Any, where: str, format: str | None = None) -> Record:
    """Make a checked Record of a JSON value; `where` ("file:line") opens every message.

    Args:
        format: a name in kd.config.registries.FORMATS; by default found from the fields.

    Raises:
        DataError: names the field and what to do.
    """
    check_shape(data, where)
    return read_decoded(data, where, format).record


def read_decoded(data: Any, where: str, format: str | None = None, *, rewrite_calls: RewriteCalls = False) -> Read:
    """Make a checked Record of a value of `decode_json`, which has checked its shape; as `parse_record`.

    rewrite_calls: make `tool_calls` of the calls in the text of turns without them (kd/toolcalls/text/text_calls.py);
        "never": not even of Hermes' (kd/records/formats/hermes.py).
    """
    if not isinstance(data, dict):
        raise DataError(f"{where}: a record is a JSON object, not {type(data).__name__}")
    check_no_reasoning(data, where)
    with keeping_text(rewrite_calls == "never"):
        chat = to_chat(data, where, format)
    messages = chat.get("messages")
    if isinstance(messages, list) and messages != data.get("messages"):  # the converter may have found more text
        check_no_reasoning({"messages": messages}, where)
    record, notes = _read(chat, where, rewrite_calls)
    notes += ("variables",) * bool(data.get("chat_template_kwargs"))
    return Read(record, notes + note_text_calls(record.messages, record.tools))


def parse_checked_line(
    line: bytes, where: str, format: str | None = None, *, rewrite_calls: RewriteCalls = False
) -> Record:
    """Make the Record made of the same bytes before, without the checks of strict JSON, reasoning and schemas."""
    data = drop_null_columns(json.loads(line.decode("utf-8-sig")))
    with keeping_text(rewrite_calls == "never"):
        chat = to_chat(data, where, format)
    return _read(chat, where, rewrite_calls).record


def _read(data: dict[str, Any], where: str, rewrite_calls: RewriteCalls) -> Read:
    """Make a Record of a record in the chat format."""
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages: a non-empty list is needed")
    clean = [_message(message, f"{where}: messages[{index}]") for index, message in enumerate(messages)]
    if not any(m["role"] == "assistant" for m in clean):
        raise DataError(f"{where}: messages: no assistant message, so nothing to train on")
    tools, notes = _tools(data.get("tools"), where)
    if rewrite_calls is True:
        clean, found = rewrite_text_calls(clean, tools, where)
        notes += found
    clean, found = mend_arguments(clean, tools)
    notes += [note for note in found if note not in notes]
    clean, found = settle_turns(clean, where)
    notes += found
    name, quality = data.get("id"), data.get("quality")
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int))):
        raise DataError(f"{where}: id: text or a whole number is needed, not {type(name).__name__}")
    if quality is not None and (
        isinstance(quality, bool) or not isinstance(quality, (int, float)) or not 0 <= quality <= 1
    ):
        raise DataError(f"{where}: quality: a number in [0, 1] is needed, not {str(quality)[:40]!r}")
    for key in ("caws", "meta"):
        if not isinstance(data.get(key), (dict, type(None))):
            raise DataError(f"{where}: {key}: an object is needed, not {type(data[key]).__name__}")
    record = Record(
        where if name in (None, "") else str(name), clean, tools, quality, data.get("caws"), data.get("meta") or {}
    )
    return Read(record, tuple(notes))


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise DataError(f"{where}: role must be one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), (str, type(None))):
        raise DataError(f"{where}.content: text is needed, not {type(message['content']).__name__}")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or (calls and message["role"] != "assistant"):
        raise DataError(f"{where}.tool_calls: a list, on assistant messages alone")
    message = {key: value for key, value in message.items() if value is not None} | {
        "content": message.get("content") or ""
    }
    message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return message


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{where}: a tool call needs function.name and function.arguments")
    arguments = {} if function.get("arguments") is None else function["arguments"]
    if isinstance(arguments, str):  # OpenAI's wire form; some files hold the text of that text
        try:
            arguments = decode_json(arguments or "{}", "")
            arguments = decode_json(arguments, "") if isinstance(arguments, str) else arguments
        except DataError as error:
            raise DataError(
                f"{where}.function.arguments: not JSON "
                f"({str(error).removeprefix(': ').removeprefix('not a line of JSON in UTF-8: ')})"
            ) from None
    if not isinstance(arguments, dict):
        raise DataError(f"{where}.function.arguments: an object is needed, not {type(arguments).__name__}")
    said = {key: value for key, value in function.items() if value is not None} | {"arguments": arguments}
    return {key: value for key, value in call.items() if value is not None} | {"type": "function", "function": said}


def _tools(tools: Any, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Check declarations and leave out their fillers: (declarations, names of NOTES)."""
    tools = tools or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where}: tools: a list of function declarations is needed")
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    for index, tool in enumerate(tools):
        function = tool["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(f"{where}: tools[{index}]: a declaration needs a name and parameters (a JSON Schema)")
        if not isinstance(function.get("parameters"), (dict, type(None))):
            raise DataError(
                f"{where}: tools[{index}].parameters: a JSON Schema is needed, not "
                f"{type(function['parameters']).__name__}"
            )
    cleaned = [clean_declaration(tool) for tool in tools]
    return cleaned, ["nulls"] * (cleaned != tools)
