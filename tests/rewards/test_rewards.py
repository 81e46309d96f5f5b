"""Rewards of the process stage: each value they can reach, their parts, the mixture, a user's own function."""

from __future__ import annotations

import json

import pytest

from kd.records.record import Record
from kd.rewards.reward import REWARDS, Mixture, Reward, RewardError, find_reward
from kd.toolcalls.reader import HERMES

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "", "parameters": CITY}},
    {"type": "function", "function": {"name": "list_all", "description": "", "parameters": {}}},
]


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def write(*calls):
    return "".join(f"<tool_call>{json.dumps(one)}</tool_call>" for one in calls)


OSLO, BERGEN, ALL = call("get_weather", city="Oslo", days=1), call("get_weather", city="Bergen"), call("list_all")
BROKEN = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo", "days": 1</tool_call>'


def calling(*calls):
    made = [{"id": str(at), "type": "function", "function": one} for at, one in enumerate(calls)]
    answer = {"role": "assistant", "content": "" if calls else "No tool fits."} | ({"tool_calls": made} if made else {})
    return Record("r", [{"role": "user", "content": "q"}, answer], TOOLS)


ANSWERING = Record(
    "a",
    [
        *calling(OSLO).messages,
        {"role": "tool", "content": '{"wind": "north-east", "celsius": 21.5, "code": "AX-77"}'},
        {"role": "assistant", "content": "It is 21.5 degrees, wind north-east."},
    ],
    TOOLS,
)


def judge(name, record, text):
    return REWARDS[name](record, len(record.messages) - 1, text, HERMES.parse(text))


CASES = [
    ("json_valid", calling(OSLO), write(OSLO), 1),
    ("json_valid", calling(OSLO), write(call("anything", x=1)), 1),
    ("json_valid", calling(OSLO), write(OSLO) + BROKEN, 0.5),
    ("json_valid", calling(OSLO), BROKEN, 0),
    ("json_valid", calling(OSLO), "It is warm.", 0),
    ("json_valid", calling(), "No tool fits.", 1),
    ("json_valid", calling(), BROKEN, 0),
    ("schema_valid", calling(OSLO), write(OSLO), 1),
    ("schema_valid", calling(OSLO), write(BERGEN, call("get_weather", city=3)), 0.5),
    ("schema_valid", calling(OSLO), write(call("get_weather", days=1)), 0),
    ("schema_valid", calling(OSLO), write(call("unknown")), 0),
    ("schema_valid", calling(OSLO), BROKEN, 0),
    ("schema_valid", calling(OSLO), "It is warm.", 0),
    ("schema_valid", calling(), "No tool fits.", 1),
    ("tool_choice", calling(OSLO), write(BERGEN), 1),
    ("tool_choice", calling(OSLO), write(OSLO, OSLO), 2 / 3),
    ("tool_choice", calling(OSLO, ALL), write(ALL), 2 / 3),
    ("tool_choice", calling(OSLO), write(ALL), 0),
    ("tool_choice", calling(OSLO), BROKEN, 0),
    ("tool_choice", calling(), "No tool fits.", 1),
    ("tool_choice", calling(), write(OSLO), 0),
    ("argument_names", calling(OSLO), write(call("get_weather", city="Rome", days=9)), 1),
    ("argument_names", calling(OSLO), write(BERGEN), 2 / 3),
    ("argument_names", calling(BERGEN), write(call("get_weather", town="Bergen")), 0),
    ("argument_names", calling(OSLO), write(call("list_all", city="Oslo")), 0),  # of another tool
    ("argument_names", calling(ALL), write(ALL), 1),
    ("argument_names", calling(ALL), "It is warm.", 0),
    ("argument_names", calling(), "No tool fits.", 1),
    ("argument_names", calling(OSLO), BROKEN, 0),
    ("argument_values", calling(OSLO), write(call("get_weather", days=1.0, city="Oslo")), 1),
    ("argument_values", calling(OSLO), write(call("get_weather", city="Oslo", days=2)), 0.5),
    ("argument_values", calling(OSLO), write(call("get_weather", city="Oslo")), 2 / 3),
    ("argument_values", calling(BERGEN), write(OSLO), 0),
    ("argument_values", calling(ALL), write(ALL), 1),
    ("argument_values", calling(ALL), write(OSLO), 0),
    ("argument_values", calling(), "No tool fits.", 1),
    ("argument_values", calling(), write(OSLO), 0),
    ("grounded_answer", ANSWERING, "Wind north-east at 21.5 degrees.", 1),
    ("grounded_answer", ANSWERING, "It is 21.5 degrees.", 0.5),
    ("grounded_answer", ANSWERING, "It is 22 degrees.", 0),
    ("grounded_answer", ANSWERING, write(call("say", text="north-east, 21.5")), 0),  # no user reads a call
    ("grounded_answer", calling(OSLO), "anything", 1),
    ("grounded_answer", calling(), "anything", 1),
    ("refrains", calling(), "No tool fits.", 1),
    ("refrains", calling(), write(OSLO), 0),
    ("refrains", calling(), BROKEN, 0),
    ("refrains", calling(OSLO), write(OSLO), 1),
    ("refrains", calling(OSLO), "It is warm.", 1),
]


