"""The changes to messages and tools that a template needs."""

from __future__ import annotations

import json

import pytest

from helpers import golden
from helpers.template_cases import CALL_LINE, TEMPLATES, TURNS, check, conversation, with_template
from kd.records.checks import DataError
from kd.records.record import parse_record
from kd.rendering.encode import annotate_sequences, encode
from kd.rendering.template_needs import adapt_messages, template_needs


def test_a_system_prompt_that_moves_with_the_last_user(controls):
    """Where the text ends with an answer, this template leaves its system prompt out, and so it goes into the first
    user's words.
    """
    controls.chat_template = TURNS["system prompt before a last user"].replace("CALLS", CALL_LINE)
    assert template_needs(controls) == ("system_in_user",)
    check(conversation(), controls)


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (
            "{% for t in tools %}{{ '- ' + t.function.name + ': ' + t.function.description }}{% endfor %}",
            ("described", "listed"),
        ),
        (
            "{% for t in tools or [] %}{% for n, p in t.function.parameters.properties.items() %}{{ n + ' ' + "
            "p.description "
            "}}{% endfor %}{% endfor %}",
            ("described",),
        ),
        ("{% for t in tools %}{{ t.function.description }}{% endfor %}", ("listed",)),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", ()),
    ],
)
def test_tools_in_the_form_a_template_takes(source, form, controls):
    controls.chat_template = source + TEMPLATES["parameters"]
    assert template_needs(controls) == form
    record = conversation()
    record.tools[0]["function"].pop("description", None)
    before = json.dumps(record.tools)
    check(record, controls)
    check(
        parse_record(
            {"id": "n", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]}, "x"
        ),
        controls,
    )
    assert json.dumps(record.tools) == before


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("demo", ()),
        ("hermes", ()),
        ("xml_function", ()),
        ("python_calls", ()),
        ("mistral_args", ()),
        ("deepseek_v3", ("text_arguments",)),
        ("mistral_list", ("short_ids", "system_in_user")),
    ],
)
def test_the_form_a_template_takes_is_found_by_trying(name, form, tokenizer):
    assert template_needs(with_template(tokenizer, golden.template(name), "<s>", "</s>")) == form


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        ("{{ c.function.arguments }}", ("text_arguments",)),  # an object would be printed as Python does
        ("{{ c.function.arguments | tojson }}", ()),
        (
            "{% if c.function.arguments is mapping %}{% for k, v in c.function.arguments.items() %}{{ k }}:~{{ v "
            "}}~{% endfor %}{% else %}"
            "{{ c.function.arguments }}{% endif %}",
            (),
        ),  # its own way with objects, which is not read: text would be another format
    ],
)
def test_arguments_are_given_as_text_only_where_objects_are_not_written(arguments, form, tokenizer):
    source = (
        "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}\n<call>"
        "{{ c.function.name }}{ARGS}{% endfor %}</s>"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    ).replace("{ARGS}", arguments)
    other = with_template(tokenizer, source)
    assert template_needs(other) == form
    record = parse_record(golden.WITHOUT_SPECIAL_TOKENS, "golden")
    if "~" in arguments:
        with pytest.raises(
            DataError, match=r"messages\[2\]: the call of get_weather_map, get_weather is not in the rendered turn"
        ):
            encode(record, other)
    else:
        check(record, other)


def test_messages_in_a_form():
    calls = [golden.call("call_0", "f", {"a": "é"}), {"type": "function", "function": {"name": "g", "arguments": {}}}]
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_0", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    before = json.dumps(messages)
    assert adapt_messages(messages, ()) is messages
    user, assistant, one, two = adapt_messages(
        messages, ("text_arguments", "no_content", "short_ids", "system_in_user")
    )
    assert user["content"] == "S\n\nu" and assistant["content"] is None
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == ['{"a": "é"}', "{}"]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert (
        [one["tool_call_id"], two["tool_call_id"]] == ids
        and all(len(i) == 9 and i.isalnum() for i in ids)
        and ids[0] != ids[1]
    )
    assert (
        adapt_messages([{"role": "tool", "tool_call_id": "abcDEF123", "content": ""}], ("short_ids",))[0][
            "tool_call_id"
        ]
        == "abcDEF123"
    )
    assert json.dumps(messages) == before


NO_CALLS = (
    "{% for m in messages %}<h>{{ m.role }}</h>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.mark.parametrize(
    ("opening", "form"),
    [
        ("", ()),
        (NO_SYSTEM, ("system_in_user",)),
        (NO_SYSTEM + "{% if tools %}{{ raise_exception('no tools') }}{% endif %}", ("system_in_user",)),
        ("{{ tools | length }}" + NO_SYSTEM, ("system_in_user", "listed")),
    ],
)
def test_where_a_system_prompt_goes_is_found_without_calls_too(opening, form, tokenizer):
    other = with_template(tokenizer, opening + NO_CALLS)
    assert template_needs(other) == form
    messages = [
        {"role": role, "content": said} for role, said in zip(("system", "user", "assistant"), ("S.", "U", "A"))
    ]
    (found,) = annotate_sequences(parse_record({"id": "n", "messages": messages}, "x"), other)
    assert ("S.\n\nU</s>" in found.text) == bool(form)
