"""Broken model, tokenizer and data folders on every command: one error with the file and the remedy, no traceback."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from helpers.broken_inputs import CASES, Case
from kd.models.model_files import StudentError, read_json
from kd.records.files import write_records
from kd.sources.demo import corpus as demo
from launch.shared import run_guarded

CONFIG = """\
run: {{name: r, output_dir: {out}}}
teacher: {{path: {out}/model, dtype: fp32{cache}}}
student: {{init: teacher_layers, num_hidden_layers: 1, dtype: fp32}}
data: {{stages: [{{name: a, train: [{out}/data.jsonl], max_length: 1024}}]}}
loss: {{temperature: {{start: 1.0}}}}
training: {{steps: 1, micro_batch_size: 1, deepspeed: ds_configs/zero3_cpu.json}}
"""


def arguments(out: Path) -> dict[str, list[str]]:
    """The arguments of each command, for a model and data in `out`."""
    (out / "run.yaml").write_text(CONFIG.format(out=out, cache=""))
    (out / "capture.yaml").write_text(
        CONFIG.format(out=out, cache=f", cache: {{path: {out}/cache, temperatures: [1.0]}}")
    )
    run = ["--config", str(out / "run.yaml")]
    evaluate = ["--model", f"{out}/model", "--data", f"{out}/data.jsonl", "--out", f"{out}/evaluation"]
    return {
        "train": run,
        "verify": run,
        "capture": ["--config", str(out / "capture.yaml")],
        "evaluate": [*evaluate, "--max-new-tokens", "2"],
    }


def call(command: str, argv: list[str]) -> int:
    try:
        return importlib.import_module(f"launch.{command}").main(argv)
    except SystemExit as exit:  # argparse
        return int(exit.code or 0)


@pytest.fixture
def folder(tmp_path, teacher_folder) -> Path:
    shutil.copytree(teacher_folder, tmp_path / "model")
    write_records(tmp_path / "data.jsonl", [demo.record("single", 1), demo.record("chat", 2)])
    return tmp_path


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_broken_input_is_one_error_with_file_and_remedy(folder, capsys, case: Case):
    case.damage(folder / "model", folder / "data.jsonl")
    given = arguments(folder)
    for command in case.commands:
        code = call(command, given[command])
        shown = "".join(capsys.readouterr())
        assert code in (1, 2), f"{command}: exit code {code}\n{shown}"
        assert "Traceback" not in shown and "a fault of the program" not in shown, f"{command}:\n{shown}"
        assert case.names in shown and case.remedy in shown, f"{command}:\n{shown}"
        assert not (folder / "evaluation" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--batch-size", "0"], "--batch-size: 1 or more"), (["--max-new-tokens", "-1"], "--max-new-tokens: 1 or more")],
)
def test_a_count_that_cannot_serve_is_wrong_use(folder, capsys, given, said):
    assert call("evaluate", [*arguments(folder)["evaluate"], *given]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_weights_alone_can_be_a_students_checkpoint_and_a_broken_tokenizer_beside_them_is_told(
    folder, capsys
):
    """Left out, a broken tokenizer looks like none, and the embeddings are trained for other tokens."""
    given = arguments(folder)["verify"]
    student = ["--set", "student.init=checkpoint", "--set", f"student.path={folder}/student"]
    student += ["--set", "student.num_hidden_layers=null"]
    shutil.copytree(folder / "model", folder / "student")
    (folder / "student" / "tokenizer.json").write_text("{")
    assert call("verify", [*given, *student]) == 1
    assert f"{folder}/student/tokenizer.json: no JSON" in "".join(capsys.readouterr())


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """As root every file may be read, so the refusal is the system's in word only."""
    file = tmp_path / "config.json"
    file.write_text("{}")

    def refuse(*args, **options):
        raise PermissionError(13, os.strerror(13), str(file))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StudentError, match=r"config.json: cannot be read \(Permission denied\): give this user"):
        read_json(file)


def test_an_output_of_another_encoding_loses_no_run(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_guarded(lambda: print("é") or 0) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9\n"
