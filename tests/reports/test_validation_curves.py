"""Curves of the validation splits in a run's report."""

from __future__ import annotations

import json

from kd.reports.run_page import write_report


def test_each_metric_is_a_curve_with_a_line_a_split(tmp_path):
    lines = [
        {"step": step, "split": split, "truth": 2.0 / step, "args_accuracy": step / 10}
        for step in (1, 2, 3)
        for split in ("mine", "theirs")
    ]
    lines.append({"step": 3, "split": "mine", "exact_arguments": 0.5})
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = {"metric": "truth", "step": 3, "value": 0.6667, "num_since": 0}
    (tmp_path / "run.json").write_text(json.dumps({"best": best}))
    text = write_report(tmp_path).read_text()
    section = text[text.index("Validation while it trained") :]
    assert "The best truth, 0.6667, is of step 3." in section
    assert all(
        label in section for label in ("All answer tokens", "Args accuracy", "Exact arguments", "mine", "theirs")
    )
    assert section.count("<figure>") == 3


def test_a_run_without_validation_has_no_such_part(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": "a", "loss": 1.0}) + "\n")
    assert "Validation while" not in write_report(tmp_path).read_text()
