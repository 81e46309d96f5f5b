"""Sequences of a record: one where the template only appends, else one a turn, each as at inference."""

from __future__ import annotations

import pytest

from helpers.template_forms import FORMS, PLAIN, chat, make_tokenizer, rounds
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.beginnings import Beginnings
from kd.rendering.encode import annotate, annotate_sequences, encode, encode_prompt, encode_sequences, may_split
from kd.rendering.spans import TRUTH
from kd.rendering.turns import LONG_TURNS, render_whole

KINDS = {  # of each form, for two rounds of call and answer: number of sequences, the end of each turn
    "next header": (1, "<|im_end|>"),
    "block in the prompt": (4, "<|im_end|>\n"),
    "block around thoughts": (4, "<|im_end|>\n"),
    "block in the last": (4, "<|im_end|>\n"),
    "other end": (4, ("<|im_end|>", "<|return|>")),
    "channels": (4, ("<|call|>", "<|return|>")),
    "tools before the last user": (4, "<|im_end|>"),
    "closed block in the prompt": (4, "<|im_end|>\n"),
    "header in the prompt alone": (4, ("<|call|>", "<|im_end|>")),
    "result closed by the prompt": (4, "<|im_end|>\n"),
    "block taken out": (4, "<|im_end|>\n"),
    "thought begun": (4, "<|im_end|>\n"),
    "other space": (4, "<|im_end|>\n"),
}
BEGINS = {  # of each turn, where its generation prompt is not what the template writes before it
    "closed block in the prompt": ("<tool_call>", "It is"),
    "header in the prompt alone": ("<tool_call>", "It is"),
    "result closed by the prompt": ("<tool_call>", "It is"),
    "block taken out": ("\n</think>\n\n<tool_call>", "\n</think>\n\nIt is"),
    "thought begun": ("\n[FINAL]\n<tool_call>", "\n[FINAL]\nIt is"),
    "other space": ("<tool_call>", "It is"),
}


def check_sequences(record: Record, tokenizer, turns="auto") -> list[str]:
    """Check that every turn is trained once, after the tokens of its prompt; returns the turns' texts."""
    found = annotate_sequences(record, tokenizer, turns)
    assistants = [at for at, message in enumerate(record.messages) if message["role"] == "assistant"]
    texts, prompts = [], [encode_prompt(record, at, tokenizer)[1] for at in assistants]
    for sequence in found:
        ids, bits = sequence.encoded.input_ids, sequence.encoded.bits
        assert tokenizer.decode(ids) == sequence.text
        starts = [t for t in range(len(bits)) if bits[t] & TRUTH and not (t and bits[t - 1] & TRUTH)]
        for start in starts:
            end = next((t for t in range(start, len(bits)) if not bits[t] & TRUTH), len(bits))
            texts.append(tokenizer.decode(ids[start:end]))
            assert ids[:start] == prompts[len(texts) - 1]
    assert len(texts) == len(assistants)
    return texts


@pytest.mark.parametrize("name", KINDS)
def test_each_turn_is_trained_after_the_tokens_of_its_prompt(name):
    tokenizer, record = make_tokenizer(FORMS[name]), rounds(2)
    number, ends = KINDS[name]
    texts = check_sequences(record, tokenizer)
    found = encode_sequences(record, tokenizer)
    ids = ["r"] if number == 1 else ["r#1", "r#3", "r#5", "r#7"]
    assert [encoded.record_id for encoded in found] == ids
    ends = (ends,) * 4 if isinstance(ends, str) else ends * 2
    assert [text.endswith(end) for text, end in zip(texts, ends)] == [True] * 4
    assert all(said in text for said, text in zip(("Oslo", "degrees, 0", "Oslo", "degrees, 1"), texts))
    assert all(text.startswith(begin) for text, begin in zip(texts, BEGINS.get(name, ("", "")) * 2))
    assert may_split(tokenizer, "auto") == (number > 1)


@pytest.mark.parametrize("name", ["other end", "next header"])
def test_one_sequence_alone_is_that_of_all_and_the_whole_is_rendered_but_once(name, monkeypatch):
    from kd.rendering import encode as module

    tokenizer, record, rendered = make_tokenizer(FORMS[name]), rounds(2), []
    everything = annotate_sequences(record, tokenizer)
    whole = module.render_whole
    monkeypatch.setattr(module, "render_whole", lambda beginnings: rendered.append(0) or whole(beginnings))
    alone = [annotate_sequences(record, tokenizer, only=number)[0] for number in range(len(everything))]
    assert alone == everything and len(rendered) == 1


