"""Chat records: ours, and OpenAI's fine-tuning format (arguments as text or object, parallel calls, the older
function_call and functions, content in parts); assistant text with <tool_call> blocks too.
"""

from __future__ import annotations

from typing import Any

from kd.records.checks import DataError, decode_json
from kd.records.formats.format import Format, find_tools, read_tools
from kd.records.formats.hermes import from_hermes_messages


def from_chat(data: dict, where: str) -> dict:
    """Convert one record; see Format.convert."""
    messages = data.get("messages")
    if isinstance(messages, str):
        messages = decode_json(messages, f"{where}: messages")
    if not isinstance(messages, list):
        return {"messages": messages}
    tools = read_tools(find_tools(data), f"{where}: tools")
    messages = [_openai(message, f"{where}: messages[{index}]") for index, message in enumerate(messages)]
    return from_hermes_messages(messages, tools, f"{where}: messages")


def _openai(message: Any, where: str) -> Any:
    if not isinstance(message, dict):
        return message
    message = {key: value for key, value in message.items() if value is not None or key == "content"}
    role = message.get("role")
    if role in ("developer", "function"):
        message["role"] = "system" if role == "developer" else "tool"
    weight = message.pop("weight", 1)
    if isinstance(weight, bool) or weight != 1:
        raise DataError(
            f"{where}.weight: {weight!r}: every assistant turn of a record is trained; split the record, or remove "
            "the field"
        )
    if message.pop("refusal", ""):
        raise DataError(f"{where}.refusal: write what the assistant said as content, or remove the record")
    if legacy := message.pop("function_call", None):
        if message.get("tool_calls"):
            raise DataError(f"{where}: both function_call and tool_calls; keep one")
        message["tool_calls"] = [{"type": "function", "function": legacy}]
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        message["content"] = "".join(part["text"] for part in content)
    return message


FORMAT = Format(detect=lambda data: "messages" in data, convert=from_chat, order=0)
