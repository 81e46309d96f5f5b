"""Composed and given prompts: kinds as weighed, each another, arguments that fit, and nothing that is held out."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter

import pytest

from helpers.teaching_server import MAIL, STOCK, TOOLS, WEATHER
from kd.config.sections.generation import Mix, Prompts, Splits
from kd.generation.prompts.compose import ComposeError, Composer
from kd.generation.prompts.duplicates import Seen
from kd.generation.prompts.given import GivenPrompts
from kd.generation.prompts.schema_values import SchemaError, draw, draw_arguments
from kd.generation.scrub import Scrubber
from kd.records.checks import DataError
from kd.toolcalls.default_tools import DEFAULT_TOOLS
from kd.toolcalls.registry import ToolRegistry


def compose(num, tools=DEFAULT_TOOLS, splits=None, seed=0, **given):
    composer = Composer(ToolRegistry(tools), Prompts(tools="x", num=num, **given), splits or Splits(), seed)
    return list(composer.compose(num)), composer


def test_a_thousand_are_a_thousand_and_more_of_them_begin_alike():
    tasks, _ = compose(1000, languages=("en", "de", "fr", "es"))
    assert len({task.text.casefold() for task in tasks}) == len({task.key for task in tasks}) == 1000
    assert Counter(task.kind for task in tasks) == {
        "single": 400, "several": 200, "near_miss": 100, "no_tool": 100, "missing": 100, "recovery": 100
    }  # fmt: skip
    assert [task.key for task in compose(50, languages=("en", "de", "fr", "es"))[0]] == [t.key for t in tasks[:50]]
    assert compose(50, seed=1)[0][0].key != tasks[0].key


def test_each_kind_offers_and_wants_what_it_says():
    for task in compose(120)[0]:
        offered = ToolRegistry(task.tools)
        assert all(not offered.validate_call(call["name"], call["arguments"]) for call in task.wanted)
        assert len(task.wanted) == {"single": 1, "recovery": 1, "several": 2}.get(task.kind, 0)
        assert task.fails == (task.kind == "recovery") and len(offered) >= 1
        if task.kind == "missing":
            (given,) = task.followups
            assert given.startswith("It is ")
        for call in task.wanted:  # the words have all that the call needs
            values = [value for value in call["arguments"].values() if isinstance(value, str)]
            assert all(value in task.text for value in values)


def test_a_near_miss_does_not_offer_the_tool_that_it_asks_for():
    tasks, _ = compose(30, tools=TOOLS, mix=Mix(single=0, several=0, no_tool=0, missing=0, recovery=0))
    words = {"get_weather": "look up the weather", "get_stock": "look up the price", "send_mail": "send a mail"}
    for task in tasks:
        asked = next(name for name, said in words.items() if said in task.text.lower())
        assert asked not in {tool["function"]["name"] for tool in task.tools}


def test_near_duplicates_are_left_out_by_the_library():
    pytest.importorskip("rensa")
    seen = Seen(0.8)
    words = "please look up the weather of Oslo for the next three days, and tell me whether to take a coat"
    assert [seen.add(words), seen.add(words.upper() + "  "), seen.add(words + "!"), seen.add("a poem")] == [
        "", "equal", "near", ""
    ]  # fmt: skip
    tasks, composer = compose(200, near_duplicates=0.7)
    assert len(tasks) == 200 and composer.duplicates["near"] > 0


def test_what_cannot_be_composed_is_told():
    one = {"name": "ping", "description": "Ping.", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(ComposeError, match="prompts.mix.several: needs 2 tools"):
        compose(5, tools=[one])
    only = Mix(several=0, near_miss=0, missing=0, recovery=0, no_tool=0)
    with pytest.raises(ComposeError, match=r"prompts.num: only \d distinct prompts were composed of these 1 tools"):
        compose(50, tools=[one], mix=only)
    with pytest.raises(ComposeError, match="prompts.mix.missing: no tool has a required argument"):
        compose(5, tools=[one], mix=Mix(several=0, near_miss=0))
    odd = {
        "name": "odd",
        "parameters": {"properties": {"a": {"type": "string", "pattern": "^(%%){3}$"}}, "required": ["a"]},
    }
    with pytest.raises(SchemaError, match="tool 'odd'.*'a'.*give the argument `examples`"):
        compose(5, tools=[odd], mix=only)


SCHEMA = {
    "type": "object",
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    "properties": {
        "at": {"$ref": "#/$defs/point"},
        "mode": {"enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "uniqueItems": True, "minItems": 2},
        "when": {"type": "string", "format": "date"},
        "rate": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.25},
        "even": {"type": "integer", "multipleOf": 2, "minimum": -6, "maximum": -2},
        "either": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
        "both": {"allOf": [{"properties": {"p": {"type": "null"}}}, {"required": ["p"]}]},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]+$"},
        "word": {"type": ["null", "string"], "minLength": 12},
    },
    "required": ["at", "tags", "rate", "even", "code", "both", "word", "either"],
}


@pytest.mark.parametrize("tool", [*DEFAULT_TOOLS, *TOOLS, {"name": "all", "parameters": SCHEMA}], ids=str)
def test_drawn_arguments_fit_the_schema(tool):
    function = tool.get("function", tool)
    for seed in range(40):
        drawn = draw_arguments({"type": "function", "function": function}, random.Random(seed))
        assert not ToolRegistry([tool]).validate_call(function["name"], drawn)


ODD = {
    "parts that are no objects": {"allOf": [True, {"type": "string"}]},
    "a choice that nothing fits": {"anyOf": [False]},
    "false": False,
    "a billion items": {"type": "array", "minItems": 10**9},
    "items of items": {"type": "array", "minItems": 900, "items": {"type": "array", "minItems": 900}},
    "a text of a terabyte": {"type": "string", "minLength": 10**12},
    "an infinite number": {"type": "integer", "minimum": float("inf")},
    "a step below all floats": {"type": "number", "multipleOf": 1e-320},
    "a broken pattern": {"type": "string", "pattern": "("},
    "a slow pattern": {"type": "string", "pattern": "^([a-z]+)+[!]$", "minLength": 60},
    "a reference into a list": {"$ref": "#/anyOf/5"},
}


@pytest.mark.parametrize("schema", ODD.values(), ids=ODD.keys())
def test_of_an_odd_schema_a_value_is_drawn_or_it_is_told(schema):
    tool = {"type": "function", "function": {"name": "odd", "parameters": {"properties": {"a": schema}}}}
    tool["function"]["parameters"]["required"] = ["a"]
    began = time.process_time()
    with contextlib.suppress(ValueError):
        draw_arguments(tool, random.Random(0))
    with contextlib.suppress(ValueError):
        draw(schema, random.Random(0))
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "schema",
    [{"enum": 5}, {"required": 5, "properties": {"a": {}}, "type": "object"}, {"properties": [1]}, {"type": 5}],
)
def test_what_is_no_schema_is_told(schema):
    """Of `returns` nothing checks that it is one."""
    with contextlib.suppress(ValueError):
        draw(schema, random.Random(0))


def test_references_are_followed_as_json_pointers():
    schema = {"$defs": {"a/b": {"anyOf": [{"const": 1}, {"const": 2}]}}, "$ref": "#/$defs/a~1b/anyOf/1"}
    assert draw(schema, random.Random(0)) == 2


def given(tmp_path, *lines, tools=(STOCK,), splits=None, **options):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts = Prompts(files=(str(tmp_path / "p.jsonl"),), **options)
    reader = GivenPrompts(ToolRegistry(tools), prompts, splits or Splits(), 0)
    return list(reader.read()), reader


def test_prompts_of_files(tmp_path):
    conversation = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "Oslo?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "21"},
        {"role": "user", "content": "And Rome?"},
        {"role": "assistant", "content": "?"},
    ]  # fmt: skip
    lines = [
        {"prompt": "one"},
        {"messages": conversation, "tools": [WEATHER]},
        {"messages": [{"role": "user", "content": "two"}]},
        {"prompt": " ONE "},
        {"messages": [{"role": "user", "content": "three"}], "tools": [MAIL]},
    ]
    tasks, reader = given(tmp_path, *lines)
    assert [task.text for task in tasks] == ["one", "Oslo?\nAnd Rome?", "two", "three"] and reader.duplicates[
        "equal"
    ] == 1
    assert tasks[1].messages == conversation[:2] and tasks[1].followups == ("And Rome?",)
    assert [tool["function"]["name"] for task in tasks for tool in task.tools] == [
        "get_stock", "get_weather", "get_stock", "send_mail"
    ]  # fmt: skip
    assert tasks[1].gold is not None and tasks[0].gold is None
    assert len(given(tmp_path, *lines, num=2)[0]) == 2
    assert {task.split for task in given(tmp_path, *lines, splits=Splits(tools=1.0))[0]} == {"unseen_tools"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": " "}, "p.jsonl:1: prompt: it is blank"),
        (["a"], "p.jsonl:1: a prompt is a JSON object"),
        ({"messages": [{"role": "system", "content": "x"}]}, "p.jsonl:1: messages: no user message"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": 3}]}, "p.jsonl:1: tools"),
        ({"prompt": "x", "reasoning_content": "hm"}, "p.jsonl:1: reasoning_content"),
    ],
)
def test_lines_that_are_no_prompts_are_named(tmp_path, line, said):
    with pytest.raises(DataError, match=said):
        given(tmp_path, line)


def test_secrets_and_addresses_are_scrubbed_everywhere():
    pytest.importorskip("phonenumbers")
    pytest.importorskip("detect_secrets")
    counts = Counter()
    token = "ghp_" + "a1" * 18
    value = [{"content": f"mail ada@example.org, call +47 22 12 34 56, key {token}"}, {"to": "ada@example.org", "n": 3}]
    assert Scrubber().scrub(value, counts) == [
        {"content": "mail [EMAIL], call [PHONE], key [SECRET]"}, {"to": "[EMAIL]", "n": 3}
    ]  # fmt: skip
    assert counts == {"secrets": 1, "emails": 2, "phones": 1}


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": " \n"}])
def test_a_blank_prompt_is_refused_before_it_is_paid(tmp_path, message):
    with pytest.raises(DataError, match=r"p.jsonl:1: messages\[0\]: it is blank"):
        given(tmp_path, {"messages": [message]})