def test_a_template_that_appends_gives_one_sequence_or_one_a_turn_as_asked():
    tokenizer, record = make_tokenizer(PLAIN), rounds(2)
    (whole,) = encode_sequences(record, tokenizer)
    assert whole == encode(record, tokenizer) and not may_split(tokenizer, "auto")
    each = encode_sequences(record, tokenizer, "each")
    assert len(each) == 4 and check_sequences(record, tokenizer, "each") == check_sequences(record, tokenizer)
    assert sum(sum(bit & TRUTH for bit in one.bits) for one in each) == sum(bit & TRUTH for bit in whole.bits)
    assert encode_sequences(chat("Hi", "Hello"), tokenizer, "each")[0].record_id == "r"  # alone, it keeps its name


def test_the_next_turns_header_is_not_trained():
    tokenizer = make_tokenizer(FORMS["next header"])
    assert check_sequences(chat("Hi", "Hello"), tokenizer) == ["Hello<|im_end|>"]
    assert check_sequences(chat("Hi", "Hello", "So", "Yes"), tokenizer) == ["Hello<|im_end|>", "Yes<|im_end|>"]
    unmarked = make_tokenizer(FORMS["next header"].replace("<|im_", "<:").replace("|>", ":>"))
    assert check_sequences(chat("Hi", "Hello"), unmarked) == ["Hello<:end:>"]


def test_a_second_token_after_the_end_is_no_header():
    """Phi-3 writes its eos where no generation prompt is asked for; it is trained as before."""
    template = PLAIN.replace("{% endif %}", "{% else %}<|endoftext|>{% endif %}")
    assert check_sequences(chat("Hi", "Hello"), make_tokenizer(template)) == ["Hello<|im_end|>\n<|endoftext|>"]
    tokenizer = make_tokenizer(template.replace("{% else %}", "{% endif %}{% if not add_generation_prompt %}"))
    said = check_sequences(chat("Hi", "Hello", "So", "Yes"), tokenizer)
    assert said == ["Hello<|im_end|>\n", "Yes<|im_end|>\n<|endoftext|>"] and not may_split(tokenizer, "auto")


def test_a_turn_begins_after_a_prompt_whose_last_token_would_merge():
    tokenizer, record = make_tokenizer(FORMS["block in the prompt"]), chat("Hi", "Hello")
    (found,) = encode_sequences(record, tokenizer)
    merged = tokenizer(annotate(record, tokenizer).text, add_special_tokens=False)["input_ids"]
    assert found.record_id == "r" and found.input_ids != merged == encode(record, tokenizer).input_ids
    assert check_sequences(record, tokenizer) == ["\n</think>\n\nHello<|im_end|>\n"]
    assert check_sequences(chat("Hi", "\n\n\nHello"), make_tokenizer(PLAIN)) == ["\n\n\nHello<|im_end|>\n"]


def test_a_block_that_the_prompt_opens_and_no_turn_closes_is_refused():
    tokenizer = make_tokenizer(FORMS["block by a variable"])
    with pytest.raises(DataError, match=r"record r: messages\[1\]: .*'.*<think>\\n'\): give the variable"):
        encode_sequences(chat("Hi", "Hello"), tokenizer)
    assert len(encode_sequences(chat("Hi", "Hello"), tokenizer, "whole")) == 1


@pytest.mark.parametrize("template", [PLAIN, *FORMS.values()])
def test_the_assistant_speaks_first(template):
    """No conversation of no messages is rendered: many templates read messages[0]."""
    reads = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + template
    if "enable_thinking" in template:
        return
    tokenizer = make_tokenizer(reads)
    texts = check_sequences(chat("Hello, I am Bo.", "Hi", "Yes?", first="assistant"), tokenizer)
    assert "Hello, I am Bo." in texts[0] and "Yes?" in texts[1] and "Bo" not in texts[1]
    assert "assistant\n" not in texts[0]


def test_an_earlier_answers_end_is_trained_in_one_sequence_too():
    tokenizer = make_tokenizer(FORMS["other end"])
    found = annotate(chat("Hi", "Hello", "So", "Yes"), tokenizer)
    trained = [i for i, bit in zip(found.encoded.input_ids, found.encoded.bits) if bit & TRUTH]
    assert tokenizer.decode(trained).split("assistant")[-1].count("<|im_end|>") == 1
    assert tokenizer.decode(trained).endswith("<|return|>")


