"""The reward for exact calls: what it pays, its parts, and a reward of one's own."""

from __future__ import annotations

import json

import pytest

from kd.records.record import Record
from kd.rewards.exact_call import exact_call
from kd.rewards.reward import REWARDS, Reward
from kd.toolcalls.reader import HERMES


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def write(*calls):
    return "".join(f"<tool_call>{json.dumps(one)}</tool_call>" for one in calls)


TOOLS = [
    tool("get_weather", city={"type": "string"}, days={"type": "integer"}),
    tool("get_stock", symbol={"type": "string"}),
]
OSLO, STOCK = call("get_weather", city="Oslo", days=1), call("get_stock", symbol="AB")


def record(*calls):
    made = [{"id": str(at), "type": "function", "function": one} for at, one in enumerate(calls)]
    answer = {"role": "assistant", "content": "" if calls else "No tool fits."} | ({"tool_calls": made} if made else {})
    return Record("r", [{"role": "user", "content": "q"}, answer], TOOLS)


def reward(record, text):
    return REWARDS["exact_call"](record, 1, text, HERMES.parse(text))


@pytest.mark.parametrize(
    ("wanted", "text", "value", "name", "arguments", "schema"),
    [
        ([OSLO], write(OSLO), 1, 1, 1, 1),
        (
            [OSLO],
            "Sure. " + write(call("get_weather", days=1.0, city="Oslo")),
            1,
            1,
            1,
            1,
        ),  # 1.0 is 1, keys in any order
        ([OSLO, STOCK], write(STOCK, OSLO), 1, 1, 1, 1),
        ([OSLO], write(call("get_weather", city="Rome", days=1)), 0, 1, 0, 1),
        ([OSLO], write(call("get_weather", city="Oslo", days=True)), 0, 1, 0, 0),  # true is not 1
        ([OSLO], write(call("get_wether", city="Oslo", days=1)), 0, 0, 0, 0),  # not offered
        ([OSLO], write(OSLO, OSLO), 0, 2 / 3, 2 / 3, 1),  # once too often
        ([OSLO, STOCK], write(OSLO), 0, 2 / 3, 2 / 3, 1),
        ([OSLO], write(OSLO) + "<tool_call>{", 0, 2 / 3, 2 / 3, 0.5),  # a broken block beside it
        ([OSLO], "It is warm.", 0, 0, 0, 1),
        ([], "No tool fits.", 1, 1, 1, 1),
        ([], write(OSLO), 0, 0, 0, 1),
        ([], "<tool_call>{", 0, 0, 0, 0),  # an attempt
    ],
)
def test_value_and_parts(wanted, text, value, name, arguments, schema):
    found = reward(record(*wanted), text)
    assert found.value == value
    assert found.parts == {"name": name, "arguments": arguments, "schema": schema}


def test_a_reward_of_ones_own_is_one_registration():
    def short(record, turn, text, calls):
        return Reward(1 / max(len(text), 1), {"no_call": float(not calls.spans)})

    REWARDS.register("short", short)
    try:
        assert REWARDS.names()[-1] == "short"
        text = "abcd"
        assert REWARDS["short"](record(), 1, text, HERMES.parse(text)) == Reward(0.25, {"no_call": 1.0})
    finally:
        REWARDS.unregister("short")
    assert REWARDS["exact_call"] is exact_call


@pytest.mark.parametrize("reward", [(1.5, {}), (float("nan"), {}), (0.5, {"name": -0.1})])
def test_a_number_outside_0_to_1_is_refused(reward):
    with pytest.raises(ValueError, match=r"it must be in \[0, 1\]"):
        Reward(*reward)
