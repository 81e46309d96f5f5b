"""A call syntax of one's own: one function and one registration, found by whatever renders and locates."""

from __future__ import annotations

import copy
import json

import pytest

from kd.errors import SpanwiseError
from kd.rendering.encode import annotate
from kd.sources.demo import corpus as demo
from kd.toolcalls.locate import locate_calls
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.registry import SYNTAXES, Syntax

CALL = {"name": "f", "arguments": {"b": 1, "a": "x"}}
TEMPLATE = """{%- for m in messages -%}<|{{ m.role }}|>{{ m.content or '' }}
{%- for c in m.tool_calls or [] -%}
!{{ c.function.name }}{% for k, v in c.function.arguments.items() %} {{ k }}:{{ v | tojson }}{% endfor %}!
{%- endfor -%}{{ eos_token }}{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def locate_bang(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """!f b:1 a:"x"!"""
    written = "".join(f" {key}:{json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    at = text.find(f"!{name}{written}!", start, end)
    if at < 0:
        return None
    name_end = at + 1 + len(name)
    return Place((at + 1, name_end), (name_end, name_end + len(written)), name_end + len(written) + 1)


@pytest.fixture
def bang():
    SYNTAXES.register("bang", Syntax(locate_bang))
    yield
    SYNTAXES.unregister("bang")


def test_the_order_of_the_built_in_syntaxes():
    assert SYNTAXES.names() == ("object", "name_first", "tags", "python", "tokens", "bare_keys")
    with pytest.raises(SpanwiseError, match="call syntax 'tags' is registered already"):
        SYNTAXES.register("tags", Syntax(locate_bang))


def test_a_syntax_from_outside_is_tried_after_the_others(bang):
    text = '!f b:1 a:"x"! and f(a="x", b=1)'
    assert [text[slice(*place.name)] for place in locate_calls(text, 0, 13, [CALL])] == ["f"]
    assert locate_calls(text, 0, len(text), [CALL])[0].end == len(text)  # python comes before it
    assert locate_calls(text[14:], 0, len(text) - 14, [CALL])


def test_a_template_in_a_syntax_from_outside_is_rendered_and_located(tokenizer, request):
    other = copy.deepcopy(tokenizer)
    other.chat_template = TEMPLATE
    record = demo.record("single", 1, seed=4)
    with pytest.raises(ValueError, match="in a syntax that is not read .those that are: object, name_first, tags, py"):
        annotate(record, other)
    request.getfixturevalue("bang")
    found = annotate(record, other)
    calls = [call["function"] for message in record.messages for call in message.get("tool_calls", ())]
    tools = [span for span in found.spans if span.kind == "tool"]
    assert [call.name for call in found.calls] == [call["name"] for call in calls] and len(tools) == len(calls)
    assert calls[0]["name"] in other.decode(found.encoded.input_ids[tools[0].start : tools[0].end])