def test_what_channels_cannot_hold_is_refused_with_the_reason():
    tokenizer = make_tokenizer(FORMS["channels"])
    with pytest.raises(DataError, match=r"messages\[1\]: the chat template writes this turn as two messages"):
        encode_sequences(rounds(1, beside="I look."), tokenizer)
    record = rounds(1)
    call = record.messages[1]["tool_calls"][0]
    record.messages[1]["tool_calls"] = [call, {**call, "id": "b", "function": {"name": "stop", "arguments": {"a": 1}}}]
    with pytest.raises(DataError, match=r"messages\[1\]: the call of stop is not .* does not write all of its 2 calls"):
        encode_sequences(record, tokenizer)


def test_an_empty_result_is_no_reason_to_refuse():
    """Each turn has the tools before its own last user, as the model sees them."""
    tokenizer = make_tokenizer(FORMS["tools before the last user"])
    record = rounds(3, result="")
    check_sequences(record, tokenizer)
    for found in annotate_sequences(record, tokenizer):
        assert found.text.count("[AVAILABLE_TOOLS]") == 1 and found.text.rfind("[INST]") < found.text.rfind(
            "<|im_end|>"
        )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% macro kind(p) %}{{ kind({'type': p.type}) if p.type is not string else p.type }}{% endmacro %}",
            "Recursion",
        ),
        ("{% macro kind(p) %}{{ 'x' + p.type }}{% endmacro %}", "TypeError"),
        ("{% macro kind(p) %}{{ p.type[7] + 1 / 0 }}{% endmacro %}", "Error"),
    ],
)
def test_a_template_that_fails_inside_refuses_the_record_alone(source, said):
    written = (
        "{% for t in tools or [] %}{% for p in t.function.parameters.properties.values() %}{{ kind(p) }}{% endfor %}"
    )
    tokenizer = make_tokenizer(source + written + "{% endfor %}" + PLAIN)
    record = rounds(1)
    record.tools[0]["function"]["parameters"]["properties"]["city"]["type"] = ["string", "null"]
    for turns in ("auto", "whole", "each"):
        with pytest.raises(DataError, match=f"record r: .*the chat template refuses it: .*{said}"):
            encode_sequences(record, tokenizer, turns)
    assert encode_sequences(chat("Hi", "Hello"), tokenizer)


class Counting:
    """Characters that are rendered."""

    def __init__(self, monkeypatch):
        self.characters = 0
        from kd.rendering import beginnings

        apply = beginnings.apply_template

        def counted(*args, **options):
            texts = apply(*args, **options)
            self.characters += sum(map(len, texts)) if isinstance(texts, list) else len(texts)
            return texts

        monkeypatch.setattr(beginnings, "apply_template", counted)


@pytest.mark.parametrize("name", ["plain", "next header"])
def test_rendering_is_linear_in_the_turns_of_a_template_that_appends(name, monkeypatch):
    tokenizer = make_tokenizer(FORMS.get(name, PLAIN))
    counting, taken = Counting(monkeypatch), []
    encode_sequences(rounds(1), tokenizer)
    for number in (20, 80):
        before = counting.characters
        found = encode_sequences(rounds(number), tokenizer)
        assert len(found) == 1
        taken.append(counting.characters - before)
    assert taken[1] < 4.5 * taken[0]


@pytest.mark.parametrize("name", ["plain", *FORMS])
def test_windows_find_what_whole_beginnings_do(name, monkeypatch):
    from kd.rendering import turns

    if name == "block by a variable":
        return
    tokenizer, record = make_tokenizer(FORMS.get(name, PLAIN)), rounds(LONG_TURNS // 2 + 2)
    windows = encode_sequences(record, tokenizer)
    monkeypatch.setattr(turns, "LONG_TURNS", 10**6)
    assert encode_sequences(record, tokenizer) == windows


def test_a_window_that_is_not_in_the_text_is_not_believed():
    """A turn's number from the conversation's beginning is in no window."""
    numbered = PLAIN.replace("{{ m.role }}\n", "{{ m.role }}{{ loop.index }}\n").replace(
        "assistant\n{% endif %}", "assistant{{ messages|length + 1 }}\n{% endif %}"
    )
    record = rounds(LONG_TURNS)
    found = render_whole(Beginnings(record, make_tokenizer(numbered)))
    assert found.exact and len(found.turns) == 2 * LONG_TURNS
    index, start, _ = found.turns[9]
    assert found.text[:start] == encode_prompt(record, index, make_tokenizer(numbered))[0]
