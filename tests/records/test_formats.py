"""Other people's records become chat records: every format, and what it refuses."""

from __future__ import annotations

import json

import pytest

from helpers.format_cases import (
    BLOCKS,
    CALLS,
    CONVERSATION,
    FORMS,
    FUNCTION,
    QWEN_SYSTEM,
    TOOL,
    WEATHER,
    block,
    read,
    said,
    wire,
)
from helpers.reading import calls_of
from kd.config.registries import FORMATS
from kd.records.checks import DataError
from kd.records.formats.format import detect_format
from kd.records.record import parse_record
from kd.sources.demo import corpus as demo


@pytest.mark.parametrize("form", FORMS)
def test_one_conversation_in_every_form_is_the_same_record(form):
    assert detect_format(FORMS[form]) == form.split(",")[0]
    record = read(FORMS[form])
    assert said(record) == CONVERSATION and record.tools == [TOOL]
    assert [(call["name"], call["arguments"]) for call in calls_of(record)] == CALLS
    assert read(FORMS[form], form.split(",")[0]) == record


def test_the_demo_is_read_as_it_is():
    for kind in demo.KINDS:
        record = demo.record(kind, 5)
        assert parse_record(vars(record), "x") == record


def test_the_text_around_the_tools_stays_and_the_tools_leave_it():
    record = read(
        {
            "messages": [
                {"role": "system", "content": QWEN_SYSTEM + "\nAnswer in French."},
                {"role": "user", "content": "Rain?"},
                {"role": "assistant", "content": "Let me see.\n" + BLOCKS},
            ]
        }
    )
    assert said(record) == [
        ("system", "Be brief.\n\nAnswer in French."),
        ("user", "Rain?"),
        ("assistant", "Let me see."),
    ]
    assert record.tools == [TOOL] and len(calls_of(record)) == 2


def test_legacy_function_calls_become_tool_calls():
    record = read(
        {
            "functions": [WEATHER],
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Rain?"},
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'},
                },
                {"role": "function", "name": "weather", "content": "dry"},
                {"role": "assistant", "content": "No."},
            ],
        }
    )
    assert [m["role"] for m in record.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert calls_of(record) == [{"name": "weather", "arguments": {"city": "Rome"}}] and record.tools == [TOOL]


@pytest.mark.parametrize("named", ["functions", "tool_defs"])
@pytest.mark.parametrize("as_text", [False, True])
def test_tools_under_their_other_names_are_offered(named, as_text):
    """Read by no name, they would be absent from the prompt, and the calls held to no schema."""
    declared = {named: json.dumps([WEATHER]) if as_text else [WEATHER]}
    ask, answer = {"from": "human", "value": "Rain?"}, {"from": "gpt", "value": "No."}
    chat = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}]
    for talk in ({"messages": chat}, {"conversations": chat}, {"conversations": [ask, answer]}):
        assert read({**talk, **declared}).tools == [TOOL]


def test_the_flat_record_of_the_first_system():
    record = read(
        {
            "prompt": "Rain?",
            "teacher_text": f"Look.\n{block('web.search', {'q': 'rain'})}",
            "tool_name_ids": [4, 5],
            "tool_name_mask": [1, 1],
            "teacher_quality_score": 0.75,
            "metadata": {"k": 1},
        }
    )
    assert (record.quality, record.meta) == (0.75, {"k": 1}) and said(record) == [
        ("user", "Rain?"),
        ("assistant", "Look."),
    ]
    assert calls_of(record) == [{"name": "web.search", "arguments": {"q": "rain"}}]


