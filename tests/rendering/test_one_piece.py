"""Whatever is trained could have been generated in one piece after its prompt, and ends in a stop.

Generated records break every rule of kd/records/conversation.py: split and empty turns, results out of order, twice or
missing, nulls, calls as text. Each is refused with a reason, or each of its turns stands after the template's own
generation prompt, holds all that the turn says and no stop before its end. What a turn should hold comes from the raw
messages: nothing of the code that reads them has a part in it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import groupby, islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import golden
from helpers.template_cases import TEMPLATES, with_template
from kd.batching.fit import FitPolicy
from kd.batching.steps import StepBatches, StepShape
from kd.records.checks import DataError
from kd.records.files import DataFiles, read_each
from kd.records.quarantine import Quarantine
from kd.rendering.beginnings import Beginnings
from kd.rendering.encode import annotate_sequences
from kd.rendering.spans import TRUTH
from kd.rendering.stops import find_stops
from kd.sources.file_index import RecordIndex

NAMES = ["get_weather", "find"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "...",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}},
        },
    }
    for name in NAMES
]
WORDS = st.sampled_from(["", " ", "Let me look.", "It is 31 C.", "Done, as asked.", "So"])
CITIES, NUMBERS = st.sampled_from(["Quint", "Malvo", None]), st.none() | st.integers(0, 99)
ARGUMENTS = st.fixed_dictionaries({}, optional={"city": CITIES, "n": NUMBERS, "to": st.none()})
TEXT_CALL = re.compile(r"\{\"name\"|Action:|\[(?:get_weather|find)\(")


@st.composite
def assistants(draw, start: int) -> list[dict]:
    """The messages of one turn, split at random, its calls' ids from `start` on."""
    turn, calls = [], start
    for _ in range(draw(st.integers(1, 3))):
        content, made = draw(WORDS) if calls == start or draw(st.integers(0, 9)) == 0 else "", []
        for _ in range(draw(st.sampled_from([0, 1, 2, 2]))):
            name, arguments = draw(st.sampled_from(NAMES)), draw(ARGUMENTS)
            if calls == start and draw(st.integers(0, 5)) == 0:
                text = draw(
                    st.sampled_from(
                        [
                            json.dumps({"name": name, "arguments": arguments}),
                            f"<functioncall> {json.dumps({'name': name, 'arguments': json.dumps(arguments)})}",
                            f"[{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]",
                            f"Action: {name}\nAction Input: {json.dumps(arguments)}",
                        ]
                    )
                )
                content = f"{content}\n{text}" if content.strip() and draw(st.booleans()) else text
                break
            made.append(golden.call(f"call{calls:05}", name, arguments))
            calls += draw(st.integers(0, 19)) > 0  # else the id comes again
        turn.append({"role": "assistant", "content": content, **({"tool_calls": made} if made else {})})
    return turn


@st.composite
def records(draw) -> dict:
    messages = [{"role": "user", "content": "Weather in Quint?"}] if draw(st.integers(0, 9)) else []
    for number in range(draw(st.integers(1, 3))):
        turn = draw(assistants(number * 10))
        messages += turn
        ids = [call["id"] for message in turn for call in message.get("tool_calls", ())]
        results = [{"role": "tool", "tool_call_id": identity, "content": f"R{identity}"} for identity in ids]
        if draw(st.booleans()):
            results = results[::-1]
        if results and draw(st.integers(0, 9)) == 0:
            results = draw(st.sampled_from([results[1:], [*results, results[0]]]))
        messages += results
        if not results or draw(st.booleans()):
            messages.append({"role": "user", "content": "And then?"})
        if results and draw(st.integers(0, 9)):
            messages.append({"role": "assistant", "content": "That is all."})
            messages.append({"role": "user", "content": "Thanks. Again?"})
    return {"id": "g", "tools": TOOLS, "messages": messages}


def read(data: dict, folder, rewrite: bool):
    path = folder / "d.jsonl"
    path.write_text(json.dumps(data) + "\n")
    (item,) = read_each(path, rewrite_calls=rewrite)
    assert (item.record is None) == bool(item.reason) and item.reason.startswith(f"{path}:1: " if item.reason else "")
    return item.record


def raw_turns(messages: list[dict]) -> list[list[dict]]:
    """The assistant's turns as the raw messages have them: each run of assistant messages is one."""
    runs = groupby(messages, key=lambda message: message["role"] == "assistant")
    return [list(run) for is_turn, run in runs if is_turn]


