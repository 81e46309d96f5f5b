"""Turns that no single generation makes: joined, put in order, or refused, each by its rule."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from helpers.format_cases import said
from helpers.record_cases import items
from kd.records.checks import DataError
from kd.records.conversation import NOTES, describe_notes
from kd.records.record import read_decoded

TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}
USER = {"role": "user", "content": "q"}


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


def calls(*numbers: int, text: str = "", ids: bool = True) -> dict:
    made = [
        {**({"id": f"c{n}"} if ids else {}), "type": "function", "function": {"name": "f", "arguments": {"n": n}}}
        for n in numbers
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


def result(number: int | None, text: str = "", **more) -> dict:
    identity = {} if number is None else {"tool_call_id": f"c{number}"}
    return {"role": "tool", "content": text or f"r{number}", **identity, **more}


def read(*messages: dict):
    data = json.loads(json.dumps({"id": "r", "messages": messages, "tools": [TOOL]}))
    return read_decoded(data, "f:1")


JOINED = {
    "text, then its call": ([says("Look."), calls(1)], [("assistant", "Look.", [1])]),
    "an empty message, then the call": ([says(""), calls(1)], [("assistant", "", [1])]),
    "a call, then an empty message": ([calls(1), says(" ")], [("assistant", "", [1])]),
    "text, then text with a call": ([says("Look. "), calls(1, text="\nNow.")], [("assistant", "Look.\n\nNow.", [1])]),
    "calls that follow calls": ([calls(1), calls(2, 3)], [("assistant", "", [1, 2, 3])]),
    "three texts": ([says("a"), says("b"), says("c")], [("assistant", "a\n\nb\n\nc", [])]),
}


@pytest.mark.parametrize("name", JOINED)
def test_messages_of_one_turn_are_joined(name):
    messages, wanted = JOINED[name]
    record, notes = read(USER, *messages)
    found = [
        (m["role"], m["content"], [call["function"]["arguments"]["n"] for call in m.get("tool_calls", ())])
        for m in record.messages[1:]
    ]
    assert found == wanted and notes == ("joined",)


ORDERED = {
    "by id": ([calls(1, 2), result(2), result(1)], ["r1", "r2"], True),
    "in order already": ([calls(1, 2), result(1), result(2)], ["r1", "r2"], False),
    "by their places, without ids": ([calls(1, 2), result(None, "x"), result(None, "y")], ["x", "y"], False),
    "one id, the other by what is left": ([calls(1, 2), result(None, "x"), result(1)], ["r1", "x"], True),
    "after joined calls": ([calls(1), calls(2), result(2), result(1)], ["r1", "r2"], True),
}


@pytest.mark.parametrize("name", ORDERED)
def test_results_are_put_in_the_order_of_their_calls(name):
    messages, wanted, changed = ORDERED[name]
    record, notes = read(USER, *messages, says("So."))
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == wanted
    assert ("reordered" in notes) == changed


def test_results_without_ids_go_by_the_name_of_their_function_where_names_tell():
    made = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in ("f", "g")]
    messages = [USER, {"role": "assistant", "tool_calls": made}]
    named = [{"role": "tool", "name": name, "content": name.upper()} for name in ("g", "f")]
    record, notes = read_decoded({"messages": [*messages, *named, says("So.")]}, "f:1")
    assert [m["content"] for m in record.messages[2:4]] == ["F", "G"] and notes == ("reordered",)
    named[0]["name"] = "other"  # no name of a call: the places decide
    record, notes = read_decoded({"messages": [*messages, *named, says("So.")]}, "f:1")
    assert [m["content"] for m in record.messages[2:4]] == ["G", "F"] and notes == ()


REFUSED = {
    "an empty turn": ([USER, says(" \n"), USER, says("a")], r"messages\[1\]: an assistant turn with neither text nor"),
    "an empty last turn": ([USER, says("")], r"messages\[1\]: an assistant turn with neither"),
    "two results of one call": (
        [USER, calls(1, 2), result(1), result(1), says("a")],
        r"messages\[3\]\.tool_call_id: a second result of the call 'c1'",
    ),
    "a result too many": (
        [USER, calls(1, ids=False), result(None), result(None), says("a")],
        r"messages\[3\]: a result of no call: the turn before it makes 1 calls, and 2 results follow",
    ),
    "a result of a call of an earlier turn": (
        [USER, calls(1), result(1), says("a"), USER, calls(2), result(1), says("b")],
        r"messages\[6\]\.tool_call_id: no call before it has the id 'c1'",
    ),
    "a result that comes too late": (
        [USER, calls(1, 2), result(1), says("a"), result(2), says("b")],
        r"messages\[1\]: 2 calls and 1 results before the conversation goes on",
    ),
    "a result before any call": ([USER, result(None), says("a")], r"messages\[1\]: a result, and no call is made"),
    "a result first of all": ([result(None), says("a")], r"messages\[0\]: a result, and no call is made"),
    "calls without results": (
        [USER, calls(1), USER, says("a")],
        r"messages\[1\]: 1 calls and 0 results before the conversation goes on; add the missing",
    ),
    "text after calls without results": ([USER, calls(1), says("a")], r"messages\[2\]: text after calls whose results"),
    "two calls of one id": ([USER, calls(1, 1)], r"messages\[1\]\.tool_calls: two calls have the same id"),
    "joined calls of one id": ([USER, calls(1), calls(1)], r"messages\[1\]\.tool_calls: two calls have the same id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_mends_is_refused_with_its_message(name):
    messages, reason = REFUSED[name]
    with pytest.raises(DataError, match=rf"^f:1: {reason}"):
        read(*messages)


def test_prompts_are_kept_as_they_are():
    system = {"role": "system", "content": "Be brief."}
    for messages in (
        [USER, USER, says("a")],
        [USER, says("a"), system, USER, says("b")],
        [system, says("Welcome."), USER, says("b")],
        [USER, says("a"), USER],
        [USER, calls(1, 2)],  # the record ends with its calls
        [USER, calls(1, 2), result(1)],  # or before all their results are in
        [USER, says("Let me see: f says"), result(None), says("b")],  # the call may be in the text
    ):
        record, notes = read(*messages)
        assert said(record) == [(m["role"], m["content"]) for m in messages]
        assert {*notes} <= {"unread"}


def test_reading_what_was_settled_changes_nothing():
    for messages, *_ in [*JOINED.values(), *ORDERED.values()]:
        record, _ = read(USER, *messages)
        again, notes = read_decoded({"id": "r", "messages": record.messages, "tools": record.tools}, "f:1")
        assert again == record and notes == ()


def test_ids_may_come_again_in_another_turn():
    record, notes = read(USER, calls(1), result(1), says("a"), USER, calls(1), result(1), says("b"))
    assert len(record.messages) == 8 and notes == ()


def test_notes_are_counted_by_record_and_said_in_words(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [[USER, says("a"), says("b"), USER, says("c"), calls(1)], [USER, says("a")], [USER, says("a"), says("b")]]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in lines))
    notes = Counter(note for item in items(path) for note in item.notes)
    assert notes == {"joined": 2} and describe_notes(notes) == [f"2 records: {NOTES['joined']}"]
