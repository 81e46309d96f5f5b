"""The last files of a run: a kill between any two of them leaves a run that the same command ends."""

from __future__ import annotations

import json
import shutil

import pytest

import kd.run
import kd.run_end
from kd.config.load import load_config
from kd.run_end import Outcome, finish
from kd.run_folder import RunFolder
from kd.sources.stages import Sources
from kd.training.tally import Tally
from kd.training.trainer import TrainingResult


@pytest.fixture
def config(tmp_path, tokenizer_folder, teacher_folder):
    (tmp_path / "run" / "student").mkdir(parents=True)
    shutil.copy(teacher_folder / "config.json", tmp_path / "run" / "student")
    (tmp_path / "run.yaml").write_text(
        f"run: {{name: run, output_dir: {tmp_path}}}\n"
        f"tokenizer: {{path: {tokenizer_folder}}}\n"
        "student: {architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, "
        "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8}\n"
        "data: {demo: {num_records: 8}, stages: [{name: whole, mix: {single: 1}, max_length: 512}]}\n"
        "training: {steps: 2}\n"
    )
    return load_config(tmp_path / "run.yaml")


def test_the_file_that_ends_a_run_is_written_after_its_report(config, tmp_path, monkeypatch):
    """A run that was killed between the two said that it was finished, and had no report."""
    run = tmp_path / "run"
    monkeypatch.setattr(kd.run_end.dist, "get_world_size", lambda: 1)
    outcome = Outcome(TrainingResult(2, 1.0, 1.0, 9, None, Tally()), 2.0, Sources((), 0, None), None, [])

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kd.run_end, "write_report", interrupt)
        finish(config, run, outcome, None, print)
    assert not (run / "run.json").exists()
    finish(config, run, outcome, None, print)
    assert json.loads((run / "run.json").read_text())["steps"] == 2
    assert "0 min 02 s" in (run / "report.html").read_text()  # of the facts, which the report has without the file


@pytest.mark.parametrize("gone", ["report.html", "student"])
def test_a_finished_run_whose_end_is_gone_is_ended_again(config, tmp_path, gone):
    run = tmp_path / "run"
    (run / "run.json").write_text('{"training_seconds": 1}')
    (run / "report.html").write_text("")
    assert kd.run._how_ended(RunFolder(run), config.training, 2) == "training.steps"
    (run / gone).rename(tmp_path / "elsewhere")
    assert kd.run._how_ended(RunFolder(run), config.training, 2) is None
