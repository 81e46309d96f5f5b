"""Rewards of CAWS: every value from 0 to 1 is reached, and each part says why."""

from __future__ import annotations

import pytest

from helpers.caws_cases import DAY, REFUNDS, write_project
from kd.records.caws.context import CawsError, extract_caws_context
from kd.records.record import Record
from kd.rewards.reward import REWARDS
from kd.toolcalls.parsed import ParsedCalls

MESSAGES = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "ok"}]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("caws"), waiver=None)
    return Record("r", MESSAGES, caws=extract_caws_context(folder, "PAY-001", date=DAY))


def reward(name, record, text="", *written):
    calls = [{"name": "file.write", "arguments": {"path": path, "content": "x\n" * lines}} for path, lines in written]
    return REWARDS[name](record, 1, text, ParsedCalls(calls, [], [], text, calls))


def test_compliance_falls_with_what_is_over_the_budget_or_out_of_the_scope(record):
    assert reward("caws_compliance", record).value == 1
    inside = ("src/refunds/a.py", 10)
    assert reward("caws_compliance", record, "", inside).parts == {
        "budget": 1,
        "completeness": 1,
        "scope": 1,
        "allowed": 1,
    }
    half = reward("caws_compliance", record, "", inside, ("b.py", 10))
    assert (half.value, half.parts["scope"], half.parts["allowed"]) == (0.5, 0.5, 0)
    assert reward("caws_compliance", record, "", ("b.py", 10)).value == 0
    long = reward("caws_compliance", record, "", ("src/refunds/a.py", 6000))
    assert long.value == long.parts["budget"] == 0.25
    both = reward("caws_compliance", record, "", ("src/refunds/a.py", 3000), ("b.py", 3000))
    assert both.value == 0.125


def test_a_waived_gate_counts_as_kept(tmp_path):
    caws = extract_caws_context(write_project(tmp_path), "PAY-001", date=DAY)
    judged = reward("caws_compliance", Record("r", MESSAGES, caws=caws), "", ("src/refunds/a.py", 6000))
    assert judged.value == judged.parts["allowed"] == 1


def test_structure_is_the_mean_of_what_is_named(record):
    said = {"": 0, "PAY-001": 1, "PAY-0011": 0, "PAY-001: A1": 2, "PAY-001 A1, so a refund is never paid TWICE": 3}
    for text, num in said.items():
        assert reward("caws_structure", record, text).value == pytest.approx(num / 3), text
    calls = [{"name": "note", "arguments": {"lines": ["for PAY-001", {"text": "A1"}]}}]
    found = REWARDS["caws_structure"](record, 1, "", ParsedCalls(calls, [], [], "", calls))
    assert found.parts == {"spec": 1, "acceptance": 1, "invariants": 0}


@pytest.mark.parametrize("name", ["caws_compliance", "caws_structure"])
def test_records_without_caws_and_with_something_else_in_it(name):
    assert reward(name, Record("r", MESSAGES)).value == 1
    with pytest.raises(CawsError, match=r"record r: caws"):
        reward(name, Record("r", MESSAGES, caws={"spec": REFUNDS}))
