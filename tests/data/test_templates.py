"""Chat templates other than the demo's: other JSON spacing, other places of things, and those that cannot be located."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data import golden
from kd.data import demo
from kd.data.forms import in_form, template_form
from kd.data.records import DataError, Record, parse_record
from kd.data.render import encode, render
from kd.data.spans import ARGS, INTEGRATION, TOOL, TRUTH, find_spans

CALL = '{"name": "%s", "arguments": %s}'
TEMPLATES = {
    # JSON over several lines, the arguments first
    "indented": """{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}
<call>{{ {'arguments': c.function.arguments, 'name': c.function.name} | tojson(indent=2) }}</call>{% endfor %}[/end]
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}""",
    # no space at all; all calls in one list, with ids
    "compact list": """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{% if m.tool_calls %}[CALLS][\
{% for c in m.tool_calls %}{{ {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson(separators=(',', ':')) }}\
{% if not loop.last %},{% endif %}{% endfor %}]{% endif %}</s>{% else %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endif %}{% endfor %}""",
    # "parameters" instead of "arguments", bare
    "parameters": """{% for m in messages %}<h>{{ m.role }}</h>
{{ m.content | trim }}{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}\
{% endfor %}<|eot|>{% endfor %}{% if add_generation_prompt %}<h>assistant</h>
{% endif %}""",
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


def with_template(tokenizer, template: str, bos: str = "<|pad|>", eos: str = "<|end|>"):
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token=bos, eos_token=eos)
    other.chat_template = template
    return other


@pytest.fixture(scope="module")
def plain_bpe():
    """A byte-level BPE that knows nothing of JSON: its tokens straddle quotes, braces and names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [json.dumps(vars(r)) for r in demo.records("train", 200)]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>")


def check(record: Record, tokenizer) -> None:
    """Every span by its characters, and every token by whether it has one of them."""
    text, turns = render(record, tokenizer)
    spans = find_spans(record, text, turns)
    calls = [call["function"] for m in record.messages for call in m.get("tool_calls", ())]
    assert [text[s.start:s.end] for s in spans if s.bit == TOOL] == [call["name"] for call in calls]
    assert [json.loads(text[s.start:s.end]) for s in spans if s.bit == ARGS] == [call["arguments"] for call in calls]
    truth = [text[s.start:s.end] for s in spans if s.bit == TRUTH]
    messages = [m for m in record.messages if m["role"] == "assistant"]
    assert len(truth) == len(messages)
    for said, message in zip(truth, messages):
        assert message["content"].strip() in said and all(c["function"]["name"] in said for c in message.get("tool_calls", ()))
    trained = "".join(truth)
    for message in record.messages:
        if message["role"] != "assistant" and len(message["content"]) > 12:
            assert message["content"] not in trained
    encoded = encode(record, tokenizer)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for bit in (TRUTH, TOOL, ARGS, INTEGRATION):
        inside = {at for s in spans if s.bit == bit for at in range(s.start, s.end)}
        assert [bool(bits & bit) for bits in encoded.bits] == [not inside.isdisjoint(range(*offset)) for offset in offsets]


@pytest.mark.parametrize("name", golden.NAMES)
def test_the_golden_conversation(name, tokenizer):
    """Text and spans, to the character, as a person read them: see data/golden.py."""
    record = parse_record(golden.CONVERSATION, "golden")
    text, turns = render(record, with_template(tokenizer, golden.template(name), "<s>", "</s>"))
    assert golden.marked(text, find_spans(record, text, turns)) == (golden.FOLDER / f"{name}.golden.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_demo_records_in_other_templates(name, tokenizer):
    other = with_template(tokenizer, TEMPLATES[name])
    for record in demo.records("train", 60, seed=21, mix={"single": 1, "parallel": 1, "multi": 1, "chat": 0.3, "none": 0.3}):
        check(record, other)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tokenizer_whose_tokens_straddle_the_spans(name, plain_bpe):
    plain_bpe.chat_template = TEMPLATES[name]
    for record in demo.records("train", 40, seed=22, mix={"parallel": 1, "multi": 1}):
        check(record, plain_bpe)


def test_a_turn_that_opens_otherwise_when_last_ends_where_it_ends(tokenizer):
    """The turn of an earlier message is what stands in the whole text: without the block, with its end."""
    record = demo.record("single", 3)
    text, turns = render(record, with_template(tokenizer, TEMPLATES["last turn opens with a block"]))
    first, last = (text[start:end] for _, start, end in turns)
    assert first.startswith("<tool_call>") and first.endswith("</tool_call><|e|>\n") and "<think>" not in first
    assert last.startswith("<think>\n\n</think>\n\n") and text.endswith(last)


def test_a_prompt_that_opens_a_block_which_earlier_turns_are_without(tokenizer):
    """The turn begins where the prompt and the text part: after the header, which both have."""
    source = golden.template("qwen3").replace("{{- '<|im_start|>assistant\\n' }}{% endif %}", "{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}")
    assert source != golden.template("qwen3")
    record = parse_record(golden.WITHOUT_SPECIAL_TOKENS, "golden")
    text, turns = render(record, with_template(tokenizer, source))
    begins = [text[start:].split("\n")[0] for _, start, _ in turns]
    assert begins == ["I use get_weather_map, then get_weather.", golden.CONVERSATION["messages"][6]["content"] + "<|im_end|>", "<tool_call>", ""]
    assert all(text[:start].endswith(("assistant\n", "<think>\n")) and text[:end].endswith("<|im_end|>\n") for _, start, end in turns)
    check(record, with_template(tokenizer, source))


@pytest.mark.parametrize("said", ["k", "Hi", "<", "</", "Twelve words or more, to be sure that the turn is a long one here."])
def test_an_earlier_turn_is_found_however_short(said, tokenizer):
    record = parse_record({"id": "k", "messages": [{"role": role, "content": text} for role, text in [("user", "so"), ("assistant", said)] * 2]}, "x")
    text, turns = render(record, with_template(tokenizer, golden.template("qwen3")))
    assert [text[start:end] for _, start, end in turns] == [f"{said}<|im_end|>\n", f"<think>\n\n</think>\n\n{said}<|im_end|>\n"]


def test_a_turn_of_which_only_the_end_is_in_the_text_is_refused(tokenizer):
    """An earlier turn that the template strips of its words ends alike, and is not the turn."""
    source = """{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and not loop.last %}
</turn>{% else %}{{ m.content }}
</turn>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
    said = [{"role": role, "content": content} for role, content in [("user", "hi"), ("assistant", "Hello you."), ("user", "so"), ("assistant", "Yes.")]]
    with pytest.raises(DataError, match=r"record e: messages\[1\]: the chat template does not write this turn where its generation prompt ends"):
        encode(parse_record({"id": "e", "messages": said}, "x"), with_template(tokenizer, source))


@pytest.mark.parametrize(("name", "form"), [
    ("demo", ()), ("hermes", ()), ("xml_function", ()), ("python_calls", ()), ("mistral_args", ()), ("deepseek_v3", ("text_arguments",)),
    ("mistral_list", ("short_ids", "system_in_user"))])
def test_the_form_a_template_takes_is_found_by_trying(name, form, tokenizer):
    assert template_form(with_template(tokenizer, golden.template(name), "<s>", "</s>")) == form


@pytest.mark.parametrize(("arguments", "form"), [
    ("{{ c.function.arguments }}", ("text_arguments",)),  # an object would be printed as Python does
    ("{{ c.function.arguments | tojson }}", ()),
    ("{% if c.function.arguments is mapping %}{% for k, v in c.function.arguments.items() %}{{ k }}:~{{ v }}~{% endfor %}{% else %}"
     "{{ c.function.arguments }}{% endif %}", ()),  # its own way with objects, which is not read: text would be another format
])
def test_arguments_are_given_as_text_only_where_objects_are_not_written(arguments, form, tokenizer):
    source = ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}call {{ c.function.name }}{ARGS}{% endfor %}</s>"
              "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}").replace("{ARGS}", arguments)
    other = with_template(tokenizer, source)
    assert template_form(other) == form
    record = parse_record(golden.WITHOUT_SPECIAL_TOKENS, "golden")
    if "~" in arguments:
        with pytest.raises(DataError, match=r"messages\[2\]: the call of get_weather_map, get_weather is not in the rendered turn"):
            encode(record, other)
    else:
        check(record, other)


def test_messages_in_a_form():
    calls = [golden.call("call_0", "f", {"a": "é"}), {"type": "function", "function": {"name": "g", "arguments": {}}}]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "call_0", "content": "1"}, {"role": "tool", "content": "2"}]
    before = json.dumps(messages)
    assert in_form(messages, ()) is messages
    user, assistant, one, two = in_form(messages, ("text_arguments", "no_content", "short_ids", "system_in_user"))
    assert user["content"] == "S\n\nu" and assistant["content"] is None
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == ['{"a": "é"}', "{}"]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert [one["tool_call_id"], two["tool_call_id"]] == ids and all(len(i) == 9 and i.isalnum() for i in ids) and ids[0] != ids[1]
    assert in_form([{"role": "tool", "tool_call_id": "abcDEF123", "content": ""}], ("short_ids",))[0]["tool_call_id"] == "abcDEF123"
    assert json.dumps(messages) == before


def test_a_system_prompt_that_is_left_out_is_refused(tokenizer):
    source = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}[end]{% endif %}{% endfor %}"
    record = parse_record({"id": "s", "messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": "Be kind."},
                                                   {"role": "assistant", "content": "Hello"}]}, "x")
    with pytest.raises(DataError, match=r"record s: messages\[1\]: the chat template leaves this system prompt out"):
        encode(record, with_template(tokenizer, source))


JSON = st.recursive(st.none() | st.booleans() | st.integers(-10**12, 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
                    | st.sampled_from(['"', "{}", '{"name": "f", "arguments": {}}', "</tool_call>", "é漢😀", "<|end|>", "\\"]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
CALLS = st.lists(st.tuples(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True), st.dictionaries(st.text(max_size=6), JSON, max_size=3)),
                 min_size=1, max_size=3)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(CALLS, TEXT, TEXT, TEXT)
@settings(max_examples=120, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_any_arguments_any_text(tokenizer, calls, user, result, answer):
    """Quotes, braces, tags and calls inside strings are characters of a string."""
    made = [{"id": str(i), "function": {"name": name, "arguments": arguments}} for i, (name, arguments) in enumerate(calls)]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "tool_calls": made}, {"role": "tool", "content": result},
                {"role": "assistant", "content": answer.replace("<", "")}]
    check(parse_record({"messages": messages}, "x"), tokenizer)


def test_what_cannot_be_located_is_refused_and_named(tokenizer):
    record = demo.record("single", 0)
    for template, said in {
        "{{ messages | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}": r"messages\[1\].*not write this turn where",
        "{% for m in messages %}{{ m.content }}[end]{% endfor %}{% if add_generation_prompt %}>>{% endif %}": "where its generation prompt ends",
        "{% for m in messages %}[{{ m.role }}]{{ m.content | upper }}[end]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}":
            "call of .* is not in the rendered turn with these arguments",
        "{{ raise_exception('only one turn') }}": "the chat template refuses it: only one turn",
    }.items():
        with pytest.raises(DataError, match=rf"record {record.id}: .*{said}"):
            encode(record, with_template(tokenizer, template))


def test_a_text_that_is_no_unicode_is_refused_and_named(tokenizer):
    broken = parse_record(json.loads('{"id": "b", "messages": [{"role": "assistant", "content": "so \\ud83d"}]}'), "x")
    with pytest.raises(DataError, match="record b: half a surrogate pair .*near .*so '"):
        encode(broken, tokenizer)
