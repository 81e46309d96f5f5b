"""Stand-in for BFCL's package, and who answers its entries.

with ChatServer(make_say(play("right"))) as server: ...       the same answers by an endpoint
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

from helpers.chat_server import Say, message
from helpers.played_answers import Player
from kd.evaluation.bfcl.package import Entry, Verdict

FUNCTION = {
    "name": "math.add",
    "description": "Add.",
    "parameters": {
        "type": "dict",
        "properties": {"a": {"type": "integer"}, "b": {"type": "float"}},
        "required": ["a", "b"],
    },
}
TURNS = [[{"role": "user", "content": "Put 2."}], [{"role": "user", "content": "And 3."}], []]
PUT = {"name": "put", "description": "", "parameters": {"type": "dict", "properties": {"n": {"type": "integer"}}}}
TAKE = {**PUT, "name": "take"}


class StandIn:
    """A package with two categories and a state machine that sums what is put."""

    version, most_steps, more_functions = "0", 3, "There is more."

    def __init__(self):
        self.sums = {}

    def read_entries(self, category):
        if category == "multi_turn_miss_func":
            entry = {"question": TURNS, "function": [PUT], "missed_function": {"2": [TAKE]}}
            truth = [["put(2)"], ["put(n=3)"], ["take(n=1)"]]
            return [Entry("multi_turn_miss_func_0", category, entry, entry, truth)]
        entry = {"question": [[{"role": "user", "content": "Add 1 and 2."}]], "function": [FUNCTION]}
        truth = None if category == "irrelevance" else [{"math.add": {"a": [1], "b": [2.0]}}]
        return [Entry(f"{category}_{at}", category, entry, entry, truth) for at in range(3)]

    def keep_states(self):
        return nullcontext()

    def execute(self, entry, calls):
        for call in calls:
            self.sums.setdefault(entry.id, []).append(call["arguments"]["n"])
        return [f"put {call['arguments']['n']}" for call in calls]

    def check_calls(self, entry, calls):
        right = (calls == []) if entry.truth is None else calls == [{"name": "math_add", "arguments": {"a": 1, "b": 2}}]
        return Verdict(right, "" if right else "wrong")

    def check_turns(self, entry, turns):
        made = sum(call["arguments"]["n"] for turn in turns for step in turn for call in step)
        right = len(turns) == 3 and made == 6
        return Verdict(right, "" if right else "multi_turn:instance_state_mismatch")


ADD = {"name": "math_add", "arguments": {"a": 1, "b": 2}}
WAYS = {"right": (2, 3), "another way": (1, 4), "wrong": (2, 2)}


def play(way, single=ADD):
    def answer(prompt):
        if prompt.tools[0]["function"]["name"] == "math_add":
            return [single]
        last = prompt.messages[-1]
        if last["role"] == "tool":
            return "Done."
        turn = sum(message["role"] == "user" for message in prompt.messages) - 1
        if turn == 2:
            assert last["content"] == "There is more." and len(prompt.tools) == 2
            return [{"name": "take", "arguments": {"n": 1}}]
        assert len(prompt.tools) == 1
        return [{"name": "put", "arguments": {"n": WAYS[way][turn]}}]

    return Player(answer)


CATEGORIES = ["multiple", "irrelevance", "multi_turn_miss_func"]


def make_say(player: Player) -> Say:
    """Make what an endpoint says of a player; the request that opens it, which no player knows, gets a greeting."""

    def say(request):
        if request["messages"][-1]["content"] == "How is the weather in Oslo?":
            return message("Hello.")
        said = player.say(SimpleNamespace(messages=request["messages"], tools=request.get("tools", [])))
        return message(said) if isinstance(said, str) else message("", *said)

    return say
