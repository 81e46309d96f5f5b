"""Chat templates made for the tests, a conversation, and the check of every span and token in them."""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerFast

from helpers import golden
from kd.records.record import Record, parse_record
from kd.rendering.encode import encode
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH, find_spans
from kd.rendering.stops import close_turns
from kd.rendering.turns import render

DECLARED = "{% for t in tools or [] %}<{{ t.function.name }}>\n{% endfor %}"
"""Beginning of a template that names the tools on offer."""

TEMPLATES = {
    # JSON over several lines, the arguments first
    "indented": """{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}
<call>{{ {'arguments': c.function.arguments, 'name': c.function.name} | tojson(indent=2) }}</call>{% endfor %}[/end]
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}""",
    # no space at all; all calls in one list, with ids
    "compact list": """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{% if m.tool_calls %}[CALLS][\
{% for c in m.tool_calls %}{{ {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson(separators=(',', ':')) }}\
{% if not loop.last %},{% endif %}{% endfor %}]{% endif %}</s>{% else %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endif %}{% endfor %}""",  # noqa: E501
    # "parameters" instead of "arguments", bare
    "parameters": """{% for m in messages %}<h>{{ m.role }}</h>
{{ m.content | trim }}{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}\
{% endfor %}<|eot|>{% endfor %}{% if add_generation_prompt %}<h>assistant</h>
{% endif %}""",  # noqa: E501
    # an empty reasoning block opens the last turn alone; results are in a user's turn
    "last turn opens with a block": """{% for m in messages %}{% if m.role == 'tool' %}<|s|>user
<result>{{ m.content }}</result><|e|>
{% else %}<|s|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|e|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|s|>assistant
{% endif %}""",
}


TEMPLATES = {name: DECLARED + template for name, template in TEMPLATES.items()}


def with_template(tokenizer, template: str, bos: str = "<|pad|>", eos: str = "<|end|>"):
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token=bos, eos_token=eos)
    other.chat_template = template
    return other


def check(record: Record, tokenizer) -> None:
    """Every span by its characters, and every token by whether it has one of them."""
    text, turns = render(record, tokenizer)
    turns, added = close_turns(record, text, turns, tokenizer)
    text += added
    spans = find_spans(record, text, turns)
    calls = [call["function"] for m in record.messages for call in m.get("tool_calls", ())]
    assert [text[s.start : s.end] for s in spans if s.bit == TOOL] == [call["name"] for call in calls]
    assert [json.loads(text[s.start : s.end]) for s in spans if s.bit == ARGS] == [call["arguments"] for call in calls]
    truth = [text[s.start : s.end] for s in spans if s.bit == TRUTH]
    messages = [m for m in record.messages if m["role"] == "assistant"]
    assert len(truth) == len(messages)
    for said, message in zip(truth, messages):
        assert message["content"].strip() in said and all(
            c["function"]["name"] in said for c in message.get("tool_calls", ())
        )
    trained = "".join(truth)
    for message in record.messages:
        if message["role"] != "assistant" and len(message["content"]) > 12:
            assert message["content"] not in trained
    encoded = encode(record, tokenizer)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for bit in (TRUTH, TOOL, ARGS, INTEGRATION):
        inside = {at for s in spans if s.bit == bit for at in range(s.start, s.end)}
        assert [bool(bits & bit) for bits in encoded.bits] == [
            not inside.isdisjoint(range(*offset)) for offset in offsets
        ]


CALL_LINE = """{% for c in m.tool_calls or [] %}
<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}"""  # noqa: E501


TURNS = {
    # a block opens each turn after the last user's words, so what stands before a turn changes with what follows
    "block after the last user": """{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
{% for m in messages %}<|s|>{{ m.role }}
{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>

</think>

{% endif %}{{ m.content }}CALLS<|e|>
{% endfor %}{% if add_generation_prompt %}<|s|>assistant
<think>
{% endif %}""",  # noqa: E501
    # what ends a tool's result depends on what follows
    "result closed by what follows": """{% for m in messages %}{% if m.role == 'tool' %}<|s|>tool
{{ m.content }}{% if not loop.last %}

{% endif %}<|e|>{% else %}<|s|>{{ m.role }}
{{ m.content }}CALLS<|e|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|s|>assistant
{% endif %}""",
    # the system prompt stands before the last message, if that is a user's
    "system prompt before a last user": """{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] \
{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}{{ m.content }}[/INST]{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]{% else %} {{ m.content }}CALLS<|e|>{% endif %}{% endfor %}""",  # noqa: E501
    # the last turn ends in another control token
    "last turn ends otherwise": """{% for m in messages %}<|s|>{{ m.role }}
{{ m.content }}CALLS{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|e|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|s|>assistant
{% endif %}""",  # noqa: E501
}


TURNS = {name: DECLARED + template for name, template in TURNS.items()}


def conversation(*, system: bool = True) -> Record:
    """Two rounds of calls and answers, in which words come again and a result is empty."""

    def called(number, **arguments):
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [golden.call(f"call0000{number}", "get_weather", arguments)],
        }

    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for number in (1, 5):
        messages += [
            {"role": "user", "content": "Yes."},
            called(number, city="Paris"),
            {"role": "tool", "content": ""},
            called(number + 1, city="Rome"),
            {"role": "tool", "content": '{"t": 21.5}'},
            {"role": "assistant", "content": "It is 21.5."},
        ]
    return parse_record({"id": "r", "messages": messages, "tools": [golden.tool("get_weather")]}, "x")
