"""Answers of the student read, judged and corrected: spans of the sampled tokens, kinds of corrections, loops."""

from __future__ import annotations

import json

import pytest

from kd.config.schema import Rollouts
from kd.records.record import Record
from kd.rendering.encode import encode, encode_prompt
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kd.rollouts.answer import Judge
from kd.rollouts.answer_rows import weigh
from kd.rollouts.correction import coerce, follow_order
from kd.rollouts.decode import Sampled
from kd.rollouts.sampler import find_stop_ids
from kd.rollouts.token_text import find_offsets, find_repetition

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "live": {"type": "boolean"}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS}}]
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}
ASK = {"role": "user", "content": "How warm is it in Oslo over 3 days?"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": OSLO}]}
RESULT = {
    "role": "tool",
    "tool_call_id": "1",
    "name": "get_weather",
    "content": '{"celsius": 21.5, "wind": "north-east"}',
}
SAID = {"role": "assistant", "content": "It is 21.5 degrees, wind north-east."}
CALLING = Record("calls", [ASK, CALL, RESULT, SAID], TOOLS)
REFRAINING = Record("refrains", [ASK, {"role": "assistant", "content": "No tool fits."}], TOOLS)


@pytest.fixture(scope="module")
def judged(tokenizer):
    """judged(record, turn, text, stops=True): the answer that is this text."""
    stops = find_stop_ids(None, tokenizer)
    judge = Judge(tokenizer, {"json_valid": 0.3, "tool_choice": 0.7}, stop_ids=stops, repairs=True)

    def judged(record, turn, text, finished=True, **numbers):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + stops[:1] * finished
        prompt = encode_prompt(record, turn, tokenizer)[1]
        given = {"number": 0, "sample": 0, **numbers}
        return judge.judge(record, turn, asked=prompt, drawn=Sampled(ids, [-0.5] * len(ids)), **given)

    return judged


def write(*calls):
    return "\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)


def text_of(answer, bit, tokenizer):
    return tokenizer.decode([token for token, bits in zip(answer.ids, answer.bits) if bits & bit])


def test_spans_of_a_sampled_call_are_those_of_a_record(judged, tokenizer):
    answer = judged(CALLING, 1, write(OSLO))
    assert all(bits & TRUTH for bits in answer.bits) and len(answer.bits) == len(answer.ids)
    assert text_of(answer, TOOL, tokenizer).strip(' "') == "get_weather"
    assert "Oslo" in text_of(answer, ARGS, tokenizer) and "get_weather" not in text_of(answer, ARGS, tokenizer)
    assert (answer.value, answer.parts, answer.correction, answer.finished) == (
        1.0,
        {"json_valid": 1.0, "tool_choice": 1.0},
        None,
        True,
    )
    whole = encode(Record("calls", [ASK, CALL], TOOLS), tokenizer)
    if answer.prompt + answer.ids == whole.input_ids:  # written as the template writes it: the very same bits
        assert [0] * len(answer.prompt) + answer.bits == whole.bits


def test_carried_values_are_spans_outside_of_calls_alone(judged, tokenizer):
    answer = judged(CALLING, 3, "Wind north-east, 21.5 degrees")
    carried = text_of(answer, INTEGRATION, tokenizer)
    assert "north-east" in carried and "21.5" in carried and "degrees" not in carried
    inside = judged(CALLING, 3, write({"name": "get_weather", "arguments": {"city": "north-east"}}))
    assert not any(bits & INTEGRATION for bits in inside.bits)


def test_an_answer_that_was_cut_has_no_reward(judged):
    answer = judged(CALLING, 1, write(OSLO), finished=False)
    assert answer.value == 0 and set(answer.parts.values()) == {0.0} and not answer.finished


BROKEN = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}</tool_call>'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (BROKEN, "syntax"),
        (write({"name": "get_weather", "arguments": {"city": "Oslo", "days": "3"}}), "schema"),
        (write({"name": "get_weather", "arguments": {"city": "Oslo", "days": 3, "hue": 1}}), "schema"),
        (write({"name": "get_weather", "arguments": {"city": "Bergen", "days": 3}}), "record"),
        (write({"name": "get_weather", "arguments": {"days": 3, "city": "Bergen"}}), "record"),
        (write({"name": "get_rain", "arguments": {}}), "record"),
        ("It is warm.", "record"),
    ],
)
def test_a_correction_begins_at_the_first_wrong_token(judged, tokenizer, text, kind):
    answer = judged(CALLING, 1, text)
    fix = answer.correction
    assert fix is not None and fix.kind == kind
    assert fix.ids[0] != answer.ids[fix.kept] and len(fix.bits) == len(fix.ids)
    whole = tokenizer.decode([*answer.ids[: fix.kept], *fix.ids])
    found = json.loads(whole.split("<tool_call>")[1].split("</tool_call>")[0])
    assert found == OSLO and fix.bits[-1] & TRUTH
    if '"days": 3, "city"' in text:  # its own order is kept, as far as it was right
        assert list(found["arguments"]) == ["days", "city"]
    if "Oslo" in text:
        assert fix.kept > len(tokenizer('<tool_call>{"name": "get_weather"', add_special_tokens=False)["input_ids"])


