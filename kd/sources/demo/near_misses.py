"""Near misses of the demo corpus: conversations whose requests differ little from those that a call answers.

    near      one to three requests; each fits an offered tool, or only one that shares a word with an offered one
    missing   a needed parameter is not said: the assistant asks for it, the user says it, the call follows
    answered  a request is repeated after its result: the assistant answers from it; a like request is new and is called
    fits      practice, as echo is for copying: is there a tool for this request, yes or no, often under one menu

The number of offered tools tells nothing of the answer, as it does between `single` and `none`.

`missing`, `answered` and half of `near` hold a call beside the near miss, under one menu.
"""

from __future__ import annotations

import random

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
    """Return the messages, the offered tools that fit, and those asked for that must not be offered."""
    rng = draw.rng
    fitting, absent = _pair(split, rng, rng.choice((1, 2)), near=0.8)
    messages: list[dict] = []
    for at in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            messages += make_round([rng.choice(fitting)], draw, at)
        else:
            messages += [dress(make_request(rng.choice(absent), draw).text, rng), refuse(rng, near=True)]
    return messages, fitting, tuple(absent)


def make_fits(split: str, draw: Draw, *, easy: bool) -> tuple[list[dict], list[Tool], tuple[Tool, ...]]:
    """Return as `make_near` does; each tool is asked for once, two in three without values.

    easy: few tools, those absent share no word with them, and each is asked for by its first wording alone.
    """
    rng = draw.rng
    fitting, absent = _pair(split, rng, rng.choice((1, 2) if easy else (1, 2, 3, 4)), near=0.0 if easy else 0.67)
    messages = []
    for tool in rng.sample([*fitting, *absent], 2 * len(fitting)):
        text = tool.asks[0]
        if not easy:
            text = make_request(tool, draw).text if rng.random() < 0.33 else rng.choice(tool.asks)
        answer = "Yes." if tool in fitting else "No."
        messages += [reply(f"Tool to {text}?"), {"role": "assistant", "content": answer}]
    return messages, fitting, tuple(absent)


def _pair(split: str, rng: random.Random, num: int, *, near: float) -> tuple[list[Tool], list[Tool]]:
    """Draw `num` tools, and for each another; a part `near` of these shares a word with it, the rest with none."""
    fitting = rng.sample(TOOLS[split], num)
    absent: list[Tool] = []
    for tool in fitting:
        others = [t for t in TOOLS[split] if t not in fitting and t not in absent]
        like = [t for t in others if _share_word(t, tool)]
        unlike = [t for t in others if not any(_share_word(t, one) for one in fitting)]
        absent.append(rng.choice(like if like and rng.random() < near else unlike))
    return fitting, absent


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
