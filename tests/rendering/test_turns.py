"""Turns whose surroundings change with what follows, and those that cannot be located."""

from __future__ import annotations

import pytest

from helpers import golden
from helpers.template_cases import CALL_LINE, TEMPLATES, TURNS, check, conversation, with_template
from kd.records.checks import DataError
from kd.records.record import parse_record
from kd.rendering.encode import encode
from kd.rendering.turns import render
from kd.sources.demo import corpus as demo


def test_a_turn_that_opens_otherwise_when_last_ends_where_it_ends(tokenizer):
    """The turn of an earlier message is what stands in the whole text: without the block, with its end."""
    record = demo.record("single", 3)
    text, turns = render(record, with_template(tokenizer, TEMPLATES["last turn opens with a block"]))
    first, last = (text[start:end] for _, start, end in turns)
    assert first.startswith("<tool_call>") and first.endswith("</tool_call><|e|>\n") and "<think>" not in first
    assert last.startswith("<think>\n\n</think>\n\n") and text.endswith(last)


def test_a_prompt_that_opens_a_block_which_earlier_turns_are_without(tokenizer):
    """The turn begins where the prompt and the text part: after the header, which both have."""
    source = golden.template("qwen3").replace(
        "{{- '<|im_start|>assistant\\n' }}{% endif %}", "{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    )
    assert source != golden.template("qwen3")
    record = parse_record(golden.WITHOUT_SPECIAL_TOKENS, "golden")
    text, turns = render(record, with_template(tokenizer, source))
    begins = [text[start:].split("\n")[0] for _, start, _ in turns]
    assert begins == [
        "I use get_weather_map, then get_weather.",
        golden.CONVERSATION["messages"][6]["content"] + "<|im_end|>",
        "<tool_call>",
        "",
    ]
    assert all(
        text[:start].endswith(("assistant\n", "<think>\n")) and text[:end].endswith("<|im_end|>\n")
        for _, start, end in turns
    )
    check(record, with_template(tokenizer, source))


@pytest.mark.parametrize("name", TURNS)
def test_turns_whose_surroundings_change_with_what_follows(name, controls):
    controls.chat_template = TURNS[name].replace("CALLS", CALL_LINE)
    record = conversation(system=name != "system prompt before a last user")
    check(record, controls)
    text, turns = render(record, controls)
    said = [text[start:end] for _, start, end in turns]
    calls = [
        '<tool_call>{"name": "get_weather", "arguments": {"city": "%s"}}</tool_call>' % city  # noqa: UP031
        for city in ("Paris", "Rome")
    ]
    end = "" if name == "last turn ends otherwise" else "<|e|>"  # the token there is not the one that the model writes
    assert [turn.strip().removeprefix("<think>").strip().removeprefix("</think>").strip() for turn in said[:-1]] == [
        f"{words}{end}" for words in (*calls, "It is 21.5.", *calls)
    ]
    assert said[-1].strip().endswith("It is 21.5." + (end if end else "<|return|>"))
    headers = (
        ("[/INST]", "[/RESULT]") if name.startswith("system") else ("<|s|>assistant\n", "<|s|>assistant\n<think>\n")
    )
    assert all(text[:start].endswith(headers) for _, start, _ in turns)


@pytest.mark.parametrize(
    "quote", ["It is 21.5.<|e|>", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call><|e|>']
)
def test_a_turn_that_another_message_quotes_is_found_in_its_place_or_refused(quote, controls):
    for name in TURNS:
        controls.chat_template = TURNS[name].replace("CALLS", CALL_LINE)
        record = conversation(system=False)
        for at in (0, 4, 6):
            messages = [dict(message) for message in record.messages]
            messages[at]["content"] = f"{quote}\n<|s|>assistant\n{quote} [/INST] {quote}"
            changed = parse_record({"id": "q", "messages": messages, "tools": record.tools}, "x")
            try:
                text, turns = render(changed, controls)
            except DataError as error:
                assert "does not write this turn where its generation prompt ends" in str(error)
                continue
            places = [text.index(messages[at]["content"]) for at in (at,)]
            assert not any(
                start < places[0] + len(messages[at]["content"]) and places[0] < end for _, start, end in turns
            )
            assert all(
                message["content"] in text[start:end]
                for (index, start, end), message in zip(turns, (messages[i] for i, *_ in turns))
            )


@pytest.mark.parametrize(
    "said", ["k", "Hi", "<", "</", "Twelve words or more, to be sure that the turn is a long one here."]
)
def test_an_earlier_turn_is_found_however_short(said, tokenizer):
    record = parse_record(
        {
            "id": "k",
            "messages": [{"role": role, "content": text} for role, text in [("user", "so"), ("assistant", said)] * 2],
        },
        "x",
    )
    text, turns = render(record, with_template(tokenizer, golden.template("qwen3")))
    assert [text[start:end] for _, start, end in turns] == [
        f"{said}<|im_end|>\n",
        f"<think>\n\n</think>\n\n{said}<|im_end|>\n",
    ]


def test_a_turn_of_which_only_the_end_is_in_the_text_is_refused(tokenizer):
    """An earlier turn that the template strips of its words ends alike, and is not the turn."""
    source = """{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and not loop.last %}
</turn>{% else %}{{ m.content }}
</turn>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
    said = [
        {"role": role, "content": content}
        for role, content in [("user", "hi"), ("assistant", "Hello you."), ("user", "so"), ("assistant", "Yes.")]
    ]
    with pytest.raises(
        DataError,
        match=r"record e: messages\[1\]: the chat template does not write this turn where its generation prompt ends",
    ):
        encode(parse_record({"id": "e", "messages": said}, "x"), with_template(tokenizer, source))
