"""A chat server on loopback in OpenAI's form, that says what a test needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from helpers.endpoint_server import MODEL, Server
from kd.evaluation.cases import Case

NO_TOOLS = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'  # vLLM's words
Say = Callable[[dict], dict[str, Any]]


def message(text: str = "", *calls: dict, finish: str | None = None) -> dict[str, Any]:
    """A choice; each call is {"name", "arguments"}, the arguments an object or a text to be sent as it is."""
    made = [
        {
            "id": f"c{at}",
            "type": "function",
            "function": {
                "name": one["name"],
                "arguments": one["arguments"] if isinstance(one["arguments"], str) else json.dumps(one["arguments"]),
            },
        }
        for at, one in enumerate(calls)
    ]
    said = {"role": "assistant", "content": text or None, **({"tool_calls": made} if made else {})}
    return {"index": 0, "message": said, "finish_reason": finish or ("tool_calls" if made else "stop")}


class ChatServer(Server):
    """`say`: request -> choice. Other arguments are `Server`'s."""

    def __init__(self, say: Say, *, takes_tools: bool = True, limit: str = "max_tokens", **options):
        super().__init__(lambda ids: None, **options)
        self.say, self.takes_tools, self.limit = say, takes_tools, limit

    def answer(self, request: dict) -> dict:
        usage = {"prompt_tokens": 9, "completion_tokens": 5}
        return {"id": "x", "object": "chat.completion", "choices": [self.say(request)], "usage": usage}

    def refusal(self, request: dict) -> tuple[int, str] | None:
        if request["model"] != MODEL:
            return 404, f"The model `{request['model']}` does not exist."
        if self.limit not in request:
            return 400, f"Unsupported parameter: use '{self.limit}' instead."
        return (400, NO_TOOLS) if request.get("tools") and not self.takes_tools else None


def say_gold(cases: list[Case]) -> Say:
    """Answer each case as its record does, found by the number of messages and the last one."""
    gold = {(len(case.history), case.history[-1]["content"]): case for case in cases}

    def say(request: dict) -> dict[str, Any]:
        found = gold.get((len(request["messages"]), request["messages"][-1]["content"]))
        return message("hello") if found is None else message(found.gold_text, *found.gold_calls)

    return say
