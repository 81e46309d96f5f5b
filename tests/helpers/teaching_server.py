"""A teacher on loopback that calls tools: its words depend on the request alone, and it counts what it would bill."""

from __future__ import annotations

import json
import random
from typing import Any

from helpers.chat_server import ChatServer, message
from helpers.endpoint_cases import FakeClock
from helpers.endpoint_server import MODEL, body, cut_body, no_reply, reset_in_body, status
from kd.config.sections.generation import GenerationConfig
from kd.generation.data_set import DataSet
from kd.generation.prompts.schema_values import draw_arguments
from kd.generation.prompts.splits import SPLITS

PRICES = {"prompt_price": 2.0, "completion_price": 10.0}  # of a million tokens
NUM_COMPLETION = 7

WEATHER = {
    "name": "get_weather",
    "description": "Look up the weather of a place.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
    },
    "returns": {
        "type": "object",
        "properties": {"temperature": {"type": "integer", "minimum": 10, "maximum": 40}},
        "required": ["temperature"],
    },
}
STOCK = {
    "name": "get_stock",
    "description": "Look up the price of a share.",
    "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]},
}
MAIL = {
    "name": "send_mail",
    "description": "Send a mail to a person.",
    "parameters": {
        "type": "object",
        "properties": {"recipient": {"type": "string"}, "subject": {"type": "string"}, "urgent": {"type": "boolean"}},
        "required": ["recipient", "subject"],
    },
}
TOOLS = [WEATHER, STOCK, MAIL]


def teach(request: dict) -> dict[str, Any]:
    """Call the first tool on offer after every other user's words, and answer with what came back."""
    last = request["messages"][-1]
    generator = random.Random(json.dumps([request["messages"], request["seed"]], sort_keys=True))
    if last["role"] == "tool":
        return message(f"Here it is: {last['content']}")
    if not request.get("tools") or generator.random() < 0.3:
        return message(f"I cannot tell, number {generator.randint(1, 999)}.")
    tool = generator.choice(request["tools"])
    return message("", {"name": tool["function"]["name"], "arguments": draw_arguments(tool, generator)})


class TeachingServer(ChatServer):
    """`billed`: what all answers cost by true usage, in units of 1e-6 of the currency."""

    def __init__(self, say=teach, **options):
        super().__init__(say, **options)
        self.billed = 0.0

    def answer(self, request: dict) -> dict:
        prompt = len(json.dumps([request["messages"], request.get("tools")])) // 4
        usage = {"prompt_tokens": prompt, "completion_tokens": NUM_COMPLETION, "total_tokens": prompt + NUM_COMPLETION}
        with self.lock:
            self.billed += price(usage)
        return {"id": "x", "object": "chat.completion", "choices": [self.say(request)], "usage": usage}


def price(usage: dict) -> float:
    return usage["prompt_tokens"] * PRICES["prompt_price"] + usage["completion_tokens"] * PRICES["completion_price"]


def free(fault):
    """A fault for which nobody pays."""

    def send(handler, request, answer):
        owner = handler.server.owner
        with owner.lock:
            owner.billed -= price(answer["usage"])
        return fault(handler, request, answer)

    return send


def with_usage(usage):
    """The right answer with another usage; the bill is the true one."""

    def send(handler, request, answer):
        handler.send(200, {**answer, "usage": usage})

    return send


def same_ids(handler, request, answer):
    """Two equal calls with one id."""
    choice = answer["choices"][0]
    for call in choice["message"].get("tool_calls", []):
        call["id"] = "same"
    handler.send(200, answer)


FAULTS = [
    free(status(429, {"Retry-After": "1"})),
    free(status(503)),
    reset_in_body,
    cut_body,
    no_reply,
    body(b"{not json"),
    body(b"<html>", "text/html"),
    body(b'{"choices": []}'),
    with_usage(None),
    with_usage({"prompt_tokens": -3, "completion_tokens": "many"}),
    with_usage({"prompt_tokens": 10**9, "completion_tokens": 1}),
    same_ids,
    free(status(500)),
]


def misbehave(every: int = 2):
    """A fault at each `every`-th request, all in turn."""
    return lambda number, request: None if number % every else FAULTS[number // every % len(FAULTS)]


def settings_of(server: TeachingServer, folder, **given) -> dict[str, Any]:
    """A configuration as plain data: 20 composed prompts of TOOLS, in folder/out."""
    tools = folder / "tools.json"
    tools.write_text(json.dumps(TOOLS))
    endpoint = {"url": server.url, "model": MODEL, "concurrency": 4, "retries": 30, "record_deadline_seconds": 3000.0}
    made = {
        "output_dir": str(folder / "out"),
        "endpoint": endpoint,
        "sampling": {"max_new_tokens": 50},
        "spending": dict(PRICES),
        "prompts": {"tools": str(tools), "num": 20, "languages": ("en", "de")},
    }
    for key, value in given.items():
        section, dot, name = key.partition("__")
        made[section] = {**made.get(section, {}), name: value} if dot else value
    return made


def make(settings, say=lambda text: None):
    """Run a configuration; returns (card, files by name)."""
    config = GenerationConfig.model_validate(settings)
    with DataSet(config, say, FakeClock().clock()) as data_set:
        card = data_set.write(data_set.ask())
    return card, read_files(data_set.out)


def read_files(out):
    return {split: path.read_bytes() for split in SPLITS if (path := out / f"{split}.jsonl").is_file()}
