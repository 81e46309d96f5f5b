"""One conversation in every record format."""

from __future__ import annotations

import json

from kd.records.record import parse_record

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
