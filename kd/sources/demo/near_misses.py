"""Near misses of the demo corpus: conversations whose requests differ little from those that a call answers.

    near      two or three requests; each fits an offered tool, or only one that shares a word with an offered one
    missing   a needed parameter is not said: the assistant asks for it, the user says it, the call follows
    answered  a request is repeated after its result: the assistant answers from it; a like request is new and is called

Every conversation but some of `near` holds the call beside the near miss, under one menu.
"""

from __future__ import annotations

from kd.sources.demo.exchanges import (
    TOOLS,
    answer_again,
    ask_for,
    call_and_answer,
    dress,
    make_request,
    make_round,
    refuse,
    reply,
    say,
)
from kd.sources.demo.vocabulary import Draw, Tool


def make_near(split: str, draw: Draw) -> tuple[list[dict], list[Tool], tuple[Tool, ...]]:
    """Return the messages, the two offered tools, and those asked for that must not be offered."""
    rng = draw.rng
    fitting = rng.sample(TOOLS[split], 2)
    absent = []
    for tool in fitting:
        others = [t for t in TOOLS[split] if t not in fitting and t not in absent]
        near = [t for t in others if _share_word(t, tool)]
        absent.append(rng.choice(near or others))
    messages: list[dict] = []
    for at in range(rng.choice((2, 3))):
        if rng.random() < 0.5:
            messages += make_round([rng.choice(fitting)], draw, at)
        else:
            messages += [dress(make_request(rng.choice(absent), draw).text, rng), refuse(rng)]
    return messages, fitting, tuple(absent)


def _share_word(one: Tool, other: Tool) -> bool:
    return not set(one.name.split("_")).isdisjoint(other.name.split("_"))


def make_missing(tool: Tool, draw: Draw) -> list[dict]:
    """Leave a required parameter of `tool` unsaid, which the user says when asked."""
    rng = draw.rng
    name = rng.choice([parameter for parameter in tool.parameters if not parameter.endswith("?")])
    request = make_request(tool, draw, unsaid=name)
    return [
        dress(request.text, rng),
        ask_for(name, rng),
        reply(say(name, request.arguments[name], rng)),
        *call_and_answer([request], draw, 0),
    ]


def make_answered(tool: Tool, draw: Draw) -> list[dict]:
    """Repeat a request after its result; half the time ask with other values before or after that."""
    rng = draw.rng
    request = make_request(tool, draw)
    first = [dress(request.text, rng), *call_and_answer([request], draw, 0)]
    repeated = [dress(request.text, rng), answer_again(first[2]["content"], rng)]
    other = make_round([tool], draw, 1) if rng.random() < 0.5 else []
    return [*first, *other, *repeated] if rng.random() < 0.5 else [*first, *repeated, *other]