@pytest.mark.parametrize(("name", "record", "text", "value"), CASES)
def test_value(name, record, text, value):
    assert judge(name, record, text).value == pytest.approx(value)


def test_parts_explain_the_value():
    assert judge("json_valid", calling(OSLO), BROKEN).parts == {"repaired": 1}
    assert judge("argument_names", calling(OSLO), write(BERGEN)).parts == {"precision": 1, "recall": 0.5}
    assert judge("argument_values", calling(BERGEN), write(call("get_weather", city="Bergen", days=1))).parts == {
        "precision": 0.5,
        "recall": 1,
    }
    assert judge("grounded_answer", ANSWERING, "21.5 and AX-77").parts == {"faithful": 0.5}


def test_mixture_is_a_weighted_mean_and_its_parts_are_the_single_values():
    mixture = Mixture({"json_valid": 0.3, "tool_choice": 0.7, "refrains": 0})
    text = write(OSLO) + BROKEN
    found = mixture(calling(OSLO), 1, text, HERMES.parse(text))
    assert found.parts == pytest.approx({"json_valid": 0.5, "tool_choice": 2 / 3})
    assert found.value == pytest.approx(0.3 * 0.5 + 0.7 * 2 / 3)


def test_a_function_that_changes_what_it_judges_changes_a_copy(tmp_path, monkeypatch):
    (tmp_path / "emptying_rewards.py").write_text(
        "from kd.rewards.reward import Reward\n"
        "def judge(record, turn, text, calls):\n"
        "    found = Reward(float(bool(record.messages and record.tools and calls.calls)))\n"
        "    record.messages.clear(), record.tools[0].clear(), calls.calls.clear()\n"
        "    if turn == 0:\n        raise ValueError('no turn')\n"
        "    return found\n"
        "def again(*answer):\n    return judge(*answer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    record, calls = calling(OSLO), HERMES.parse(write(OSLO))
    mixture = Mixture({"emptying_rewards:judge": 1, "emptying_rewards:again": 1, "exact_call": 1})
    assert mixture(record, 1, write(OSLO), calls).value == 1
    assert record == calling(OSLO) and calls == HERMES.parse(write(OSLO))
    with pytest.raises(RewardError, match="record r: ValueError: no turn"):
        mixture(record, 0, write(OSLO), calls)


def test_a_users_own_function_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "from kd.rewards.reward import Reward\n"
        "def brief(record, turn, text, calls):\n    return Reward(1 / max(len(text), 1))\n"
        "def wrong(record, turn, text, calls):\n    return 1\n"
        "def failing(record, turn, text, calls):\n    raise KeyError('x')\n"
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\n"
        "def mute(record, turn, text, calls):\n    raise Mute\n"
        "class Own(Reward):\n    def __post_init__(self):\n        pass\n"
        "def large(record, turn, text, calls):\n    return Own(7.0)\n"
        "def numpy(record, turn, text, calls):\n    from numpy import float32\n    return Reward(float32(0.25))\n"
        "def leaving(record, turn, text, calls):\n    raise SystemExit(0)\n"
        "def cancelling(record, turn, text, calls):\n    import asyncio\n    raise asyncio.CancelledError\n"
        "class Stop(BaseException):\n    pass\n"
        "def stopping(record, turn, text, calls):\n    raise Stop('here')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert Mixture({"my_rewards:brief": 2})(calling(), 1, "four", HERMES.parse("four")) == Reward(
        0.25, {"my_rewards:brief": 0.25}
    )
    messages = {
        "wrong": "returned int: return",
        "failing": "record r: KeyError: 'x'",
        "leaving": "record r: SystemExit",
        "cancelling": "record r: CancelledError",
        "stopping": "record r: Stop: here: mend the function",
        "mute": "record r: Mute: it cannot say what it is: mend the function",
        "large": "record r: ValueError: a reward's value is 7.0",
    }
    assert type(Mixture({"my_rewards:numpy": 1})(calling(), 1, "", HERMES.parse("")).parts["my_rewards:numpy"]) is float
    for name, message in messages.items():
        with pytest.raises(RewardError, match=message):
            Mixture({f"my_rewards:{name}": 1})(calling(), 1, "", HERMES.parse(""))
    for name, message in (
        ("my_rewards:number", "it is int, no function"),
        ("my_rewards:absent", "AttributeError"),
        ("no_such:thing", "ModuleNotFoundError"),
        ("absent", "no reward 'absent': choose one of exact_call, json_valid"),
    ):
        with pytest.raises(RewardError, match=message):
            find_reward(name)
