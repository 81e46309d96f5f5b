"""Chat templates other than the demo's: other JSON spacing, other places of things, and those that are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import golden
from helpers.template_cases import TEMPLATES, check, with_template
from kd.records.checks import DataError
from kd.records.record import parse_record
from kd.rendering.encode import encode
from kd.rendering.spans import find_spans
from kd.rendering.turns import render
from kd.sources.demo import corpus as demo


@pytest.mark.parametrize("name", golden.NAMES)
def test_the_golden_conversation(name, tokenizer):
    """Text and spans, to the character, as a person read them: see tests/helpers/golden.py."""
    record = parse_record(golden.CONVERSATION, "golden")
    text, turns = render(record, with_template(tokenizer, golden.template(name), "<s>", "</s>"))
    assert golden.mark_spans(text, find_spans(record, text, turns)) == (golden.FOLDER / f"{name}.golden.txt").read_text(
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
        *({"role": "tool", "content": f"Result: {result}"} for _ in made),
        {"role": "assistant", "content": "So: " + answer.replace("<", "")},
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
        "%}[assistant]{% endif %}": "call of .* is not in the rendered turn: the chat template writes no calls",
        "{{ raise_exception('only one turn') }}": "the chat template refuses it: only one turn",
    }.items():
        with pytest.raises(DataError, match=rf"record {record.id}: .*{said}"):
            encode(record, with_template(tokenizer, template))


def test_a_text_that_is_no_unicode_is_refused_and_named(tokenizer):
    broken = parse_record(json.loads('{"id": "b", "messages": [{"role": "assistant", "content": "so \\ud83d"}]}'), "x")
    with pytest.raises(DataError, match="record b: half a surrogate pair .*near .*so '"):
        encode(broken, tokenizer)
