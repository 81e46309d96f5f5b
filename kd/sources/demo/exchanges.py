"""Exchanges of the demo corpus: worded requests, the menus offered beside them, and the turns that follow."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from kd.config.sections.data import DEMO_SPLITS
from kd.sources.demo.vocabulary import ALL_TOOLS, OBJECTS, PARAMETERS, RESULTS, UNSEEN_TOOLS, Draw, Tool

_OPENINGS = (
    "",
    "",
    "",
    "please ",
    "could you ",
    "can you ",
    "I want you to ",
    "would you ",
    "now ",
    "go ahead and ",
    "I need you to ",
)
_ENDINGS = (".", ".", "", "?", "!", ", thanks.", " please.")
_JOINERS = (" and also ", ". Also ", ", then ", " and ", ". After that ")
_DONE = ("Done", "All set", "Here you go", "Sure", "Okay", "Right")
_AGAIN = ("I have that", "I can say it again", "I found it")
_NONE = ("None of my tools can do that.", "I have no tool for that.", "Sorry, no tool here fits that.")
# Near misses are answered with one first token, so that a greedy choice weighs a call against all ways not to call: of
# three openings, each as likely, none is chosen over a call before that falls below a quarter.
_NEAR_NONE = ("I have no tool for that.", "I can do that with none of my tools.", "I see no tool here that fits.")
_ASKS = ("I need a value for {name}.", "I have no value for {name}.", "I see no value for {name}.")


def _split_tools(split: str) -> list[Tool]:
    return [t for t in ALL_TOOLS.values() if (t.name in UNSEEN_TOOLS) == (split == "unseen_tools")]


TOOLS = {split: _split_tools(split) for split in DEMO_SPLITS}
"""Tools that each split may offer: the training tools, or for `unseen_tools` the others."""


class Request(NamedTuple):
    """Request for a tool: its wording without opening and full stop, and the arguments that it fixes."""

    tool: Tool
    text: str
    arguments: dict[str, Any]


def make_request(tool: Tool, draw: Draw, *, unsaid: str | None = None) -> Request:
    """Word a request for `tool`, with each required parameter and some optional ones; `unsaid` is not worded."""
    rng = draw.rng
    arguments = {}
    for parameter in tool.parameters:
        name = parameter.rstrip("?")
        if parameter == name or rng.random() < 0.5:
            arguments[name] = PARAMETERS[name].make(draw)
    phrases = [say(name, value, rng) for name, value in arguments.items() if name != unsaid]
    rng.shuffle(phrases)
    return Request(tool, " ".join([rng.choice(tool.asks), *phrases]), arguments)


def say(name: str, value: Any, rng: random.Random) -> str:
    """Word a parameter's value."""
    form = rng.choice(PARAMETERS[name].said)
    return form.format(**value) if isinstance(value, dict) else form.format(v=_join(value))


def _join(value: Any) -> str:
    if isinstance(value, list):
        items = [str(v) for v in value]
        return f"{', '.join(items[:-1])} and {items[-1]}"
    return str(value)


def dress(text: str, rng: random.Random) -> dict:
    """Make the user's message of a wording."""
    return reply(rng.choice(_OPENINGS) + text + rng.choice(_ENDINGS))


def reply(text: str) -> dict:
    """Make the user's message of a text as it is, with a capital."""
    return {"role": "user", "content": text[0].upper() + text[1:]}


def offer(wanted: list[Tool], split: str, rng: random.Random, *, forbidden: tuple[Tool, ...] = ()) -> list[Tool]:
    """Choose the tools offered: those wanted, near misses (same verb or same object) and others, shuffled."""
    menu = {t.name: t for t in wanted}
    pool = [t for t in TOOLS[split] if t not in forbidden]
    size = len(menu) + rng.choice((1, 2, 2, 3, 3))
    for tool in [*wanted, *forbidden]:
        verb, _, noun = tool.name.partition("_")
        if noun in OBJECTS and rng.random() < 0.5:
            near = [t for t in pool if t.name.endswith(f"_{noun}") or t.name.startswith(f"{verb}_")]
            if near:
                menu.setdefault((t := rng.choice(near)).name, t)
    while len(menu) < size:
        menu.setdefault((t := rng.choice(pool)).name, t)
    offered = list(menu.values())
    rng.shuffle(offered)
    return offered


def make_round(tools: list[Tool], draw: Draw, first_id: int) -> list[dict]:
    """Make one exchange: a request for every tool in `tools`, the calls, their results and the answer that carries
    values.
    """
    requests = [make_request(tool, draw) for tool in tools]
    joined = draw.rng.choice(_JOINERS).join(request.text for request in requests)
    return [dress(joined, draw.rng), *call_and_answer(requests, draw, first_id)]


def call_and_answer(requests: list[Request], draw: Draw, first_id: int) -> list[dict]:
    """Make the calls of `requests`, their results and the answer."""
    rng = draw.rng
    calls = [
        {
            "id": f"call_{first_id + at}",
            "type": "function",
            "function": {"name": request.tool.name, "arguments": request.arguments},
        }
        for at, request in enumerate(requests)
    ]
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}]
    sayings = []
    for call, request in zip(calls, requests):
        name = request.tool.name
        result = {key: RESULTS[key][0](draw) for key in request.tool.result}
        messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": json.dumps(result)})
        sayings += _word_result(result, rng)
    return [*messages, _answer(_DONE, sayings, rng)]


def answer_again(result: str, rng: random.Random) -> dict:
    """Answer from an earlier result, without a call."""
    return _answer(_AGAIN, _word_result(json.loads(result), rng), rng)


def _word_result(result: dict[str, Any], rng: random.Random) -> list[str]:
    return [rng.choice(RESULTS[key][1]).format(v=_join(value)) for key, value in result.items()]


def _answer(openings: tuple[str, ...], sayings: list[str], rng: random.Random) -> dict:
    return {"role": "assistant", "content": f"{rng.choice(openings)}: {', and '.join(sayings)}."}


def refuse(rng: random.Random, *, near: bool = False) -> dict:
    """Say that no offered tool fits; `near` in the words of the near misses."""
    return {"role": "assistant", "content": rng.choice(_NEAR_NONE if near else _NONE)}


def ask_for(name: str, rng: random.Random) -> dict:
    """Ask for the value of a parameter."""
    return {"role": "assistant", "content": rng.choice(_ASKS).format(name=name)}
