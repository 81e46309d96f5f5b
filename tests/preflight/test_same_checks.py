"""One set of checks: what verify refuses training refuses, for the same reason, and both count the same."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from kd.batching.fit import FitPolicy
from kd.batching.steps import StepBatches, StepShape
from kd.preflight.records import CHECKS, Verified, verify_records
from kd.records.conversation import NOTES
from kd.records.files import DataFiles, read_all
from kd.records.quarantine import Quarantine
from kd.sources.file_index import RecordIndex

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"name": "f", "parameters": SCHEMA}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "It is so."}
FLAGS_ONLY = {"text calls", "read back"}  # checks that refuse nothing


def calling(arguments: object = None, name: str = "f", **more) -> dict:
    function = {"name": name, "arguments": {"n": 1} if arguments is None else arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": function}], **more}


def chat(*messages: dict, **more) -> dict:
    return {"id": "r", "tools": [TOOL], "messages": [USER, *messages], **more}


RESULT = {"role": "tool", "tool_call_id": "c", "content": "3"}
BAD = {
    "read": [
        b'{"id": "x", ',
        [],
        chat(),
        chat({"role": "assistant", "content": ""}),
        chat({"role": "assistant", "content": None}),
        chat(RESULT, ANSWER),
        chat(calling(), RESULT, RESULT, ANSWER),
        chat(calling(), {**RESULT, "tool_call_id": "d"}, ANSWER),
        chat(calling(), USER, ANSWER),
        chat(calling(), ANSWER),
        chat(calling(), calling()),
        chat(calling("{")),
    ],
    "reasoning": [chat({**ANSWER, "reasoning_content": "so"}), chat({**ANSWER, "content": "<think>a</think>b"})],
    "known": [chat(calling(name="g"))],
    "arguments": [
        chat(calling({"n": True})),
        chat(calling({})),
        chat(calling({"n": None})),
        chat(calling(), tools=[{**TOOL, "parameters": {**SCHEMA, "properties": {"n": {"type": "objekt"}}}}]),
        chat(calling({"q": 7}, name="web.search"), tools=[]),
        chat({**ANSWER, "content": '[f(n="x")]'}),
        chat({**ANSWER, "content": """<functioncall> {"name": "f", "arguments": '{}'}"""}),
    ],
    "special": [chat({**ANSWER, "content": "c<|end|>d"}), chat(calling({"n": 1, "x": "<|end|>"}))],
    "located": [chat(calling(content='{"name": "f", "arguments": {"n": 1}}'))],
}
GOOD = {
    "plain": (chat(ANSWER), {}),
    "joined": (chat({**ANSWER, "content": "So:"}, calling(), RESULT, ANSWER), {"joined": 1}),
    "nulls": (chat(calling({"n": 1, "other": None})), {"nulls": 1}),
    "read": (chat({**ANSWER, "content": "[f(n=1)]"}), {"read": 1}),
    "integers": (chat(calling({"n": 1.0})), {"integers": 1}),
    "variables": (chat(ANSWER, chat_template_kwargs={"enable_thinking": False}), {"variables": 1}),
    "no variables": (chat(ANSWER, chat_template_kwargs={}), {}),
    "unread": (chat({**ANSWER, "content": "Then f(n) is 2."}), {"unread": 1}),
}


def verify(path, tokenizer) -> Verified:
    (found,) = verify_records(read_all([path]), tokenizer)
    return found


def train(path, tokenizer) -> tuple[str, Counter, list[str]]:
    """Read and batch a file as a run does: (the reason of what is refused, notes, ids of what is trained)."""
    kept = path.with_name("refused.jsonl")
    try:
        index = RecordIndex([DataFiles(str(path))], Quarantine(kept, 1.0))
    except ValueError:  # no record is left
        return json.loads(kept.read_text())["reason"], Counter(), []
    ((micro,),) = islice(StepBatches(index, tokenizer, FitPolicy(10_000, refuse=True), StepShape(1)), 1)
    return "".join(micro.refused), sum(index.notes.values(), Counter()), list(micro.record_ids)


@pytest.fixture
def write(tmp_path):
    def write(value: object):
        path = tmp_path / "d.jsonl"
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return path

    return write


def test_the_table_has_every_check_that_refuses():
    assert BAD.keys() | FLAGS_ONLY == CHECKS.keys()


@pytest.mark.parametrize(("check", "bad"), [(check, bad) for check, several in BAD.items() for bad in several])
def test_what_verify_refuses_training_refuses_with_the_same_reason(check, bad, write, tokenizer):
    path = write(bad)
    verified = verify(path, tokenizer)
    reason, _, trained = train(path, tokenizer)
    assert verified.check == check and verified.refused.startswith(f"{path}:1: ")
    assert reason == verified.refused and trained == []


@pytest.mark.parametrize("name", GOOD)
def test_what_training_takes_verify_takes_and_both_count_the_same(name, write, tokenizer):
    record, notes = GOOD[name]
    path = write(record)
    verified = verify(path, tokenizer)
    reason, counted, trained = train(path, tokenizer)
    assert reason == verified.refused == "" and trained == ["r"]
    assert counted == Counter(verified.notes) == notes and notes.keys() <= NOTES.keys()
