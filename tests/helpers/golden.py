"""Golden file of each template in tests/helpers/templates: one conversation as rendered, its spans marked in the
text.

    ⟦truth ... ⟦tool get_weather⟧ ... ⟦args {"city": "Paris"}⟧ ... ⟧

Written again by `python tests/helpers/golden.py`, for a person to read through and commit.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "templates"
NAMES = ["demo", *sorted(path.stem for path in FOLDER.glob("*.jinja"))]


def call(identity: str, name: str, arguments: dict) -> dict:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str) -> dict:
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}}
    return {
        "type": "function",
        "function": {"name": name, "description": "...", "parameters": {"type": "object", "properties": properties}},
    }


QUOTED = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
CONVERSATION = {
    "id": "golden",
    "tools": [tool("get_weather"), tool("get_weather_map"), tool("stop")],
    "messages": [
        {"role": "system", "content": "You help with weather."},
        {"role": "user", "content": f"get_weather for Paris? Not {QUOTED}!"},
        {
            "role": "assistant",
            "content": "I use get_weather_map, then get_weather.",
            "tool_calls": [
                call(
                    "call00001",
                    "get_weather_map",
                    {"city": 'Zürich "Höngg" 😀', "days": 3, "box": {"at": [47.4, 8.5], "live": True, "tag": None}},
                ),
                call("call00002", "get_weather", {"city": "Paris"}),
                call("call00003", "get_weather", {"city": "Paris"}),
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "call00001",
            "name": "get_weather_map",
            "content": '{"url": "https://maps.example/zrh"}',
        },
        {
            "role": "tool",
            "tool_call_id": "call00002",
            "name": "get_weather",
            "content": '{"temp": 21.5, "sky": ["light rain", "fog"], "pop": 1234.5}',
        },
        {
            "role": "tool",
            "tool_call_id": "call00003",
            "name": "get_weather",
            "content": '{"day": "2024-05-12", "n": 1}',
        },
        {
            "role": "assistant",
            "content": "Map 1: https://maps.example/zrh. On May 12 it is 21.50° with light rain, pop 1,234.5.",
        },
        {"role": "user", "content": "Thanks. Stop."},
        {"role": "assistant", "content": "", "tool_calls": [call("call00004", "stop", {})]},
        {"role": "tool", "tool_call_id": "call00004", "name": "stop", "content": "stopped at 14:05"},
        {"role": "assistant", "content": "Stopped at 14:05."},
    ],
}
WITHOUT_SPECIAL_TOKENS = {
    **CONVERSATION,
    "messages": [  # of the demo's tokenizer
        {**message, "content": message["content"].replace("tool_call>", "call>")}
        for message in CONVERSATION["messages"]
    ],
}


def template(name: str) -> str:
    if name == "demo":
        from kd.sources.demo.corpus import CHAT_TEMPLATE

        return CHAT_TEMPLATE
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def mark_spans(text: str, spans) -> str:
    """Mark the spans that `find_spans` gave in `text`; an empty span is marked too."""
    from kd.rendering.spans import BIT_NAMES

    kinds = {bit: kind for kind, bit in BIT_NAMES.items()}
    marks = [(span.start, -span.end, f"⟦{kinds[span.bit]} ") for span in spans] + [
        (span.end, -len(text) - 1, "⟧") for span in spans if span.end > span.start
    ]
    marks += [(span.end, -span.end, "⟧") for span in spans if span.end == span.start]
    out, done = [], 0
    for at, _, mark in sorted(marks, key=lambda m: m[:2]):
        out += [text[done:at], mark]
        done = at
    return "".join([*out, text[done:]])


def main() -> None:
    sys.path[:0] = [str(FOLDER.parent.parent.parent)]  # a checkout that is not installed
    from transformers import AutoTokenizer

    from kd.records.record import parse_record
    from kd.rendering.spans import find_spans
    from kd.rendering.turns import render

    tokenizer = AutoTokenizer.from_pretrained(
        FOLDER.parent.parent.parent / "configs/demo_teacher", bos_token="<s>", eos_token="</s>"
    )
    for name in NAMES:
        tokenizer.chat_template = template(name)
        record = parse_record(CONVERSATION, "golden")
        text, turns = render(record, tokenizer)
        (FOLDER / f"{name}.golden.txt").write_text(mark_spans(text, find_spans(record, text, turns)), encoding="utf-8")


if __name__ == "__main__":
    main()
