"""The end of a run: what it needs is checked before the first step, and a failure there loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.jobs import REPOSITORY, plain_environment
from kd.records.files import write_records
from kd.records.record import Record
from kd.sources.demo import corpus as demo

CONFIG = """\
run: {{name: run, output_dir: {out}, extensions: [failing_metric]}}
tokenizer: {{path: {tokenizer}}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4,
          num_key_value_heads: 2, head_dim: 8, dtype: fp32}}
data:
  demo: {{num_records: 8}}
  stages: [{{name: whole, mix: {{single: 1}}, max_length: 512}}]
  evaluation: {{mine: {out}/held_out.jsonl}}
training: {{steps: 2, micro_batch_size: 2, deepspeed: ds_configs/zero3_cpu.json}}
evaluation: {{num_records: 2, max_new_tokens: 4, baselines: false}}
"""
METRIC = """\
import os
from kd.evaluation.metrics import METRICS, Metric

def fail(cases):
    return 1 / (os.environ.get("METRIC") != "fail")

METRICS.register("failing", Metric("failing", fail))
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory, tokenizer_folder) -> Path:
    out = tmp_path_factory.mktemp("end")
    (out / "run.yaml").write_text(CONFIG.format(out=out, tokenizer=tokenizer_folder))
    (out / "failing_metric.py").write_text(METRIC)
    write_records(out / "held_out.jsonl", demo.records("unseen_values", 2))
    return out


def train(out: Path, metric: str, *overrides: str) -> subprocess.Popen:
    words = [word for override in overrides for word in ("--set", override)]
    environment = plain_environment(METRIC=metric)
    environment["PYTHONPATH"] += f":{out}"
    command = [sys.executable, "launch/train.py", "--config", str(out / "run.yaml"), *words]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait(command: subprocess.Popen) -> tuple[int, str]:
    """Return exit code and output of a command that must end without a traceback."""
    output = command.communicate(timeout=240)[0]
    assert "Traceback" not in output, output[-5000:]
    return command.returncode, output


@pytest.fixture(scope="module")
def started(out) -> dict[str, tuple[int, str]]:
    """Two runs side by side: one whose evaluation fails, and one whose held-out record cannot be used."""
    tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "dict"}}}
    call = {"id": "a", "type": "function", "function": {"name": "go", "arguments": {}}}
    messages = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    write_records(out / "bad.jsonl", [Record("broken", messages, [tool])])
    commands = {
        "fails": train(out, "fail"),
        "refused": train(out, "", f"data.evaluation.mine={out}/bad.jsonl", "run.name=other"),
    }
    return {name: wait(command) for name, command in commands.items()}


def test_an_evaluation_that_fails_leaves_the_student_and_says_what_to_run(out, started):
    run = out / "run"
    code, output = started["fails"]
    assert code == 3, output[-3000:]
    command = f"spanwise evaluate --model student={run}/student --data mine={out}/held_out.jsonl --out {run}"
    assert f"exported to {run}/student, but its evaluation or report failed: " in output
    assert "ZeroDivisionError" in output and command in output
    assert (run / "student" / "model.safetensors").exists() and (run / "metrics.jsonl").stat().st_size
    assert len((run / "cases.jsonl").read_text().splitlines()) >= 2 and not (run / "run.json").exists()
    shutil.copytree(run / "student", out / "before")

    code, output = wait(train(out, ""))
    assert code == 0, output[-3000:]
    assert json.loads((run / "evaluation.json").read_text())["student"]["mine"]["failing"] == 1.0
    assert (run / "report.html").exists() and json.loads((run / "run.json").read_text())["steps"] == 2
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (run / "student" / name).read_bytes() == (out / "before" / name).read_bytes()


def test_what_the_end_needs_is_checked_before_the_first_step(out, started):
    code, output = started["refused"]
    assert code == 1
    assert f": data.evaluation.mine: {out}/bad.jsonl:1: tools: tool 'go': " in output and "not a JSON Schema" in output
    assert not (out / "other" / "checkpoints").exists() and not (out / "other" / "student").exists()
