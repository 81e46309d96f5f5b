"""Other people's records become chat records: every form, what it refuses, and the declarations of other dialects."""

from __future__ import annotations

import json

import pytest

from helpers.reading import calls_of
from kd.config.registries import FORMATS
from kd.records.checks import DataError
from kd.records.formats.bfcl import from_bfcl_record
from kd.records.formats.format import detect_format
from kd.records.formats.schemas import from_bfcl, from_python_type
from kd.records.record import parse_record
from kd.sources.demo import corpus as demo
from kd.toolcalls.registry import ToolRegistry

WEATHER = {
    "name": "weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOL = {"type": "function", "function": WEATHER}
ARGUMENTS = {"city": "São Tomé 🌧", "near": [{"x": 1e-3}, None, {}]}


def read(data, format=None):
    return parse_record(json.loads(json.dumps(data)), "f.jsonl:7", format)


def said(record):
    return [(m["role"], m["content"]) for m in record.messages]


# Each form of one conversation: question, two calls, two results, an answer.
CALLS = [("weather", ARGUMENTS), ("weather", {})]
CONVERSATION = [("user", "Rain?"), ("assistant", ""), ("tool", '{"rain": 7}'), ("tool", "dry"), ("assistant", "7 mm.")]


def wire(index, name, arguments, as_text=True):
    return {
        "id": f"c{index}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments) if as_text else arguments},
    }


def block(name, arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


QWEN_SYSTEM = f"""Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{json.dumps(TOOL)}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
HERMES_SYSTEM = (
    f"You are a function calling AI model. Here are the tools: <tools> [{json.dumps(TOOL)}] </tools> Use: "
    "<tool_call>\n{...}\n</tool_call>"
)
BLOCKS = "\n".join(block(*call) for call in CALLS)
RESPONSES = '<tool_response>\n{"rain": 7}\n</tool_response>\n<tool_response>\ndry\n</tool_response>'
FORMS = {
    "chat, arguments as text": {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Rain"}, {"type": "text", "text": "?"}]},
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [wire(i, *call) for i, call in enumerate(CALLS)],
                "weight": 1,
            },
            {"role": "tool", "tool_call_id": "c0", "content": '{"rain": 7}'},
            {"role": "tool", "tool_call_id": "c1", "content": "dry"},
            {"role": "assistant", "content": "7 mm."},
        ],
    },
    "chat, arguments as objects, all of it text": {
        "tools": json.dumps([WEATHER]),
        "messages": json.dumps(
            [
                {"role": "user", "content": "Rain?"},
                {"role": "assistant", "tool_calls": [wire(i, *call, False) for i, call in enumerate(CALLS)]},
                {"role": "tool", "content": '{"rain": 7}'},
                {"role": "tool", "content": "dry"},
                {"role": "assistant", "content": "7 mm."},
            ]
        ),
    },
    "chat, hermes text": {
        "messages": [
            {"role": "system", "content": HERMES_SYSTEM},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": BLOCKS},
            {"role": "tool", "content": RESPONSES},
            {"role": "assistant", "content": "7 mm."},
        ]
    },
    "sharegpt": {
        "tools": json.dumps([WEATHER]),
        "conversations": [
            {"from": "human", "value": "Rain?"},
            *(
                {"from": "function_call", "value": json.dumps({"name": name, "arguments": arguments})}
                for name, arguments in CALLS
            ),
            {"from": "observation", "value": '{"rain": 7}'},
            {"from": "observation", "value": "dry"},
            {"from": "gpt", "value": "7 mm."},
        ],
    },
    "sharegpt, hermes text": {
        "conversations": [
            {"from": "system", "value": HERMES_SYSTEM},
            {"from": "human", "value": "Rain?"},
            {"from": "gpt", "value": BLOCKS},
            {"from": "tool", "value": RESPONSES},
            {"from": "gpt", "value": "7 mm."},
        ]
    },
    "sharegpt, chat messages under its key": {
        "tools": [TOOL],
        "conversations": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [wire(i, *call) for i, call in enumerate(CALLS)]},
            {"role": "tool", "content": '{"rain": 7}'},
            {"role": "tool", "content": "dry"},
            {"role": "assistant", "content": "7 mm."},
        ],
    },
    "chatml, python literals": {
        "tools": [WEATHER],
        "text": f"""<|im_start|>user
Rain?<|im_end|>
<|im_start|>assistant
<tool_call>
{ {"arguments": ARGUMENTS, "name": "weather"} }
</tool_call><tool_call>{ {"name": "weather", "arguments": {}} }</tool_call><|im_end|>
<|im_start|>user
{RESPONSES}<|im_end|>
<|im_start|>assistant
7 mm.<|im_end|>
""",
    },
}


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


@pytest.mark.parametrize("as_text", [True, False])
def test_xlam_declarations_become_json_schema(as_text):
    form = json.dumps if as_text else lambda value: value
    tools = [
        {
            "name": "f",
            "description": "",
            "parameters": {
                "n": {"type": "int", "description": "how many"},
                "tags": {"type": "List[str], optional", "default": ""},
                "at": {"type": "Tuple[float, float]"},
                "rate": {"type": "float", "default": 0.5},
                "any": {"type": "Callable[[int], bool]"},
            },
        }
    ]
    record = read(
        {
            "id": 0,
            "query": "q",
            "tools": form(tools),
            "answers": form([{"name": "f", "arguments": {"n": 2, "at": [1, 2.5], "any": "x"}}] * 2),
        }
    )
    assert record.id == "0" and len(calls_of(record)) == 2
    parameters = record.tools[0]["function"]["parameters"]
    assert parameters["required"] == ["n", "at", "any"] and parameters["properties"]["n"] == {
        "type": "integer",
        "description": "how many",
    }
    registry = ToolRegistry(record.tools)
    assert registry.validate_call("f", {"n": 2, "at": [1, 2.5], "any": "x"}) == []
    assert (
        len(registry.validate_call("f", {"n": True, "at": ["x"], "any": 1, "tags": [1], "rate": "x", "more": 1})) == 5
    )


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("int", {"type": "integer"}),
        ("np.ndarray", {"type": "array"}),
        ("Any", {}),
        ("", {}),
        ("List[", {}),
        ("List[Any]", {"type": "array"}),
        (
            "Dict[str, List[bool]]",
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}},
        ),
        ("Optional[str]", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("int | float", {"anyOf": [{"type": "integer"}, {"type": "number"}]}),
        ("Union[int, int]", {"type": "integer"}),
        ("Union[int, Any]", {}),
        ("Literal['a', 2]", {"enum": ["a", 2]}),
        ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
        ("Tuple[int, str]", {"type": "array"}),
        ("List[" * 40 + "int" + "]" * 40, None),
        ("[" * 5000, {}),
    ],
)
def test_python_types(text, schema):
    assert from_python_type(text) == schema or schema is None


def test_bfcl_types():
    made = from_bfcl(
        {
            "type": "dict",
            "required": ["type"],
            "properties": {
                "type": {"type": "String", "optional": True},
                "x": {"type": "float"},
                "at": {"type": "tuple", "items": {"type": "long"}},
                "any": {"type": "any"},
                "kinds": {"type": "array", "items": {"type": "string"}, "enum": ["a", "b"]},
                "map": {"type": "HashMap", "additionalProperties": {"type": "char"}},
            },
        }
    )
    assert made["type"] == "object" and {name: schema.get("type") for name, schema in made["properties"].items()} == {
        "type": "string",
        "x": "number",
        "at": "array",
        "any": None,
        "kinds": "array",
        "map": "object",
    }
    assert made["properties"]["at"]["items"] == {"type": "integer"} and made["properties"]["map"][
        "additionalProperties"
    ] == {"type": "string"}
    assert (
        made["properties"]["kinds"]["items"] == {"type": "string", "enum": ["a", "b"]}
        and "enum" not in made["properties"]["kinds"]
    )


FUNCTION = {
    "name": "a.book",
    "parameters": {
        "type": "dict",
        "required": ["city", "note"],
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "note": {"type": "string"},
            "list": {"type": "array", "items": {"type": "integer"}},
            "who": {
                "type": "dict",
                "properties": {"age": {"type": "integer"}, "name": {"type": "string"}, "tags": {"type": "array"}},
            },
            "rooms": {"type": "array", "items": {"type": "dict", "properties": {"beds": {"type": "integer"}}}},
        },
    },
}


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ({"city": ["Rome", "Roma"]}, {"city": "Rome"}),
        ({"nights": ["two", 2]}, {"nights": 2}),  # the first that the schema accepts
        ({"nights": ["", 2]}, {}),
        ({"nights": [2, ""]}, {"nights": 2}),
        ({"nights": [""]}, {}),  # "": may be left out
        ({"note": [""]}, {"note": ""}),
        ({"note": ["", "x"]}, {"note": "x"}),  # unless it is required
        ({"list": [[1, 2], [2, 1]]}, {"list": [1, 2]}),
        ({"list": [[]]}, {"list": []}),
        ({"who": [{"age": [30, 31], "name": ["", "Al"]}]}, {"who": {"age": 30}}),  # alternatives again, inside
        ({"who": [{"age": [30], "tags": [["a"]]}]}, {"who": {"age": 30, "tags": ["a"]}}),
        ({"who": [{"tags": ["a", "b"]}]}, {"who": {"tags": ["a", "b"]}}),
        ({"rooms": [[{"beds": [2, 3]}, {"beds": [1]}]]}, {"rooms": [{"beds": 2}, {"beds": 1}]}),
        ({"unknown": [1]}, {"unknown": 1}),
        ({}, {}),
    ],
)
def test_bfcl_takes_the_first_alternative_that_fits(expected, arguments):
    made = from_bfcl_record(
        {
            "question": [[{"role": "user", "content": "q"}]],
            "function": [FUNCTION],
            "ground_truth": [{"a.book": expected}] * 2,
        },
        "x",
    )
    assert [call["function"] for call in made["messages"][-1]["tool_calls"]] == [
        {"name": "a.book", "arguments": arguments}
    ] * 2


def test_bfcl_truth_as_python_calls():
    record = read(
        {
            "id": "e",
            "question": "q",
            "function": FUNCTION,
            "ground_truth": ["a.book('Rome', nights=-2, who={'t': (1, None)})"],
        }
    )
    assert calls_of(record) == [
        {"name": "a.book", "arguments": {"city": "Rome", "nights": -2, "who": {"t": [1, None]}}}
    ]


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
