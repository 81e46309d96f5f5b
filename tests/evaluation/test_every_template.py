"""Evaluation in each template's own syntax: the record's text scores full marks, a broken answer what its kind says."""

from __future__ import annotations

import pytest

from helpers import golden
from helpers.family_templates import FAMILIES, make_template
from helpers.template_cases import with_template
from kd.evaluation.cases import build_cases
from kd.evaluation.judge import judge_case
from kd.records.record import Record
from kd.rendering.call_syntax import find_syntax
from kd.rendering.turns import render
from kd.toolcalls.reader import CallReader

NAMES = [*golden.NAMES, *FAMILIES]
TOOLS = [golden.tool(name) for name in ("get_weather", "get_weather_map", "stop")]
ONE = [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}]
TWO = [*ONE, {"name": "stop", "arguments": {"city": "Rome", "days": 1}}]


@pytest.fixture(scope="module")
def templates(tokenizer):
    """Template's name -> (tokenizer with it, its reader)."""
    found = {}
    for name in NAMES:
        source = make_template(name) if name in FAMILIES else golden.template(name)
        other = with_template(tokenizer, source, "<s>", "</s>")
        found[name] = other, find_syntax(other)
    return found


def make_record(calls: list[dict]) -> Record:
    made = [{"id": f"call{at:05}", "type": "function", "function": call} for at, call in enumerate(calls)]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": '{"temp": 21}'}
        for call in made
    ]
    messages = [
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "", "tool_calls": made},
        *results,
        {"role": "assistant", "content": "It is 21 degrees."},
    ]
    return Record("r", messages, TOOLS)


def write(tokenizer, calls: list[dict]) -> str:
    """Render what the model writes in the turn that calls, the end of the turn included."""
    text, turns = render(make_record(calls), tokenizer)
    return text[turns[0][1] : turns[0][2]]


def judge(tokenizer, reader: CallReader, gold: list[dict], text: str) -> dict:
    """Judge an answer: its outcome."""
    case = build_cases([make_record(gold)], tokenizer)[0]
    return judge_case(case, text, reader.parse(text, case.tools))["outcome"]


def show(outcome: dict) -> tuple[bool, ...]:
    return tuple(outcome[key] for key in ("names", "exact", "json", "schema"))


@pytest.mark.parametrize("name", NAMES)
def test_the_record_s_own_text_scores_full_marks(name, templates):
    tokenizer, reader = templates[name]
    for gold in (ONE, TWO):
        outcome = judge(tokenizer, reader, gold, write(tokenizer, gold))
        arguments, wanted = outcome.pop("arguments"), sum(len(call["arguments"]) for call in gold)
        assert outcome == dict.fromkeys(outcome, True) | {"missed": False, "error": ""}
        assert arguments == {"right": wanted, "given": wanted, "wanted": wanted}
    text, turns = render(make_record(ONE), tokenizer)
    answer = build_cases([make_record(ONE)], tokenizer)[1]
    said = text[turns[1][1] : turns[1][2]]
    assert judge_case(answer, said, reader.parse(said, answer.tools))["outcome"]["integrated"]


OTHER = {"name": "stop", "arguments": {"city": "Oslo", "days": 2}}
BROKEN = {  # kind -> (calls that are answered where TWO are right; names, exact, json, schema)
    "wrong name": ([OTHER, TWO[1]], (False, False, True, True)),
    "unknown name": ([{**ONE[0], "name": "get_wether"}, TWO[1]], (False, False, True, False)),
    "missing call": (ONE, (False, False, True, True)),
    "extra call": ([*TWO, OTHER], (False, False, True, True)),
    "repeated call": ([*TWO, TWO[1]], (False, False, True, True)),
    "other order": (TWO[::-1], (True, True, True, True)),
    "wrong value": (
        [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}, TWO[1]],
        (True, False, True, True),
    ),
    "missing argument": ([{"name": "get_weather", "arguments": {"city": "Oslo"}}, TWO[1]], (True, False, True, True)),
    "extra argument": (
        [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2, "unit": "C"}}, TWO[1]],
        (True, False, True, False),
    ),
    "wrong type": (
        [{"name": "get_weather", "arguments": {"city": "Oslo", "days": "two"}}, TWO[1]],
        (True, False, True, False),
    ),
}


ERRORS = {  # kind -> what BFCL calls it, and (right, given, wanted) arguments
    "wrong name": ("cannot_find_match", (2, 4, 4)),
    "unknown name": ("cannot_find_match", (2, 4, 4)),
    "missing call": ("wrong_count", (2, 2, 4)),
    "extra call": ("wrong_count", (4, 6, 4)),
    "repeated call": ("wrong_count", (4, 6, 4)),
    "other order": ("", (4, 4, 4)),
    "wrong value": ("cannot_find_match", (3, 4, 4)),
    "missing argument": ("cannot_find_match", (3, 3, 4)),
    "extra argument": ("cannot_find_match", (4, 5, 4)),
    "wrong type": ("cannot_find_match", (3, 4, 4)),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_answer_gives_what_its_kind_says(name, kind, templates):
    tokenizer, reader = templates[name]
    (calls, verdict), (error, counts) = BROKEN[kind], ERRORS[kind]
    outcome = judge(tokenizer, reader, TWO, write(tokenizer, calls))
    assert show(outcome) == verdict and not outcome["missed"] and outcome["repaired_json"]
    assert outcome["bfcl"] is outcome["allowed"] is (not error)
    assert outcome["error"].rpartition(":")[2] == error and tuple(outcome["arguments"].values()) == counts


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_answer_is_right_in_nothing(name, templates):
    tokenizer, reader = templates[name]
    text = write(tokenizer, TWO)
    for end in (text.index("Oslo") + 2, text.index("Rome") + 2):
        outcome = judge(tokenizer, reader, TWO, text[:end])
        assert show(outcome) == (False,) * 4 and not outcome["bfcl"] and not outcome["allowed"]
        assert outcome["error"] and not outcome["missed"] and outcome["arguments"]["right"] < 4


# calls are read wherever they stand
UNMARKED = {"phi4_mini", "toolace", "gemma3_pythonic", "llama4_pythonic", "llama32_pythonic"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNMARKED])
def test_an_answer_in_another_family_s_syntax_is_right_in_nothing(name, templates):
    """The same calls as other families write them, but for those that write them alike."""
    tokenizer, reader = templates[name]
    right = write(tokenizer, TWO)
    for other in ("hermes", "llama31", "mistral_args", "xml_function", "gemma4", "lfm2", "kimi_k3"):
        other_tokenizer, other_reader = templates[other]
        verdict = show(judge(tokenizer, reader, TWO, write(other_tokenizer, TWO)))
        if other_reader.parse(right, TOOLS).valid:
            assert verdict in ((True,) * 4, (False,) * 4), other
        else:
            assert verdict == (False,) * 4, other