def test_a_needless_call_is_corrected_to_the_records_answer(judged, tokenizer):
    fix = judged(REFRAINING, 1, write(OSLO)).correction
    assert fix.kept == 0 and "No tool fits." in tokenizer.decode(fix.ids)
    assert judged(REFRAINING, 1, "I have no tool for that.").correction is None
    assert judged(REFRAINING, 1, "It is warm.").no_tool and not judged(CALLING, 3, "It is warm.").no_tool


def test_a_call_twice_and_an_empty_answer_are_told(judged):
    assert judged(CALLING, 1, write(OSLO, OSLO)).hacked and judged(CALLING, 1, " ").hacked
    assert (
        not judged(CALLING, 1, write(OSLO)).hacked and not judged(CALLING, 1, write(OSLO, {**OSLO, "name": "b"})).hacked
    )


def test_orders_and_types():
    wanted = [
        {"name": "a", "arguments": {"x": 1, "y": 2}},
        {"name": "b", "arguments": {}},
        {"name": "a", "arguments": {"x": 5}},
    ]
    written = [{"name": "b", "arguments": {}}, {"name": "a", "arguments": {"x": 5}}, {"name": "c", "arguments": {}}]
    assert follow_order(written, wanted) == [wanted[1], wanted[2], wanted[0]]
    assert list(follow_order([{"name": "a", "arguments": {"y": 0, "q": 1}}], wanted)[0]["arguments"]) == ["y", "x"]
    raw = {"name": "get_weather", "arguments": {"city": 7, "days": "x", "live": "TRUE", "hue": 1}}
    assert coerce(raw, TOOLS)["arguments"] == {"city": "7", "days": "x", "live": True}


def test_characters_of_tokens(tokenizer):
    for text in ("plain words", "Tromsø, 21 °C — ok", "a 🌧️ day\n\n{}", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found, offsets = find_offsets(ids, tokenizer)
        assert found == text and len(offsets) == len(ids)
        assert all(start <= end for start, end in offsets)
        assert not text or offsets[-1][1] == len(text)
        for at in range(1, len(offsets)):
            assert offsets[at - 1][0] <= offsets[at][0] <= max(offsets[at - 1][1], offsets[at - 1][0])


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 2, 3, 4], None),
        ([9, 1, 2, 1, 2, 1, 2], 3),
        ([9, 1, 2, 1, 2], None),
        ([7] * 8, 1),
        ([7] * 5, None),
        ([1, 2, 3] * 4, 3),
        ([], None),
    ],
)
def test_repetition(ids, found):
    assert find_repetition(ids) == found


def test_advantages_are_taken_within_a_prompt(judged):
    right, wrong = write(OSLO), write({"name": "get_rain", "arguments": {}})
    answers = [
        judged(CALLING, 1, text, number=number, sample=sample)
        for number, texts in enumerate([(right, wrong), (right, right)])
        for sample, text in enumerate(texts)
    ]
    assert [one.advantage for one in weigh(answers, Rollouts(reward=1.0, samples=2))] == pytest.approx(
        [0.7, -0.7, 0, 0]
    )
