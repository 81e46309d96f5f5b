"""launch/train.py as a user runs it: on two ranks, alone, dry, and with what cannot work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.jobs import REPOSITORY, free_port, plain_environment
from kd.config.load import load_config
from kd.evaluation.cases import build_cases
from kd.evaluation.held_out import read_held_out
from kd.evaluation.metrics import METRICS
from kd.records.files import write_records
from kd.sources.demo import corpus as demo

NEW_TOKENS = 12
CONFIG = """\
run: {{name: two, output_dir: {out}}}
teacher: {{path: {teacher}, dtype: fp32}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4,
          num_key_value_heads: 2, head_dim: 8, dtype: fp32}}
data:
  demo: {{num_records: 200}}
  stages:
    - {{name: copy, mix: {{echo: 1}}, max_length: 512, until: {{steps: 2}}}}
    - {{name: whole, mix: {{single: 1, multi: 0.5, none: 0.5}}, max_length: 1024}}
  evaluation: {{unseen_values: demo, unseen_tools: demo}}
loss: {{temperature: {{schedule: linear, start: 3.0, end: 1.0}}}}
optimizer: {{lr: 1e-2, warmup_steps: 2}}
training: {{steps: 6, micro_batch_size: 2, gradient_accumulation: 2, log_every: 2, deepspeed: ds_configs/zero3_cpu.json}}
evaluation: {{num_records: 8, batch_size: 8, max_new_tokens: {new_tokens}}}
"""  # noqa: E501


class Command:
    """A command started in the background; `wait` gives its exit code and output, or fails where it hangs."""

    def __init__(self, *command: str, cwd: Path = REPOSITORY):
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=plain_environment(
                PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                **({} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}),  # as the Makefile does
            ),
        )

    def wait(self, timeout: float = 240) -> tuple[int, str]:
        try:
            output = self._process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            raise AssertionError(f"hangs; output:\n{self._process.communicate()[0]}") from None
        return self._process.returncode, output


def train(*arguments: str) -> Command:
    return Command(sys.executable, "launch/train.py", *arguments)


def on_two_ranks(*arguments: str) -> Command:
    port = str(free_port())
    return Command(
        "deepspeed", "--quiet", "--num_accelerators", "2", "--master_port", port, "launch/train.py", *arguments
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory, teacher_folder) -> Path:
    """The folder of all runs, with their configurations and a file of records of which the last cannot be rendered."""
    out = tmp_path_factory.mktemp("train")
    config = CONFIG.format(out=out, teacher=teacher_folder, new_tokens=NEW_TOKENS)
    (out / "two.yaml").write_text(config)
    sizes = config[config.index("architecture") : config.index("dtype: fp32}\ndata")]
    (out / "alone.yaml").write_text(
        config.replace(sizes, "init: teacher_layers, layers: [1], num_key_value_heads: 2, ")
    )
    shutil.copytree(teacher_folder, out / "teacher")  # its weights are taken away between capture and training
    bare = config.replace(f"path: {teacher_folder}", f"path: {out}/teacher").replace(
        "{schedule: linear, start: 3.0, end: 1.0}", "{start: 1.0}"
    )
    (out / "bare.yaml").write_text(
        bare.replace("dtype: fp32}\nstudent", f"dtype: fp32, cache: {{path: {out}/cache}}}}\nstudent")
    )
    (out / "typo.yaml").write_text(config.replace("hidden_size", "hiden_size").replace("steps: 6", "steps: many"))
    broken = demo.record("single", 1)
    broken.messages[-1]["content"] += "<|end|>"
    write_records(out / "broken.jsonl", [demo.record("chat", 1), broken])
    stages = config[config.index("  stages:") : config.index("  evaluation:")]
    config = config.replace(stages, f"  stages: [{{name: a, train: [{out}/broken.jsonl], max_length: 512}}]\n").replace(
        "accumulation: 2", "accumulation: 1"
    )
    (out / "broken.yaml").write_text(config.replace("micro_batch_size: 2", "micro_batch_size: 1"))
    return out


@pytest.fixture(scope="module")
def results(out) -> dict[str, tuple[int, str]]:
    """name -> (exit code, output) of every command the tests look at; those of a group run side by side."""
    big = ("--config", "configs/student_9b_gqa.yaml")
    short = [
        word for key in ("run.name=alone", "training.steps=3", "evaluation.baselines=false") for word in ("--set", key)
    ]
    bare = [
        "--config",
        str(out / "bare.yaml"),
        "--set",
        "data.demo.num_records=8",
        "--set",
        "training.steps=3",
        "--set",
        "evaluation.num_records=2",
        "--set",
        "run.name=bare",
    ]
    groups = [
        lambda: {
            "two": on_two_ranks("--config", str(out / "two.yaml")),
            "typo": train("--config", str(out / "typo.yaml")),
        },
        lambda: {
            "capture": Command(sys.executable, "launch/capture.py", *bare),
            "alone": train("--config", str(out / "alone.yaml"), *short),
            "dry": train(*big, "--dry-run"),
        },
        lambda: {
            "broken": on_two_ranks("--config", str(out / "broken.yaml"), "--set", "run.name=broken"),
            "big": train(*big),
        },
    ]
    groups.append(lambda: {"bare": (out / "teacher" / "model.safetensors").unlink() or train(*bare)})
    found = {}
    for start in groups:
        found |= {name: command.wait() for name, command in start().items()}
    return found


@pytest.fixture(scope="module")
def run_dir(out, results) -> Path:
    code, output = results["two"]
    assert code == 0, output[-5000:]
    return out / "two"


LINES = (
    r"kill -USR1 \d+ saves a checkpoint while it trains",
    r"stage (copy|whole): demo corpus, \{.*\}",
    r"step +\d+  (copy|whole)  loss .*  T \d.*  lr .*  grad .*  \d+ tok/s  \d+\.\d GiB",
    r"trained 6 steps, [\d,]+ tokens in \d+ s",
    r"student exported to /.*/student",
    r"evaluated (teacher|student|untrained) on unseen_(values|tools): \d+ turns of 8 records",
    r"model +split +tool_name_accuracy .* records",
    r"(teacher|student|untrained) +unseen_(values|tools) +[-\d].* 8",
    r" +(~? *[\d.]+ to [\d.]+ *)+",
    r"below each model: intervals of 95 % over records; .*",
    r"student  /.*/student",
    r"report   /.*/report.html",
)


def test_a_log_on_two_ranks_holds_what_a_person_wants(run_dir, results):
    """No library's warning of any rank or start, no progress bar of a file, no launcher's line."""
    for line in results["two"][1].splitlines():
        assert any(re.fullmatch(shape, line) for shape in LINES), repr(line)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_two_ranks_write_everything_a_run_promises(run_dir, results):
    assert {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "evaluation.json",
        "cases.jsonl",
        "report.html",
        "student",
    } <= {p.name for p in run_dir.iterdir()}
    assert list((run_dir / "tensorboard").glob("events*"))
    assert "<html" in (run_dir / "report.html").read_text().lower()
    output = results["two"][1]
    assert "stage copy" in output and "stage whole" in output and "step      6" in output and "unseen_tools" in output


def test_metrics_have_every_term_of_every_window(run_dir):
    rows = lines_of(run_dir / "metrics.jsonl")
    assert [(row["step"], row["stage"]) for row in rows] == [(2, "copy"), (4, "whole"), (6, "whole")]
    assert [row["temperature"] for row in rows] == pytest.approx([2.6, 1.8, 1.0])
    for row in rows:
        terms = [row[name] for name in ("kd", "hard", "truth", "tool", "args", "integration")]
        assert row["loss"] == pytest.approx(sum(terms)) and row["loss"] > 0
        assert (
            row["grad_norm"] > 0
            and row["lr"] > 0
            and row["tokens_per_second"] > 0
            and row["memory_gib"] > 0
            and row["skipped_steps"] == 0
        )
        assert 0 <= row["truth_accuracy"] <= 1 and 0 <= row["teacher_agreement"] <= 1 and row["teacher_entropy"] > 0
    assert rows[0]["tool"] == 0 and rows[1]["tool"] > 0  # copying practice calls no tool
    assert rows[-1]["truth"] < rows[1]["truth"]


def test_the_saved_configuration_is_the_runs(run_dir, out):
    saved, asked = load_config(run_dir / "config.yaml"), load_config(out / "two.yaml")
    assert saved == asked


def test_the_evaluation_has_its_shape(run_dir):
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert set(evaluation) == {"teacher", "student", "untrained"}
    for splits in evaluation.values():
        assert set(splits) == {"unseen_values", "unseen_tools"}
        for metrics in splits.values():
            assert metrics["num_records"] == 8 and set(METRICS.names()) <= set(metrics)
            assert all(metrics[name] is None or 0 <= metrics[name] <= 1 for name in METRICS.names())
    assert evaluation["untrained"]["unseen_values"]["exact_arguments"] == 0


def test_the_student_loads_anywhere_and_writes_what_the_evaluation_recorded(run_dir, out):
    """One prompt at a time, unpadded, by transformers' own generate."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(run_dir / "student"),
        AutoTokenizer.from_pretrained(run_dir / "student"),
    )
    prompts = {}
    config = load_config(out / "two.yaml")
    for records in read_held_out(config.data, config.evaluation.num_records).values():
        prompts |= {(case.record_id, case.turn): case.prompt for case in build_cases(records, tokenizer)}
    cases = lines_of(run_dir / "cases.jsonl")
    assert {(case["record_id"], case["turn"]) for case in cases} == prompts.keys()
    for case in cases[::3]:
        ids = tokenizer(prompts[case["record_id"], case["turn"]], add_special_tokens=False, return_tensors="pt")
        new = model.generate(**ids, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=tokenizer.eos_token_id)[
            0, ids["input_ids"].shape[1] :
        ]
        said = tokenizer.decode([t for t in new.tolist() if t != tokenizer.eos_token_id])
        assert said == case["models"]["student"]["output"]


