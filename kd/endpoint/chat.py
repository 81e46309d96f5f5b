"""Chat completions of an OpenAI-compatible server: a record's conversation as the request, and what comes back.

OpenAI's API takes function names of ASCII letters, digits, _ and - alone, 64 at most. Any other name is sent with _ in
place of the rest, and given back as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kd.errors import SpanwiseError

_UNFIT = re.compile(r"[^a-zA-Z0-9_-]")
_LONGEST_NAME = 64
_ENDED = ("stop", "tool_calls", "function_call")  # finish_reason of an answer that was not cut


class ChatError(SpanwiseError, ValueError):
    """Answer that is no chat completion."""


class TokenLimit:
    """Field of a request that limits the tokens of an answer, by `name`: newer models of OpenAI's want another."""

    def __init__(self) -> None:
        self.name = "max_tokens"

    def learn(self, refusal: str, sent: str) -> bool:
        """Take the newer name where the refusal of a request that was sent with the older one asks for it."""
        if sent != "max_tokens" or "max_completion_tokens" not in refusal:
            return False
        self.name = "max_completion_tokens"
        return True


class Chat(NamedTuple):
    """Answer of a server: its text, its own calls as (name, arguments as JSON text), and whether it came to its end."""

    text: str
    calls: list[tuple[str, str]]
    num_tokens: int  # 0 where the server does not tell
    finished: bool


def fit_names(tools: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Map each tool's name to the one that is sent; no two are sent alike."""
    sent: dict[str, str] = {}
    names = [tool["function"]["name"] for tool in tools]
    for name in sorted(names, key=lambda one: bool(_UNFIT.search(one)) or len(one) > _LONGEST_NAME):
        fit, number = _UNFIT.sub("_", name)[:_LONGEST_NAME], 2
        while fit in sent.values():
            fit = f"{fit[: _LONGEST_NAME - 5]}_{number}"
            number += 1
        sent[name] = fit
    return sent


def write_messages(messages: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Write a record's messages as the API takes them: arguments as text, each result with the id of its call.

    A record may leave out the ids; they are then given in order.
    """
    written: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "assistant" and message.get("tool_calls"):
            calls = [
                {
                    "id": call.get("id") or f"call_{len(written)}_{at}",
                    "type": "function",
                    "function": {
                        "name": names.get(call["function"]["name"], call["function"]["name"]),
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for at, call in enumerate(message["tool_calls"])
            ]
            waiting = [call["id"] for call in calls]
            written.append({"role": role, "content": content or None, "tool_calls": calls})
        elif role == "tool":
            name = message.get("tool_call_id") or (waiting[0] if waiting else "call")
            waiting = [one for one in waiting if one != name]
            written.append({"role": role, "tool_call_id": name, "content": content})
        else:
            written.append({"role": role, "content": content})
    return written


def write_tools(tools: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Write a record's declarations as the API takes them."""
    return [
        {**tool, "function": {**tool["function"], "name": names[tool["function"]["name"]]}, "type": "function"}
        for tool in tools
    ]


def read_chat(answer: Any) -> Chat:
    """Read the answer of /chat/completions.

    Raises:
        ChatError: it has not one choice with a message, or the message's calls are no list.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ChatError("the answer is no chat completion with one choice")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ChatError("the answer's tool_calls are no list")
    usage = answer.get("usage")
    num_tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Chat(
        _read_text(message.get("content")),
        [_read_call(call) for call in calls],
        num_tokens if isinstance(num_tokens, int) else 0,
        choice.get("finish_reason") in _ENDED,
    )


def _read_text(content: Any) -> str:
    if isinstance(content, list):  # parts, of which texts alone are read
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _read_call(call: Any) -> tuple[str, str]:
    function = call.get("function") if isinstance(call, dict) else None
    name, arguments = (function.get(key) for key in ("name", "arguments")) if isinstance(function, dict) else ("", "")
    if not isinstance(arguments, str):  # some servers send the object itself, or null where there are none
        arguments = json.dumps({} if arguments is None else arguments)
    return name if isinstance(name, str) else "", arguments
