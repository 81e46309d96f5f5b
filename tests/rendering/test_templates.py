"""Chat templates other than the demo's: other JSON spacing, other places of things, and those that cannot be
located.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from helpers import golden
from kd.records.checks import DataError
from kd.records.record import Record, parse_record
from kd.rendering.encode import encode
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH, find_spans
from kd.rendering.template_needs import adapt_messages, template_needs
from kd.rendering.turns import render
from kd.sources.demo import corpus as demo

CALL = '{"name": "%s", "arguments": %s}'
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
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>")


def check(record: Record, tokenizer) -> None:
    """Every span by its characters, and every token by whether it has one of them."""
    text, turns = render(record, tokenizer)
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


@pytest.mark.parametrize("name", golden.NAMES)
def test_the_golden_conversation(name, tokenizer):
    """Text and spans, to the character, as a person read them: see data/golden.py."""
    record = parse_record(golden.CONVERSATION, "golden")
    text, turns = render(record, with_template(tokenizer, golden.template(name), "<s>", "</s>"))
    assert golden.marked(text, find_spans(record, text, turns)) == (golden.FOLDER / f"{name}.golden.txt").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_demo_records_in_other_templates(name, tokenizer):
    other = with_template(tokenizer, TEMPLATES[name])
    for record in demo.records(
        "train", 60, seed=21, mix={"single": 1, "parallel": 1, "multi": 1, "chat": 0.3, "none": 0.3}
    ):
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


@pytest.fixture(scope="module")
def controls(plain_bpe):
    """A tokenizer with the control tokens of TURNS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=plain_bpe.backend_tokenizer,
        eos_token="<|e|>",
        additional_special_tokens=["<|s|>", "<|return|>"],
    )


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


def test_a_system_prompt_that_moves_with_the_last_user(controls):
    """Where the text ends with an answer, this template leaves its system prompt out, and so it goes into the first
    user's words.
    """
    controls.chat_template = TURNS["system prompt before a last user"].replace("CALLS", CALL_LINE)
    assert template_needs(controls) == ("system_in_user",)
    check(conversation(), controls)


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
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}call {{ c.function.name "
        "}}{ARGS}{% endfor %}</s>"
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


def test_a_system_prompt_that_is_left_out_is_refused(tokenizer):
    source = (
        "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}[end]{% endif %}{% endfor %}"
    )
    record = parse_record(
        {
            "id": "s",
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "system", "content": "Be kind."},
                {"role": "assistant", "content": "Hello"},
            ],
        },
        "x",
    )
    with pytest.raises(DataError, match=r"record s: messages\[1\]: the chat template leaves this system prompt out"):
        encode(record, with_template(tokenizer, source))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['"', "{}", '{"name": "f", "arguments": {}}', "</tool_call>", "é漢😀", "<|end|>", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True),
        st.dictionaries(st.text(max_size=6), JSON, max_size=3),
    ),
    min_size=1,
    max_size=3,
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(CALLS, TEXT, TEXT, TEXT)
@settings(
    max_examples=120,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_name_any_arguments_any_text(plain_bpe, calls, user, result, answer):
    """Quotes, braces, tags and calls inside strings are characters of a string; this tokenizer has no special token for
    any of them.
    """
    plain_bpe.chat_template = demo.CHAT_TEMPLATE
    made = [
        {"id": str(i), "function": {"name": name, "arguments": arguments}} for i, (name, arguments) in enumerate(calls)
    ]
    messages = [
        {"role": "user", "content": f"Please: {user}"},
        {"role": "assistant", "tool_calls": made},
        {"role": "tool", "content": f"Result: {result}"},
        {"role": "assistant", "content": answer.replace("<", "")},
    ]
    check(parse_record({"messages": messages}, "x"), plain_bpe)


def test_what_cannot_be_located_is_refused_and_named(tokenizer):
    record = demo.record("single", 0)
    for template, said in {
        "{{ messages | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% "
        "endfor %}": r"messages\[1\].*not write this turn where",
        "{% for m in messages %}{{ m.content }}[end]{% endfor %}{% if add_generation_prompt %}>>{% "
        "endif %}": "where its generation prompt ends",
        "{% for m in messages %}[{{ m.role }}]{{ m.content | upper }}[end]{% endfor %}{% if add_generation_prompt "
        "%}[assistant]{% endif %}": "call of .* is not in the rendered turn with these arguments",
        "{{ raise_exception('only one turn') }}": "the chat template refuses it: only one turn",
    }.items():
        with pytest.raises(DataError, match=rf"record {record.id}: .*{said}"):
            encode(record, with_template(tokenizer, template))


def test_a_text_that_is_no_unicode_is_refused_and_named(tokenizer):
    broken = parse_record(json.loads('{"id": "b", "messages": [{"role": "assistant", "content": "so \\ud83d"}]}'), "x")
    with pytest.raises(DataError, match="record b: half a surrogate pair .*near .*so '"):
        encode(broken, tokenizer)
