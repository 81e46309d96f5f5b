"""Calls in an assistant's text: read where they are plain, mentions where they are not, and split for rewriting."""

from __future__ import annotations

import json
import time

import pytest

from kd.toolcalls.text.text_calls import find_mentions, read_text_calls, split_text_calls

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "get_weather", "Get News", "a.b")]
CITY = {"city": "Quint"}
READ = {
    "functioncall, arguments as text": (
        """<functioncall> {"name": "f", "arguments": '{"city": "Quint"}'}""",
        [("f", CITY)],
    ),
    "functioncall, an apostrophe": (
        r"""So. <functioncall> {"name": "f", "arguments": '{"q": "I\'m"}'}""",
        [("f", {"q": "I'm"})],
    ),
    "functioncall, an object": ('<functioncall>{"name": "f", "arguments": {"city": "Quint"}}', [("f", CITY)]),
    "two functioncalls": (
        """<functioncall> {"name": "f", "arguments": '{}'} <functioncall> {"name": "a.b", "arguments": {}}""",
        [("f", {}), ("a.b", {})],
    ),
    "react": ('Thought: look.\nAction: get_weather\nAction Input: {"city": "Quint"}', [("get_weather", CITY)]),
    "react, on several lines": ('Action:f\nAction Input:\n{"a": [1,\n2]}\n', [("f", {"a": [1, 2]})]),
    "python": ('[get_weather(city="Quint")]', [("get_weather", CITY)]),
    "python, two": (
        """[f(a=1, b=[True, None]), Get News(q='x (y), "z"')]""",
        [("f", {"a": 1, "b": [True, None]}), ("Get News", {"q": 'x (y), "z"'})],
    ),
    "python, one without brackets": ("a.b(x={'k': -1.5})", [("a.b", {"x": {"k": -1.5}})]),
    "python, nothing given": ("[f()]", [("f", {})]),
    "hermes": ('Look.\n<tool_call>\n{"name": "f", "arguments": {"city": "Quint"}}\n</tool_call>', [("f", CITY)]),
    "bare": ('{"name": "f", "parameters": {"city": "Quint"}}', [("f", CITY)]),
}


@pytest.mark.parametrize("name", READ)
def test_a_call_in_each_syntax(name):
    text, wanted = READ[name]
    calls = read_text_calls(text, TOOLS)
    assert [(call.name, call.arguments) for call in calls] == wanted
    assert [text[slice(*call.name_at)] for call in calls] == [call.name for call in calls]
    assert all(call.start <= call.name_at[0] and call.arguments_at[1] <= call.end for call in calls)
    assert find_mentions(text, TOOLS, calls) == []
    before = split_text_calls(text, calls)
    assert before is not None and text.startswith(before) and not read_text_calls(before, TOOLS)
    assert split_text_calls(text + " That is all.", read_text_calls(text + " That is all.", TOOLS) or calls) is None


MENTIONS = {
    "a name that is not offered": ('[other(city="Quint")]', 0),
    "python in prose": ('I would call get_weather(city="Quint") now.', 1),
    "python by position": ('[get_weather("Quint")]', 1),
    "python with a variable": ("[get_weather(city=here)]", 1),
    "python, twice one argument": ("[f(a=1, a=2)]", 1),
    "python, cut off": ('[get_weather(city="Quint"', 1),
    "functioncall with broken arguments": ("""<functioncall> {"name": "f", "arguments": '{"city": '}""", 1),
    "functioncall of no tool": ("""<functioncall> {"name": "no", "arguments": '{}'}""", 1),
    "react with a text": ("Action: get_weather\nAction Input: Quint", 1),
    "react with its result": ("Action: f\nAction Input: {}\nObservation: 3\nFinal Answer: 3", 1),
    "tags": ("<function=get_weather><parameter=city>Quint</parameter></function>", 1),
    "name first": ('get_weather\n{"city": "Quint"}', 1),
    "a JSON call that is cut off": ('{"name": "f", "arguments": {"city": ', 1),
    "a call that is read, and one that is not": ('{"name": "f", "arguments": {}} f(x)', 1),
    "the name in prose": ("get_weather and f are tools; Get News too (it reads news).", 0),
    "nothing": ("It is 31 C (hot).", 0),
}


@pytest.mark.parametrize("name", MENTIONS)
def test_what_has_the_shape_of_a_call_and_is_not_read_is_a_mention(name):
    text, num = MENTIONS[name]
    calls = read_text_calls(text, TOOLS)
    assert len(calls) == (name == "a call that is read, and one that is not")
    assert len(find_mentions(text, TOOLS, calls)) == num


def test_without_tools_a_marked_call_is_read_by_any_name_and_python_is_not():
    assert [c.name for c in read_text_calls("""<functioncall> {"name": "x", "arguments": '{}'}""", [])] == ["x"]
    assert [c.name for c in read_text_calls("Action: x\nAction Input: {}", [])] == ["x"]
    assert read_text_calls("[x(a=1)]", []) == [] and find_mentions("[x(a=1)]", [], []) == []
    assert len(find_mentions("<functioncall> x", [], [])) == 1


def test_a_text_after_its_calls_is_not_split():
    for text in (
        '{"name": "f", "arguments": {}} is it',
        '{"name": "f", "arguments": {}} and {"name": "f", "arguments": {}}',
    ):
        assert split_text_calls(text, read_text_calls(text, TOOLS)) is None
    fenced = f"Look.\n```json\n[{json.dumps({'name': 'f', 'arguments': CITY})}]\n```\n"
    assert split_text_calls(fenced, read_text_calls(fenced, TOOLS)) == "Look."


def test_time_grows_with_the_text():
    start = time.process_time()
    for text in (
        "<functioncall> {" * 20_000,
        "[f(" * 20_000,
        "Action: f\n" * 20_000,
        "f(" * 20_000,
        '{"name": "f", ' * 5000,
    ):
        find_mentions(text, TOOLS, read_text_calls(text, TOOLS))
    assert time.process_time() - start < 10
