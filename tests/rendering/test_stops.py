"""Stops of a template, and turns that end in them."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, PreTrainedTokenizerFast

from helpers import golden
from kd.records.checks import DataError
from kd.records.record import parse_record
from kd.rendering.encode import annotate
from kd.rendering.stops import explain_no_stop, find_stops, join_stop_ids

BODY = """{% for t in tools or [] %}{{ t.function.name }}
{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function|tojson }}</tool_call>\
{% endfor %}END{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALL = golden.call("call00001", "get_weather", {"city": "Oslo"})
CONVERSATION = [
    {"role": "user", "content": "Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "23 degrees, <|im_end|>"},
    {"role": "assistant", "content": "It is 23 degrees."},
]


@pytest.fixture
def chat(plain_bpe):
    """A tokenizer with a template whose turns end as given."""

    def chat(end: str, eos: str = "<|endoftext|>"):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=plain_bpe.backend_tokenizer,
            eos_token=eos,
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        )
        tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
        tokenizer.chat_template = BODY.replace("END", end)
        return tokenizer

    return chat


def trained(messages: list[dict], tokenizer) -> list[str]:
    record = parse_record({"id": "r", "messages": messages, "tools": [golden.tool("get_weather")]}, "x")
    found = annotate(record, tokenizer)
    return [
        tokenizer.decode(found.encoded.input_ids[span.start : span.end]) for span in found.spans if span.kind == "truth"
    ]


CALLED = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'


@pytest.mark.parametrize(
    ("end", "stops", "ends"),
    [
        ("<|im_end|>", ["<|im_end|>"], ["<|im_end|>", "<|im_end|>"]),
        ("", ["<|im_start|>"], ["<|im_start|>", "<|im_start|>"]),  # opens the next role, and is added after the last
        ("{{ '\\n' }}", ["<|im_start|>"], ["\n<|im_start|>", "\n<|im_start|>"]),
        (  # a call ends otherwise than an answer
            "{% if m.tool_calls %}<|im_end|>{% else %}<|endoftext|>{% endif %}",
            ["<|endoftext|>", "<|im_end|>"],
            ["<|im_end|>", "<|endoftext|>"],
        ),
        (  # the end of the whole text is no second end of the turn
            "<|im_end|>\n{% if loop.last and not add_generation_prompt %}<|endoftext|>{% endif %}",
            ["<|endoftext|>", "<|im_end|>"],
            ["<|im_end|>\n", "<|im_end|>\n<|endoftext|>"],
        ),
    ],
)
def test_each_turn_is_trained_to_its_stop(end, stops, ends, chat):
    tokenizer = chat(end)
    assert list(find_stops(tokenizer).tokens) == stops and explain_no_stop(tokenizer) is None
    said = trained(CONVERSATION, tokenizer)
    assert [text.strip() for text in said] == [(CALLED + ends[0]).strip(), ("It is 23 degrees." + ends[1]).strip()]
    assert trained(CONVERSATION[:2], tokenizer)[0].rstrip().endswith(stops[-1 if "m.tool_calls" in end else 0])


def test_a_tag_that_closes_a_call_is_no_stop(chat):
    tokenizer = chat("")
    assert tokenizer.convert_tokens_to_ids("</tool_call>") in find_stops(tokenizer).inner
    assert join_stop_ids(tokenizer, tokenizer.convert_tokens_to_ids(["</tool_call>", "<|im_end|>"])) == (
        tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    )


def test_a_record_whose_turn_has_no_stop_is_refused(chat):
    tokenizer = chat("{% if 'secret' in m.content %}</turn>\n{% else %}<|im_end|>{% endif %}")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a secret"}]
    with pytest.raises(DataError, match=r"record r: messages\[1\]: .*ends this turn in .*'a secret</turn>.n'.*no stop"):
        trained(messages, tokenizer)


def test_a_turn_that_goes_on_after_a_stop_is_refused(chat):
    tokenizer = chat("{% if 'twice' in m.content %}<|im_end|>again{% endif %}<|im_end|>")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "twice"}]
    with pytest.raises(DataError, match=r"messages\[1\]: .* goes on after '<.im_end.>', where a student stops"):
        trained(messages, tokenizer)


def test_a_template_without_a_token_at_its_ends_is_explained(chat):
    tokenizer = chat("[/end]\n")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "[start]")
    assert "ends an assistant's turn in plain text" in explain_no_stop(tokenizer)


def test_a_word_of_the_vocabulary_is_no_stop(chat):
    """A word that was added for its field ends an answer of the small conversations, and is no mark of the template."""
    tokenizer = chat("[/end]\n")
    tokenizer.add_tokens(["km[/end]", "km"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "[start]").replace("[/end]", "")
    assert not find_stops(tokenizer).tokens and "in plain text" in explain_no_stop(tokenizer)


def test_stops_of_every_source_are_joined_once(chat):
    tokenizer = chat("<|im_end|>")
    end, eos, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<|im_start|>"])
    beyond = len(tokenizer)
    assert join_stop_ids(tokenizer, None, [start, eos, beyond], start) == [end, start, eos, beyond]


def test_a_token_of_plain_text_is_no_stop(chat):
    """A configuration without an eos_token_id names LlamaConfig's own, 2, which in most vocabularies is a sign."""
    tokenizer = chat("<|im_end|>")
    assert tokenizer.decode([2]).isprintable() and LlamaConfig().eos_token_id == 2
    assert join_stop_ids(tokenizer, 2, [2]) == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
