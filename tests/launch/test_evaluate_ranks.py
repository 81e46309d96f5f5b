"""The ranks of a launcher share the turns of an evaluation, and write what one process writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.jobs import Job
from kd.records.files import write_records
from kd.sources.demo import corpus as demo
from launch import evaluate as evaluate_command


@pytest.fixture
def arguments(tmp_path, teacher_folder) -> list[str]:
    write_records(tmp_path / "held_out.jsonl", demo.records("unseen_values", 9))
    given = ["--model", f"teacher={teacher_folder}", "--data", str(tmp_path / "held_out.jsonl")]
    return [*given, "--max-new-tokens", "6", "--temperature", "1", "--num-samples", "2", "--batch-size", "4"]


def test_two_ranks_write_what_one_process_writes(arguments, tmp_path, capsys):
    job = Job(["launch/evaluate.py", *arguments, "--out", str(tmp_path / "two")], 2)
    try:
        assert evaluate_command.main([*arguments, "--out", str(tmp_path / "one")]) == 0
        first, second = job.wait()
    finally:
        job.stop()
    for name in ("evaluation.json", "cases.jsonl"):
        assert read(tmp_path / "one" / name) == read(tmp_path / "two" / name)
    shown = capsys.readouterr().out
    assert "evaluated teacher on held_out:" in shown and "pass@1" in shown
    assert [line for line in shown.splitlines() if line] == [line for line in first.splitlines() if line]
    assert not second.strip()


def read(file: Path) -> list[str]:
    lines = file.read_text().splitlines()
    assert len(lines) > 5
    return lines


def test_an_error_is_told_before_any_model_is_asked(arguments, tmp_path, capsys):
    """Of a later model, or of the data: nothing is written."""
    (tmp_path / "model").mkdir()
    (tmp_path / "none.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
    )
    for wrong, said in (
        (["--model", f"late={tmp_path}/model"], "config.json: no such file|no tokenizer"),
        (["--model", "org/absent@v1"], "'org/absent': no such folder is here, .* not asked .HF_HUB_OFFLINE is set"),
        (["--data", f"{tmp_path}/none.jsonl"], "--data: .*none.jsonl: nothing to ask in its 1 records"),
    ):
        assert evaluate_command.main([*arguments, *wrong, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert re.search(said, shown), shown
        assert "Traceback" not in shown and not list((tmp_path / "out").glob("*.json*"))