def check(data: dict, record, tokenizer) -> None:
    turns, stops = raw_turns(data["messages"]), set(find_stops(tokenizer).tokens.values())
    places = [at for at, message in enumerate(record.messages) if message["role"] == "assistant"]
    assert len(places) == len(turns)
    beginnings = Beginnings(record, tokenizer)
    for found in annotate_sequences(record, tokenizer):
        trained = [span for span in found.spans if span.kind == "truth"]
        assert [bool(bits & TRUTH) for bits in found.encoded.bits].count(True) == sum(s.end - s.start for s in trained)
        _, _, number = found.encoded.record_id.partition("#")
        for index, (_, start, end) in zip([int(number)] if number else places, trained, strict=True):
            begin = found.offsets[start][0]
            said, ids = found.text[begin : found.offsets[end - 1][1]], found.encoded.input_ids[start:end]
            (prompt,) = beginnings.prompts([index - beginnings.merged])
            assert found.text[:begin].startswith(prompt.rstrip())  # past its end a block of an empty thought may stand
            assert not stops or [token in stops for token in ids if token in stops or token == ids[-1]] == [True]
            check_said(said, turns[places.index(index)], record.messages[index])
        check_results(found.text, data["messages"], record)


def check_said(said: str, turn: list[dict], message: dict) -> None:
    """All that the raw messages of a turn say is in it, in order: texts, then calls. Text calls may be rewritten."""
    calls = [call["function"] for raw in turn for call in raw.get("tool_calls", ())]
    made = [call["function"] for call in message.get("tool_calls", ())]
    texts = [raw["content"].strip() for raw in turn]
    if len(made) > len(calls):
        texts = [text for text in texts if not TEXT_CALL.search(text)]
    if not made or any(text and text in said for text in texts):  # else the template drops what stands beside calls
        at = 0
        for text in texts:
            at = said.index(text, at) + len(text)
    assert all(call["name"] in said for call in made)
    assert made[len(made) - len(calls) :] == [{**call, "arguments": without_nulls(call["arguments"])} for call in calls]


def without_nulls(arguments: dict) -> dict:
    return {key: value for key, value in arguments.items() if value is not None}


def check_results(text: str, raw: list[dict], record) -> None:
    """Results stand in the order of their calls, turn by turn."""
    ids = [call["id"] for message in record.messages for call in message.get("tool_calls", ()) if call.get("id")]
    contents = [m["content"] for m in record.messages if m["role"] == "tool"]
    answered = {message["tool_call_id"] for message in raw if message["role"] == "tool"}
    assert contents == [f"R{identity}" for identity in ids if identity in answered]
    at = [text.find(content) for content in contents if content in text]
    assert at == sorted(at)


CASES = {name: (golden.template(name), "<s>", "</s>") for name in golden.NAMES} | {
    name: (template, "<|pad|>", "<|end|>") for name, template in TEMPLATES.items()
}
COMMON = dict(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", CASES)
def test_each_turn_stands_in_one_piece_after_its_prompt(name, tokenizer, tmp_path):
    other, counts = with_template(tokenizer, *CASES[name]), Counter()

    @given(data=records(), rewrite=st.booleans())
    @settings(max_examples=60, **COMMON)
    def hold(data, rewrite):
        record = read(data, tmp_path, rewrite)
        counts["read" if record else "refused"] += 1
        if record is not None:
            try:
                check(data, record, other)
                counts["trained"] += 1
            except DataError as error:
                assert str(error).startswith("record g: ")

    hold()
    assert counts["refused"] > 5 and counts["trained"] > counts["read"] / 2 > 5


def test_two_ranks_train_and_refuse_what_one_does(tokenizer, tmp_path):
    lines = []

    @given(data=records())
    @settings(max_examples=200, **COMMON)
    def collect(data):
        lines.append(json.dumps({**data, "id": str(len(lines))}))

    collect()
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(lines) + "\n")
    index = RecordIndex([DataFiles(str(path))], Quarantine(None, 1.0))
    assert 10 < len(index) < len(lines) and index.notes[str(path)].keys() >= {"joined", "reordered", "nulls", "read"}
    found = []
    for world in (1, 2):
        trained, refused = [], []
        for rank in range(world):
            shape = StepShape(2, 1, rank, world)
            batches = StepBatches(index, tokenizer, FitPolicy(10_000, refuse=True), shape)
            for step in islice(batches, -(-len(index) // (2 * world))):
                trained += [name for micro in step for name in micro.record_ids]
                refused += [reason for micro in step for reason in micro.refused]
        found.append((sorted(trained), sorted(refused)))
    assert found[0] == found[1] and len(found[0][0]) + len(found[0][1]) == len(index)