def test_one_process_without_a_launcher_trains_the_teachers_layers(out, results, teacher_folder):
    code, output = results["alone"]
    assert code == 0, output[-5000:]
    assert set(json.loads((out / "alone" / "evaluation.json").read_text())) == {"student"}
    student = AutoModelForCausalLM.from_pretrained(out / "alone" / "student")
    assert student.config.num_hidden_layers == 1 and student.config.num_key_value_heads == 2
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
    one, other = student.model.embed_tokens.weight.float(), teacher.model.embed_tokens.weight.float()
    assert 0 < (one - other).abs().max() < 0.05  # the teacher's embeddings, trained for two steps


def test_a_cache_without_the_teachers_weights_is_trained_from_to_the_end_and_the_teacher_left_out_of_the_evaluation(
    out, results
):
    assert results["capture"][0] == 0, results["capture"][1][-5000:]
    code, output = results["bare"]
    assert code == 0, output[-5000:]
    line = f"the teacher is not evaluated beside the student: its weights ({out}/teacher) are not on this machine"
    assert output.index(line) < output.index("stage copy") and "evaluation.baselines: false" in output
    assert set(json.loads((out / "bare" / "evaluation.json").read_text())) == {"student", "untrained"}
    assert line[1:] in " ".join(json.loads((out / "bare" / "run.json").read_text())["notes"])
    assert line[1:] in (out / "bare" / "report.html").read_text()


