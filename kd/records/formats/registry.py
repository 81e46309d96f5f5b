"""Other people's records, made into chat records: found from their fields, or named.

    chat      {"messages": [...], "tools": [...]}: ours, and OpenAI's fine-tuning form (arguments as text or object,
              parallel calls, the older function_call and functions, content in parts); assistant text with <tool_call>
              blocks too
    chatml    {"text": "<|im_start|>system\\n...<|im_end|>..."}: Hermes and Qwen text
    sharegpt  {"conversations": [{"from": "human", "value": ...}, ...], "tools": "[...]"}, with function_call and
              observation; messages of the chat form under that key are read as chat
    xlam      {"query": ..., "tools": [...], "answers": [...]}: xLAM, APIGen; lists or JSON text
    bfcl      {"question": ..., "function": [...]}, the truth joined from the possible_answer file
              (kd/records/formats/bfcl.py)
    flat      {"prompt": ..., "teacher_text": ...}: the first system's record; its token ids carry no positions and are
              dropped, for spans are found again in the rendered text

A converter changes the form and nothing else. What it does not understand it refuses, naming the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kd.records.checks import DataError, decode_json
from kd.records.formats.bfcl import from_bfcl_record
from kd.records.formats.hermes import from_hermes_messages
from kd.records.formats.schemas import from_xlam

_SHAREGPT_ROLES = {
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
_CHATML_TURN = re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n(.*?)<\|im_end\|>", re.DOTALL)
_KEPT = ("id", "quality", "caws", "meta")


def format_of(data: dict) -> str:
    """The name of the form that a record's fields show; `chat` where nothing shows another."""
    if "messages" in data:
        return "chat"
    if "conversations" in data or "conversation" in data:
        return "sharegpt"
    if "teacher_text" in data:
        return "flat"
    if "query" in data and ("answers" in data or "tools" in data):
        return "xlam"
    if "question" in data and ("function" in data or "ground_truth" in data or "involved_classes" in data):
        return "bfcl"
    if isinstance(data.get("text"), str) and "<|im_start|>" in data["text"]:
        return "chatml"
    return "chat"


def to_chat(data: dict, where: str, format: str | None = None) -> dict:
    """The record as {"messages", "tools", "id", "quality", "caws", "meta"}, not yet checked
    (kd.records.record.parse_record).

    Raises:
        DataError: names the field that the form does not allow; or no form has that name.
    """
    name = format or format_of(data)
    if name not in FORMATS:
        raise DataError(f"{where}: no form of records is called {name!r}; there are {', '.join(FORMATS)}")
    kept = {key: data[key] for key in _KEPT if data.get(key) is not None}
    if name != "chat":
        where = f"{where}: as {name}"
    return {**kept, **FORMATS[name](data, where)}


def tools_of(value: Any, where: str) -> list[dict]:
    """Declarations in the chat form from a list, one declaration, or JSON text of either; None and "" are none."""
    if isinstance(value, str):
        value = decode_json(value, where) if value.strip() else []
    value = [value] if isinstance(value, dict) and ("name" in value or "function" in value) else value
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where}: a list of function declarations is needed")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]


def _chat(data: dict, where: str) -> dict:
    messages = data.get("messages")
    if isinstance(messages, str):
        messages = decode_json(messages, f"{where}: messages")
    if not isinstance(messages, list):
        return {"messages": messages}
    tools = tools_of(data.get("tools") or data.get("functions"), f"{where}: tools")
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


def _sharegpt(data: dict, where: str) -> dict:
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
        return _chat({"messages": [*messages, *turns], "tools": data.get("tools") or data.get("functions")}, where)
    joins = False  # calls that follow calls are parallel ones of the same turn
    for index, turn in enumerate(turns):
        spot = f"{where}: conversations[{index}]"
        sender = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        role = _SHAREGPT_ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            raise DataError(f"{spot}.from: must be one of {', '.join(_SHAREGPT_ROLES)}, not {str(sender)[:40]!r}")
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
            calls = _calls(value, f"{spot}.value")
            if joins:
                messages[-1]["tool_calls"] += calls
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        joins = role == "calls"
    return from_hermes_messages(messages, tools_of(data.get("tools"), f"{where}: tools"), f"{where}: conversations")


def _calls(value: Any, where: str) -> list[dict]:
    """Calls in the chat form from JSON text, one call, or a list: {"name", "arguments"}, bare or under "function"."""
    value = decode_json(value, where) if isinstance(value, str) else value
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: a call is an object with name and arguments")
        arguments = function.get("arguments", function.get("parameters", {}))
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _xlam(data: dict, where: str) -> dict:
    tools = tools_of(data.get("tools"), f"{where}: tools")
    for tool in tools:
        if isinstance(tool["function"], dict):
            tool["function"] = {**tool["function"], "parameters": from_xlam(tool["function"].get("parameters"))}
    if not isinstance(data.get("query"), str):
        raise DataError(f"{where}: query: text is needed, not {type(data.get('query')).__name__}")
    calls = _calls(data.get("answers"), f"{where}: answers")
    if not calls:
        raise DataError(f"{where}: answers: no call, and no answer text either: there is nothing to train on")
    calls = [{"id": f"call_{index}", **call} for index, call in enumerate(calls)]
    return {
        "messages": [
            {"role": "user", "content": data["query"]},
            {"role": "assistant", "content": "", "tool_calls": calls},
        ],
        "tools": tools,
    }


def _chatml(data: dict, where: str) -> dict:
    text = data.get("text")
    if not isinstance(text, str):
        raise DataError(f"{where}: text: text is needed, not {type(text).__name__}")
    messages, end = [], 0
    for turn in _CHATML_TURN.finditer(text):
        if text[end : turn.start()].strip():
            break
        messages.append({"role": turn[1], "content": turn[2].strip()})
        end = turn.end()
    if text[end:].strip() not in ("", "<|endoftext|>"):
        raise DataError(f"{where}: text: character {end + 1} on is no whole <|im_start|>role ... <|im_end|> turn")
    return from_hermes_messages(messages, tools_of(data.get("tools"), f"{where}: tools"), f"{where}: text")


def _flat(data: dict, where: str) -> dict:
    prompt, text = data.get("prompt"), data.get("teacher_text")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f"{where}: prompt: text, or a list of messages, is needed")
    if not isinstance(text, str):
        raise DataError(f"{where}: teacher_text: text is needed, not {type(text).__name__}")
    more = {
        "quality": data.get("quality", data.get("teacher_quality_score")),
        "meta": data.get("meta", data.get("metadata")),
    }
    chat = from_hermes_messages(
        [*prompt, {"role": "assistant", "content": text}], tools_of(data.get("tools"), f"{where}: tools"), where
    )
    return {**{key: value for key, value in more.items() if value is not None}, **chat}


FORMATS: dict[str, Callable[[dict, str], dict]] = {
    "chat": _chat,
    "chatml": _chatml,
    "sharegpt": _sharegpt,
    "xlam": _xlam,
    "bfcl": from_bfcl_record,
    "flat": _flat,
}
