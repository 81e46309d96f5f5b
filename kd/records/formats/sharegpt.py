"""ShareGPT records: {"conversations": [{"from": "human", "value": ...}, ...], "tools": "[...]"}, with function_call and
observation; messages of the chat format under that key are read as chat.
"""

from __future__ import annotations

from kd.records.checks import DataError, decode_json
from kd.records.formats.chat import from_chat
from kd.records.formats.format import Format, find_tools, read_calls, read_tools
from kd.records.formats.hermes import from_hermes_messages

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_call": "calls",
    "function-call": "calls",
    "tool_call": "calls",
    "tool_calls": "calls",
}
_CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def from_sharegpt(data: dict, where: str) -> dict:
    """Convert one record; see Format.convert."""
    turns = data.get("conversations") if "conversations" in data else data.get("conversation")
    if isinstance(turns, str):
        turns = decode_json(turns, f"{where}: conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: conversations: a non-empty list is needed")
    system = data.get("system")
    messages: list[dict] = [{"role": "system", "content": system}] if system else []
    if all(
        isinstance(turn, dict) and turn.get("role") in _CHAT_ROLES and "from" not in turn and "value" not in turn
        for turn in turns
    ):
        return from_chat({"messages": [*messages, *turns], "tools": find_tools(data)}, where)
    joins = False  # calls that follow calls are parallel ones of the same turn
    for index, turn in enumerate(turns):
        spot = f"{where}: conversations[{index}]"
        sender = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        role = _ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            raise DataError(f"{spot}.from: must be one of {', '.join(_ROLES)}, not {str(sender)[:40]!r}")
        value = turn.get("value", turn.get("content"))
        if turn.get("tool_calls") or turn.get("function_call"):
            raise DataError(
                f"{spot}: calls beside from and value are not read; give them as a turn from function_call, or write "
                "the record as messages"
            )
        if role != "calls":
            if not isinstance(value, str):
                raise DataError(f"{spot}.value: text is needed, not {type(value).__name__}")
            messages.append({"role": role, "content": value})
        else:
            calls = read_calls(value, f"{spot}.value")
            if joins:
                messages[-1]["tool_calls"] += calls
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        joins = role == "calls"
    return from_hermes_messages(messages, read_tools(find_tools(data), f"{where}: tools"), f"{where}: conversations")


FORMAT = Format(detect=lambda data: "conversations" in data or "conversation" in data, convert=from_sharegpt, order=10)
