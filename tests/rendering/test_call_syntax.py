"""Calls read back from each template's own text: parse(render(calls)) == calls, and what else the reader must say."""

from __future__ import annotations

import copy
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import golden
from helpers.family_templates import FAMILIES, FUNCTIONARY, make_template
from helpers.template_cases import with_template
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.call_syntax import CallSyntaxError, find_syntax
from kd.rendering.encode import annotate
from kd.rendering.turns import render
from kd.toolcalls.locate import locate_calls
from kd.toolcalls.syntax.registry import SYNTAXES

NAMES = [*golden.NAMES, *FAMILIES]
TYPES = {"city": "string", "place": "string", "n": "integer", "x": "number", "live": "boolean", "days": "array"}
TYPES |= {"box": "object", "note": ["string", "null"]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind, "description": ""} for key, kind in TYPES.items()},
            },
        },
    }
    for name in ("f", "g", "get_weather", "get_weather_map")
]
PLAIN = [{"name": "f", "arguments": {"city": "Oslo", "n": 3}}, {"name": "g", "arguments": {}}]
# syntaxes in which a text may be anything; in the others it has no mark that would end it, and no space at its edges
ANY_TEXT = {"object", "name_first"}
WORDS = st.text(st.sampled_from("abcXYZ éß漢😀0189-_.;:/&#%~"), min_size=1, max_size=12).map(str.strip)
TYPED_TEXTS = ["5", "-1.5", "true", "null", "None", "1e5", "1_000"]


def make_source(name: str) -> str:
    return make_template(name) if name in FAMILIES else golden.template(name)


@pytest.fixture(scope="module")
def readers(tokenizer):
    """Template's name -> (tokenizer with it, its reader)."""
    found = {}
    for name in NAMES:
        other = with_template(tokenizer, make_source(name), "<s>", "</s>")
        found[name] = other, find_syntax(other)
    return found


def make_record(calls: list[dict], said: str = "") -> Record:
    made = [
        {"id": f"call{at:05}", "type": "function", "function": copy.deepcopy(call)} for at, call in enumerate(calls)
    ]
    messages = [
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": said, "tool_calls": made},
        *(
            {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": "1"}
            for call in made
        ),
        {"role": "assistant", "content": "So it is."},
    ]
    return Record("r", messages, TOOLS)


def write(tokenizer, calls: list[dict], said: str = "") -> str:
    """Render what the model writes in a turn."""
    text, turns = render(make_record(calls, said), tokenizer)
    return text[turns[0][1] : turns[0][2]]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_read_and_located_as_published(name, readers):
    tokenizer, reader = readers[name]
    text = FAMILIES[name].text
    parsed = reader.parse(f"Sure.{text}", TOOLS)
    assert (reader.syntax, parsed.calls, parsed.problems) == (FAMILIES[name].syntax, PLAIN, [])
    assert parsed.text_outside == "Sure." and len(parsed.spans) == 2 and parsed.valid
    assert text.strip() in write(tokenizer, PLAIN)
    places = locate_calls(text, 0, len(text), PLAIN)
    assert places and [text[slice(*place.name)] for place in places] == ["f", "g"]
    found = annotate(make_record(PLAIN), tokenizer)
    assert [call.name for call in found.calls] == ["f", "g"]


def values(syntax: str) -> st.SearchStrategy:
    texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) if syntax in ANY_TEXT else WORDS
    inner = st.integers(-99, 10**12) | WORDS.filter(lambda text: text not in TYPED_TEXTS and text.isalpha())
    by_key = {
        "city": texts.filter(bool),
        "place": st.sampled_from(TYPED_TEXTS),
        "n": st.integers(-(10**20), 10**20),
        "x": st.floats(allow_nan=False, allow_infinity=False),
        "live": st.booleans(),
        "days": st.lists(inner, min_size=1, max_size=3),
        "box": st.dictionaries(st.sampled_from(["a", "b_c"]), inner, min_size=1),
        "note": st.none() | texts.filter(lambda text: text.strip() and text not in TYPED_TEXTS),
    }
    return st.fixed_dictionaries({}, optional=by_key)


