"""Runs that cannot be meant for this machine: refused by arithmetic, before anything is built or loaded."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig, Qwen3Config

from kd.config.load import load_config
from kd.preflight import obstacles, plan, shortages
from kd.preflight.plan import PlanError, find_capture_problems, plan_run, refuse
from launch import plan as plan_command
from launch import train

GIB = 1 << 30
SIZES = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
TEXT = """\
run: {name: tiny}
tokenizer: {path: unused}
student:
  architecture: qwen3
  hidden_size: 8
  intermediate_size: 16
  num_hidden_layers: 1
  num_attention_heads: 2
  vocab_size: 100
data:
  stages: [{name: a, train: [x], max_length: 10}]
training:
  steps: 100
  deepspeed: ds.json
"""


@pytest.fixture
def configure(tmp_path):
    def configure(*overrides: str, settings: dict | None = None):
        small = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000}}
        (tmp_path / "ds.json").write_text(json.dumps(settings or small))
        (tmp_path / "run.yaml").write_text(TEXT)
        return load_config(tmp_path / "run.yaml", overrides)

    return configure


def test_a_smaller_micro_batch_is_found_by_halves(configure, monkeypatch):
    asked = []
    real = shortages.estimate_memory
    monkeypatch.setattr(shortages, "estimate_memory", lambda job: asked.append(job) or real(job))
    (problem,) = plan_run(configure("training.micro_batch_size=1048576"), 1, GIB, 64 * GIB).problems
    fits = int(problem.split("training.micro_batch_size: ")[1].split(",")[0].replace(",", ""))
    assert len(asked) < 60
    assert not plan_run(configure(f"training.micro_batch_size={fits}"), 1, GIB, 64 * GIB).problems
    assert plan_run(configure(f"training.micro_batch_size={fits + 1}"), 1, GIB, 64 * GIB).problems


def test_a_run_folder_that_cannot_be_is_told(configure, tmp_path):
    (tmp_path / "runs").write_text("mine")
    for folder in ("runs", "runs/below"):
        (problem,) = plan_run(configure(f"run.output_dir={tmp_path / folder}"), 1, GIB, 64 * GIB).problems
        assert f"{tmp_path / 'runs'} is no folder" in problem and "choose another" in problem
    assert not plan_run(configure(f"run.output_dir={tmp_path / 'new'}"), 1, GIB, 64 * GIB).problems


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_hidden_layers": 1_000_000}, "the teacher has 1,000,000 layers and"),
        ({"intermediate_size": 10**14}, r"the teacher has 1 layers and 1.6e\+15 parameters or more, and all memory of"),
    ],
)
def test_a_model_beyond_all_memory_is_refused_before_it_is_counted(configure, monkeypatch, tmp_path, sizes, said):
    teacher = LlamaConfig(**SIZES, vocab_size=100)
    for name, value in sizes.items():
        setattr(teacher, name, value)
    # Read from a file, it would be refused for its sizes alone (kd/models/load.py).
    monkeypatch.setattr(plan, "read_model_config", lambda *a, **k: teacher)
    real = plan.count_parameters
    monkeypatch.setattr(plan, "count_parameters", lambda config: real(config) if config.vocab_size < 100 else 1 / 0)
    monkeypatch.setattr(plan, "student_model_config", lambda *a, **k: Qwen3Config(**SIZES, vocab_size=99))
    with pytest.raises(PlanError, match=said) as caught:
        plan_run(configure(f"teacher={{path: {tmp_path / 'teacher'}}}"), 1, None, 24 * GIB)
    assert "correct config.json at teacher.path" in str(caught.value)


def test_fp16_on_a_cpu_is_a_problem_with_what_to_write(configure, monkeypatch):
    monkeypatch.setattr(obstacles, "multiplies_fp16", lambda: False)
    (problem,) = plan_run(configure("student.dtype=fp16"), 1, None, 24 * GIB).problems
    assert problem.startswith("student.dtype: fp16 needs a GPU, and there is none here: use student.dtype: auto")
    assert not plan_run(configure("student.dtype=fp16"), 1, 80 * GIB, 24 * GIB).problems


def test_a_capture_is_held_to_the_machine_by_its_teacher_alone(configure, monkeypatch, tmp_path):
    teacher = tmp_path / "teacher"
    LlamaConfig(**SIZES, vocab_size=99).save_pretrained(teacher)
    monkeypatch.setattr(obstacles, "multiplies_fp16", lambda: False)
    cached = f"teacher={{path: {teacher}, cache: {{path: {tmp_path / 'cache'}, temperatures: [2.0]}}}}"
    assert not find_capture_problems(configure(cached, "student.dtype=fp16"), 1, None, 24 * GIB)
    config = configure(cached, "teacher.dtype=fp16")
    (problem,) = find_capture_problems(config, 1, None, 24 * GIB)
    assert problem.startswith("teacher.dtype: fp16 needs a GPU, and there is none here: use teacher.dtype: auto")
    assert not find_capture_problems(config, 1, GIB, 24 * GIB)
    (problem,) = find_capture_problems(configure(cached), 1, 1 << 10, 24 * GIB)
    assert problem.startswith("each GPU needs 0.0 GiB and has 0.0 GiB to use: ")
    config = configure(cached, "training.micro_batch_size=1048576")
    (problem,) = find_capture_problems(config, 1, GIB, 64 * GIB)
    fits = int(problem.split("training.micro_batch_size: ")[1].split(",")[0].replace(",", ""))
    assert not find_capture_problems(configure(cached, f"training.micro_batch_size={fits}"), 1, GIB, 64 * GIB)
    with pytest.raises(PlanError, match="capture of x does not fit this machine:\n  each GPU needs"):
        refuse("capture of x", [problem])
    assert not find_capture_problems(configure(), 1, 1 << 16, 24 * GIB)  # no teacher


def test_more_workers_than_the_cores_can_feed_are_a_problem(configure, monkeypatch):
    monkeypatch.setattr(obstacles.os, "sched_getaffinity", lambda pid: {0, 1})
    (problem,) = plan_run(configure("data.workers=64"), 2, None, 24 * GIB).problems
    assert problem.startswith("data.workers: 64 processes for each of 2 ranks are more than 2 cores can feed: use 4")
    assert not plan_run(configure("data.workers=4"), 2, None, 24 * GIB).problems
    monkeypatch.setattr(obstacles.os, "sched_getaffinity", lambda pid: set(range(128)))
    assert not plan_run(configure("data.workers=64"), 8, None, 24 * GIB).problems


def test_offload_to_a_disk_needs_the_disk_and_libaio(configure, monkeypatch, tmp_path):
    def zero(path) -> dict:
        offload = {"device": "nvme", "nvme_path": str(path)}
        return {"zero_optimization": {"stage": 3, "offload_optimizer": offload}}

    (problem,) = plan_run(configure(settings=zero(tmp_path / "none")), 1, None, 24 * GIB).problems
    assert f"zero_optimization.offload_optimizer.nvme_path: {tmp_path}/none is no folder that can be written" in problem
    monkeypatch.setitem(obstacles.deepspeed.ops.__compatible_ops__, "async_io", False)
    (problem,) = plan_run(configure(settings=zero(tmp_path)), 1, None, 24 * GIB).problems
    assert "zero_optimization.offload_optimizer.device: nvme needs libaio" in problem
    monkeypatch.setitem(obstacles.deepspeed.ops.__compatible_ops__, "async_io", True)
    assert not plan_run(configure(settings=zero(tmp_path)), 1, None, 24 * GIB).problems


def test_the_batch_of_a_deepspeed_json_is_held_to_the_ranks(configure):
    config = configure(settings={"zero_optimization": {"stage": 3}, "train_batch_size": 8})
    assert not plan_run(config, 2, None, 24 * GIB).problems
    (problem,) = plan_run(config, 3, None, 24 * GIB).problems
    assert problem.startswith("training.deepspeed: train_batch_size is 8, and 3 ranks train 12 rows a step")


@pytest.mark.parametrize("command", [train.main, plan_command.main])
def test_a_dry_run_with_a_problem_fails_and_names_lines(configure, command, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(obstacles.os, "sched_getaffinity", lambda pid: {0, 1})
    configure()
    file = str(tmp_path / "run.yaml")
    options = ["--config", file, *(["--dry-run"] if command is train.main else [])]
    assert command(options) == 0 and "no problem found" in capsys.readouterr().out
    assert command([*options, "--set", "data.workers=64"]) == 1
    assert "  PROBLEM   --set data.workers: data.workers: 64 processes" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "abc")
    assert command(options) == 1
    assert "error: WORLD_SIZE=abc: an integer from 1 to" in capsys.readouterr().err
