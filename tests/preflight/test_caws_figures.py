"""Verify tells the CAWS figures of a set, and evaluate scores answers by the record's spec."""

from __future__ import annotations

import pytest

from helpers.caws_cases import DAY, write_project
from helpers.scripted_model import tool
from kd.evaluation.answerers.answer import Answer
from kd.evaluation.cases import build_cases
from kd.evaluation.evaluate import evaluate_cases, merge
from kd.records.caws.context import extract_caws_context, format_caws_context_for_prompt
from kd.records.record import Record
from kd.rewards.caws_figures import CawsFigures
from kd.toolcalls.parsed import ParsedCalls

WRITE = tool("write_file", path={"type": "string"}, content={"type": "string"})


def write(path):
    return {"name": "write_file", "arguments": {"path": path, "content": "a\nb"}}


@pytest.fixture(scope="module")
def caws(tmp_path_factory):
    return extract_caws_context(write_project(tmp_path_factory.mktemp("caws")), "PAY-001", date=DAY)


def record(caws, path, system="-"):
    calls = [{"type": "function", "function": write(path)}]
    said = [("system", system), ("user", "go"), ("assistant", "PAY-001, A1")]
    messages = [{"role": role, "content": text} for role, text in said]
    messages[-1]["tool_calls"] = calls
    return Record(path, messages, [WRITE], caws=caws)


def test_verify_counts_verdicts_tokens_and_contexts_in_prompts(caws):
    figures = CawsFigures(lambda text: len(text.split()))
    figures.add(Record("none", [{"role": "user", "content": "x"}]))
    assert figures.describe() == [] and figures.summarise() == {}
    figures.add(record(caws, "src/refunds/a.py", format_caws_context_for_prompt(caws, "compact")))
    figures.add(record(caws, "src/b.py"))
    figures.add(Record("odd", [{"role": "user", "content": "x"}], caws={"mine": 1}))
    found = figures.summarise()
    assert {name: found[name] for name in ("records", "other", "in_prompt", "pass", "waived", "blocked")} == {
        "records": 2,
        "other": 1,
        "in_prompt": 1,
        "pass": 1,
        "waived": 0,
        "blocked": 1,
    }
    assert found["tokens"]["compact without its scope"] == 6 < found["tokens"]["compact"] < found["tokens"]["full"]
    assert found["scores"] == {"caws_compliance": 0.5, "caws_structure": pytest.approx(2 / 3)}
    assert any("changes 1 pass, 0 waived, 1 blocked" in line for line in figures.describe())
    assert "the first is record odd: caws.layout: field required: make it by" in figures.describe()[1]


@pytest.mark.parametrize("name", ["A" * 40, "PAY-" + "x" * 40])
def test_an_id_without_a_short_number_has_a_compact_form(caws, name):
    """One without a dash was a traceback of verify."""
    figures = CawsFigures(len)
    figures.add(record(caws | {"id": name}, "src/refunds/a.py"))
    short = format_caws_context_for_prompt(caws | {"id": name}, "compact").split()[0]
    assert figures.summarise()["records"] == 1 and len(short) <= 24 and short.startswith(name[:16])


def test_a_day_that_is_none_is_no_context(caws):
    figures = CawsFigures()
    figures.add(record(caws | {"date": "2026-02-30"}, "src/refunds/a.py"))
    assert "caws.date: value error, a day or a time is needed" in figures.describe()[1]


class Answers:
    """Answerer that writes one file after another."""

    def __init__(self, *paths):
        self.paths = paths

    def answer(self, prompts, *, progress=None):
        made = [[write(path)] for path in self.paths]
        return [Answer("", ParsedCalls(calls, [], [(0, 0)], "", calls), 1, True) for calls in made]


def test_evaluate_scores_answers_by_the_record_s_spec(caws):
    from dataclasses import replace

    records = [record(caws, "src/refunds/a.py"), record(caws, "src/refunds/b.py")]
    cases = build_cases(records)
    without = merge(evaluate_cases(Answers("src/refunds/a.py", "x.py"), cases)).metrics
    assert "caws_compliance" not in without
    cases = [replace(case, caws=records[case.record].caws) for case in cases]
    metrics = merge(evaluate_cases(Answers("src/refunds/a.py", "x.py"), cases)).metrics
    assert (metrics["caws_compliance"], metrics["caws_structure"]) == (0.5, 0.0)
    assert metrics["exact_arguments"] == without["exact_arguments"]