COMMON = dict(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=12, **COMMON)
def test_what_a_template_writes_is_read_back(name, readers, data):
    tokenizer, reader = readers[name]
    made = st.tuples(st.sampled_from([tool["function"]["name"] for tool in TOOLS]), values(reader.syntax))
    calls = [
        {"name": called, "arguments": arguments}
        for called, arguments in data.draw(st.lists(made, min_size=1, max_size=3))
    ]
    text = write(tokenizer, calls, data.draw(st.sampled_from(["", "Let me see."])))
    parsed = reader.parse(text, TOOLS)
    assert parsed.problems == [] and parsed.calls == calls and len(parsed.spans) == len(calls)
    assert parsed.repaired_calls == calls


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=15, **COMMON)
def test_damage_never_raises_and_never_makes_another_call_valid(name, readers, data):
    """A cut, a doubled or a dropped piece: nothing is raised, and spans, problems and calls add up."""
    tokenizer, reader = readers[name]
    text = write(tokenizer, [{"name": "f", "arguments": {"city": "Oslo", "n": 3}}, PLAIN[1]])
    one, two = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    junk = data.draw(st.sampled_from(["", text[one:two] * 2, "{", "<", '"', "1e999", "\\ud800", "]", "NaN", "\ud800"]))
    parsed = reader.parse(text[:one] + junk + text[two:], TOOLS)
    assert len(parsed.spans) == len(parsed.calls) + len(parsed.problems)
    assert all(a <= b <= c for (a, b), (c, _) in zip(parsed.spans, parsed.spans[1:]))
    assert len(parsed.repaired_calls) <= len(parsed.spans)
    for call in [*parsed.calls, *parsed.repaired_calls]:
        assert isinstance(call["name"], str) and isinstance(call["arguments"], dict)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_in_words_calls_nothing(name, readers):
    _, reader = readers[name]
    for text in ("No tool fits.", 'Say {"name": "Bob", "age": 3} or f(x) or [1, 2].', "a < b > c", ""):
        assert reader.parse(text, TOOLS).spans == []


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_call_is_an_attempt_and_no_call(name, readers):
    tokenizer, reader = readers[name]
    one = {"name": "get_weather", "arguments": {"city": "Oslo", "n": 3}}
    text = write(tokenizer, [one])
    end = text.index("Oslo") + 2
    parsed = reader.parse(text[:end], TOOLS)
    assert (parsed.calls, len(parsed.problems), len(parsed.spans)) == ([], 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_time_grows_with_damaged_calls(name, readers):
    tokenizer, reader = readers[name]
    text = write(tokenizer, [{"name": "f", "arguments": {"city": "Oslo", "n": 3}}])
    taken = []
    for size in (10_000, 40_000):
        damaged = (text[: text.index("Oslo") + 2] * size)[:size]
        start = time.process_time()
        reader.parse(damaged, TOOLS)
        taken.append(time.process_time() - start)
    assert taken[1] < max(4 * 2.5 * taken[0], 0.2) and taken[1] < 0.6


@pytest.mark.parametrize("name", NAMES)
def test_no_family_reads_another(name, readers):
    """An answer in Lisp, or in a syntax of its own, is none in this one."""
    _, reader = readers[name]
    assert reader.parse('(f :city "Oslo" :n 3) !f city:"Oslo"!', TOOLS).calls == []


def test_texts_without_special_tokens(tokenizer):
    """A decoder that skips special tokens leaves a list where Mistral writes [TOOL_CALLS] before it."""
    other = copy.deepcopy(with_template(tokenizer, make_template("nemotron_nano_v2"), "<s>", "</s>"))
    other.add_special_tokens({"additional_special_tokens": ["<TOOLCALL>", "</TOOLCALL>"]})
    kept, skipped = find_syntax(other), find_syntax(other, special_tokens=False)
    text = FAMILIES["nemotron_nano_v2"].text
    bare = text.replace("<TOOLCALL>", "").replace("</TOOLCALL>", "")
    assert kept.parse(text, TOOLS).calls == PLAIN == skipped.parse(bare, TOOLS).calls
    assert kept.parse(bare, TOOLS).calls == []


def test_the_header_of_a_channel_in_any_order(tokenizer):
    """Harmony allows the recipient in the role or in the channel."""
    source = make_template("gpt_oss").replace("eos_token if", "('' if m.tool_calls else eos_token) if")
    reader = find_syntax(with_template(tokenizer, source))
    for header in (
        "<|channel|>commentary to=functions.f <|constrain|>json",
        " to=functions.f<|channel|>commentary json",
    ):
        parsed = reader.parse(f'{header}<|message|>{{"n": 3}}', TOOLS)  # <|call|> ends the turn, and is cut off
        assert parsed.calls == [{"name": "f", "arguments": {"n": 3}}] and parsed.valid


def test_a_template_that_refuses_an_answer_after_results_is_read(tokenizer):
    """Gemma's writes it into the turn that called, which is refused as training; its calls are judged all the same."""
    refused = (
        "{%- for m in messages if m.role == 'tool' and not loop.last and messages[loop.index].role == 'assistant' %}"
    )
    source = refused + "{{ raise_exception('an answer after a result') }}{% endfor %}" + make_template("gemma4")
    reader = find_syntax(with_template(tokenizer, source, "<s>", "</s>"))
    assert reader.syntax == "bare_keys" and reader.parse(FAMILIES["gemma4"].text, TOOLS).calls == PLAIN


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ("{{ c.function.name }}~{{ c.function.arguments | length }}", "does not read back"),
        # without arguments it is a call of `bare_keys`, which reads none of the others
        ("{{ c.function.name }}{{ c.function.arguments | tojson }}", "does not read back"),
        ("", "does not read back"),
        ("{{ raise_exception('no calls') }}", r"^the tokenizer: the chat template writes no call"),
    ],
)
def test_a_template_whose_calls_are_not_read_back_is_refused(calls, said, tokenizer):
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}</s>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(CallSyntaxError, match=said):
        find_syntax(with_template(tokenizer, source.replace("CALL", calls)))