def test_a_dry_run_tells_parameters_and_plan_and_loads_nothing(results):
    code, output = results["dry"]
    fits = torch.cuda.is_available() and "PROBLEM" not in output
    assert code == (0 if fits else 1) and "9.10 B" in output and "Traceback" not in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine that cannot hold 9 B parameters")
def test_a_run_that_does_not_fit_stops_before_loading_with_the_reason(results):
    code, output = results["big"]
    assert code == 1 and "error: student_9b_gqa does not fit this machine" in output and "Traceback" not in output


def test_errors_of_the_configuration_come_together_without_a_traceback(results):
    code, output = results["typo"]
    assert code == 1 and "Traceback" not in output
    assert "hiden_size" in output and "hidden_size" in output and "training.steps" in output


def test_a_record_that_cannot_be_rendered_stops_both_ranks_and_is_named(out, results):
    """One rank meets it; the other must not wait for ever."""
    code, output = results["broken"]
    assert code != 0
    assert (
        re.search(r"error: \S+:\d+: record train-single-0-1: messages\[", output)
        and "holds '<|end|>', a special token of this tokenizer" in output
    )


def test_a_missing_file_is_named_before_any_model_is_loaded(out, capsys):
    from launch.train import main

    assert main(["--config", str(out / "nowhere.yaml")]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err