USER = {"role": "user", "content": "q"}
REFUSED = [
    ({"messages": [USER, {"role": "assistant", "content": "a", "weight": 0}]}, r"messages\[1\]\.weight: 0"),
    ({"messages": [USER, {"role": "assistant", "refusal": "no"}]}, r"messages\[1\]\.refusal"),
    (
        {"messages": [USER, {"role": "assistant", "function_call": {"name": "f"}, "tool_calls": [wire(0, "f", {})]}]},
        "both function_call and tool_calls",
    ),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [wire(0, "f", {}), wire(0, "f", {})]}]},
        "two calls have the same id",
    ),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [wire(0, "f", {})]},
                {"role": "tool", "tool_call_id": "c9", "content": ""},
            ]
        },
        "no call before it has the id 'c9'",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "<tool_call>{}</tool_call>"}]},
        "one object with name and arguments",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "<tool_call>{'a': }</tool_call>"}]},
        "<tool_call> 1: not a line of JSON",
    ),
    ({"messages": [USER, {"role": "assistant", "content": BLOCKS[:-5]}]}, "<tool_call> 2: the block is not closed"),
    (
        {"messages": [USER, {"role": "assistant", "content": BLOCKS + " bye"}]},
        r"text after a <tool_call> block "
        r"\('bye'\)",
    ),
    (
        {
            "messages": [
                {"role": "system", "content": "<tools>f(x)</tools>"},
                USER,
                {"role": "assistant", "content": "a"},
            ]
        },
        "<tools>: not a line of JSON",
    ),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}]},
            ]
        },
        "arguments: not JSON .*'a' twice",
    ),
    ({"conversations": []}, "as sharegpt: conversations: a non-empty list"),
    ({"conversations": [{"from": "me", "value": ""}]}, r"conversations\[0\]\.from: must be one of"),
    (
        {"conversations": [{"from": "gpt", "value": "so", "tool_calls": [{"function": {"name": "f"}}]}]},
        r"conversations\[0\]: calls beside from and value are not read",
    ),
    ({"conversations": [{"from": ["gpt"], "value": ""}]}, r"conversations\[0\]\.from: must be"),
    ({"conversations": [{"from": "gpt", "value": 1}]}, r"\[0\]\.value: text is needed"),
    ({"conversations": [{"from": "function_call", "value": "f()"}]}, r"conversations\[0\]\.value: not a line of JSON"),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<think>x</think>a"}]},
        "holds a <think>",
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "reasoning": "x"}]},
        r"conversations\[1\]\.reasoning: chain-of-thought",
    ),
    ({"query": "q", "tools": [], "answers": "[]"}, "answers: no call"),
    ({"query": 1, "answers": []}, "query: text is needed"),
    ({"query": "q", "answers": "["}, "answers: not a line of JSON"),
    ({"query": "q", "answers": [{"arguments": {}}]}, "answers: a call is an object with name"),
    ({"question": [[USER], [USER]], "function": [FUNCTION], "ground_truth": []}, "a dialogue of 2 turns"),
    ({"question": "q", "function": "", "ground_truth": []}, "function: a function"),
    ({"question": "q", "function": FUNCTION}, "ground_truth: none, and no possible_answer file"),
    ({"question": "q", "function": FUNCTION, "ground_truth": []}, "no call expected"),
    ({"question": "q", "function": FUNCTION, "ground_truth": ["f(x=y)"]}, "no Python call with literal values"),
    ({"question": "q", "function": FUNCTION, "ground_truth": [{"f": 1}]}, "an object of arguments"),
    ({"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na"}, "character 29 on is no whole"),
    ({"prompt": 1, "teacher_text": "a"}, "prompt: text"),
    ({"prompt": "q", "teacher_text": None}, "teacher_text: text is needed"),
    (
        {"prompt": "q", "teacher_text": "a", "teacher_reasoning_content": "x"},
        "teacher_reasoning_content: chain-of-thought",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "a"}], "meta": {"deep": [{"Reasoning-Content": "x"}]}},
        r"meta\.deep\[0\]\.Reasoning-Content",
    ),
    ({"messages": [USER, {"role": "assistant", "content": "a"}], "caws": [1]}, "caws: an object is needed"),
    ({"messages": [USER, {"role": "assistant", "content": "a"}], "meta": "x"}, "meta: an object"),
    ({"messages": [USER, {"role": "assistant", "content": "a"}], "id": [1]}, "id: text or a whole number"),
    ({"messages": [USER, {"role": "assistant", "content": "a"}], "quality": True}, "quality"),
    (
        {"messages": [USER, {"role": "assistant", "content": "a"}], "tools": [{"type": "web_search"}]},
        r"tools\[0\]: a declaration needs a name",
    ),
]


@pytest.mark.parametrize(("data", "match"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_form_does_not_allow_is_refused_with_its_field(data, match):
    with pytest.raises(DataError, match=rf"^f\.jsonl:7: .*{match}"):
        read(data)


def test_a_form_is_named_or_refused_by_name():
    with pytest.raises(DataError, match="no format of records is called 'alpaca'; there are chat, chatml"):
        read({"messages": []}, "alpaca")
    for name in FORMATS.names():  # a record of another form is refused, never a crash
        with pytest.raises(DataError, match=r"^f\.jsonl:7: "):
            read({"instruction": "x", "output": "y"}, name)