def test_a_grammar_is_no_wider_than_its_template_writes(readers):
    """Arguments joined without a comma, texts for numbers, names without a mark: only where the template has them."""
    for name, text in (
        ("lfm2", '<|tool_call_start|>[f(city="Oslo"n=3)]<|tool_call_end|>'),
        ("gemma3_pythonic", '[f(city="Oslo"n="3)]'),
    ):
        parsed = readers[name][1].parse(text, TOOLS)
        assert parsed.problems and not parsed.valid, name
    for name in ("xml_function", "glm", "llama4_pythonic", "kimi_k3"):
        tokenizer, reader = readers[name]
        right = write(tokenizer, [{"name": "f", "arguments": {"n": 31}}])
        assert reader.parse(right, TOOLS).calls == [{"name": "f", "arguments": {"n": 31}}]
        for wrong in ("(31)", "+31", "0x1F", "3_1"):
            calls = reader.parse(right.replace("31", wrong), TOOLS).calls
            assert calls in ([], [{"name": "f", "arguments": {"n": wrong}}]), name
    for name, value in (("functiongemma", "3"), ("gemma_texts", 3)):
        text = "<start_function_call>call:f{n:<escape>3<escape>}<end_function_call>"
        assert readers[name][1].parse(text, TOOLS).calls == [{"name": "f", "arguments": {"n": value}}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text, mark: text.replace(mark, "<b>"),
        lambda text, mark: text.replace(f"city:{mark}Oslo", "city:<b>Oslo<b>,place:" + mark),
        lambda text, mark: text.replace("n:3", "n:3,"),
        lambda text, mark: text.replace("n:3", "n:[3,]"),
        lambda text, mark: text.replace("n:3", "n:(3)"),
        lambda text, mark: text.replace("n:3", "n:+3"),
    ],
)
@pytest.mark.parametrize(("name", "mark"), [("gemma4", '<|"|>'), ("functiongemma", "<escape>")])
def test_an_object_of_bare_keys_is_as_its_template_writes_it(name, mark, damage, readers):
    """No other marks around a text, and no comma that nothing follows."""
    text = FAMILIES[name].text
    parsed = readers[name][1].parse(damage(text, mark), TOOLS)
    assert parsed.calls == PLAIN[1:] and parsed.problems


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("demo", "hermes")])
def test_time_grows_with_openings_that_one_end_closes(name, readers):
    """Each opening reaches to the same end, far on, and fails behind it."""
    tokenizer, reader = readers[name]
    text = write(tokenizer, [{"name": "f", "arguments": {"city": "Oslo", "n": 3}}])
    start, end = text.index("Oslo"), text.index("Oslo") + 4

    def take(size):
        damaged = text[:start] * (size // start) + text[end : text.index("3", end)] + "\0"
        begin = time.process_time()
        reader.parse(damaged, TOOLS)
        return time.process_time() - begin

    def is_linear():
        once, four_times = take(100_000), take(400_000)
        return four_times < max(4 * 2 * once, 0.4) and once < 1

    assert any(is_linear() for _ in range(3))  # one measurement may be of a machine that is slower for a moment


def test_names_that_nothing_opens(tokenizer):
    other = with_template(tokenizer, FUNCTIONARY, "<s>", "</s>")
    reader = find_syntax(other)
    for said in ("", "Sure."):
        text = write(other, PLAIN, said)
        assert reader.parse(text, TOOLS).calls == PLAIN and reader.parse(text, TOOLS).valid
    assert reader.syntax == "name_first"
    assert reader.parse('f\n{"n": 3}g\n{}', TOOLS).calls == [{"name": "f", "arguments": {"n": 3}}]
    assert reader.parse('Say f\n{"n": 3}', TOOLS).spans == []
    assert reader.parse('f\n{"n": 3', TOOLS).problems


def test_nothing_between_tags_is_of_its_schema_s_type(readers):
    tokenizer, reader = readers["minimax_m3"]
    call = {"name": "f", "arguments": {"city": "", "days": [], "box": {}}}
    assert reader.parse(write(tokenizer, [call]), TOOLS).calls == [call]


def test_a_template_that_leaves_null_out_is_named(tokenizer):
    source = make_template("minimax_m3").replace("items() %}{{- nested", "items() if v is not none %}{{- nested")
    with pytest.raises(
        DataError, match=r"messages\[1\]: the chat template leaves out the arguments of f that are null"
    ):
        annotate(make_record([{"name": "f", "arguments": {"n": 3, "note": None}}]), with_template(tokenizer, source))


def test_every_syntax_is_tried():
    assert {FAMILIES[name].syntax for name in FAMILIES} == set(SYNTAXES.names())
