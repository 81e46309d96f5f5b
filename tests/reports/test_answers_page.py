"""The page of the student's own answers."""

from __future__ import annotations

import json

import pytest

from kd.reports.answers_page import NUM_STEPS, write_answers
from kd.reports.run_page import write_report


def line(step, prompt=0, advantage=0.5, correction=None, **fields):
    return {
        "step": step,
        "stage": "process",
        "record": "r<1>",
        "turn": 1,
        "prompt": prompt,
        "sample": 0,
        "asked": "How warm is it?",
        "wanted": '{"name": "get_weather"}',
        "reward": 0.7,
        "parts": {"json_valid": 1.0, "tool_choice": 0.4},
        "advantage": advantage,
        "finished": True,
        "tokens": ["<tool_call>", "{", "}"],
        "bits": [1, 1, 1],
        "weights": [advantage] * 3,
        "correction": correction,
        **fields,
    }


def test_tokens_are_coloured_by_their_weight_and_corrections_marked(tmp_path):
    fix = {"kept": 1, "kind": "syntax", "text": '{"name"'}
    lines = [line(50), line(50, advantage=-0.5, correction=fix), line(50, 1, finished=False, weights=[1, 1, 0])]
    text = write_answers(tmp_path, lines).read_text()
    assert "rgba(46,160,67,0.55)" in text and "rgba(218,54,51,0.55)" in text and "rgba(56,118,219,0.20)" in text
    assert "<del>" in text and "<ins>{&quot;name&quot;</ins>" in text
    assert "corrected: syntax" in text and "cut at max_new_tokens" in text and "r&lt;1&gt;" in text
    assert "tool choice 0.4" in text.lower() and "<script" not in text


def test_a_long_run_shows_steps_from_its_first_to_its_last(tmp_path):
    text = write_answers(tmp_path, [line(step) for step in range(10, 1010, 10)]).read_text()
    assert text.count("<h2>Step") == NUM_STEPS and "Step 10," in text and "Step 1000," in text


def test_the_report_names_it_where_there_are_answers(tmp_path):
    assert write_answers(tmp_path, []) is None
    assert "rollouts.html" not in write_report(tmp_path).read_text()
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(line(50)) + "\n{torn")
    text = write_report(tmp_path).read_text()
    assert "rollouts.html" in text and "1 of 2 lines could not be read" in text
    assert (tmp_path / "rollouts.html").is_file()
    (tmp_path / "rollouts.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(ValueError, match=r"rollouts\.jsonl"):
        write_report(tmp_path)
