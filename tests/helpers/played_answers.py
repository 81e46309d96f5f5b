"""An answerer that plays: a function of the prompt says the calls, or the text, of each answer."""

from __future__ import annotations

import json

from kd.evaluation.answerers.answer import Answer
from kd.toolcalls.reader import HERMES


class Player:
    """`play(prompt)`, kept as `say`, returns a list of calls ({"name", "arguments"}), or text.

    `prompts` are those asked, in order.
    """

    def __init__(self, play):
        self.prompts = []
        self.say = play

    def answer(self, prompts, *, progress=None):
        self.prompts += prompts
        return [make_answer(self.say(prompt)) for prompt in prompts]


def make_answer(said) -> Answer:
    text = said if isinstance(said, str) else "\n".join(map(write_call, said))
    return Answer(text, HERMES.parse(text), len(text), True)


def write_call(call) -> str:
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
