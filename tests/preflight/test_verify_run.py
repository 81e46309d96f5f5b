"""launch/verify.py on a run: the step it takes, and that each check of a configuration can fail."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from kd.preflight.one_step import find_first_batch
from kd.preflight.run import check_run
from kd.records.files import write_records
from kd.sources.demo import corpus as demo
from kd.sources.stages import stage_source
from launch import verify

CONFIG = """\
run: {{name: v, output_dir: {out}}}
teacher: {{path: {teacher}, dtype: fp32}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4,
          num_key_value_heads: 2, head_dim: 8, dtype: fp32}}
data: {{stages: [{{name: a, train: [{data}], max_length: 1024}}]}}
loss: {{weights: {{kd: 0.5, hard: 0.3, truth: 0.2}}}}
training: {{steps: 2, micro_batch_size: 2, deepspeed: ds_configs/zero3_cpu.json}}
"""


@pytest.fixture
def config(tmp_path, teacher_folder):
    """A function from the records and a change of the YAML to its path."""

    def write(kind="single", old="", new=""):
        write_records(tmp_path / "train.jsonl", [demo.record(kind, index, seed=5) for index in range(6)])
        text = CONFIG.format(out=tmp_path, teacher=teacher_folder, data=tmp_path / "train.jsonl")
        (tmp_path / "v.yaml").write_text(text.replace(old, new) if old else text)
        return str(tmp_path / "v.yaml")

    return write


def test_a_run_that_is_ready_has_a_gradient_for_every_term(tmp_path, config, capsys):
    assert verify.main(["--config", config()]) == 0
    report = json.loads((tmp_path / "v" / "verify.json").read_text())
    names = {check["name"] for check in report["run"]}
    assert {
        f"term {term} has a gradient" for term in ("kd", "hard", "truth", "tool", "args", "integration")
    } < names and all(check["ok"] for check in report["run"])
    assert "READY" in capsys.readouterr().out and (tmp_path / "v" / "verify.html").exists()


@pytest.mark.parametrize(
    ("kind", "old", "new", "check", "said"),
    [
        ("chat", "", "", "term tool has a gradient", "none of the first 64 steps has a row for it"),
        (
            "single",
            "max_length: 1024",
            "max_length: 8",
            "forward, loss and gradient of one step",
            "no record of stage a fits",
        ),
        (
            "single",
            "dtype: fp32}\ndata",
            "dtype: fp32, vocab_size: 100}\ndata",
            "vocabulary fits",
            "vocabulary is 100 wide",
        ),
    ],
)
def test_a_run_that_is_not_ready_says_why(tmp_path, config, kind, old, new, check, said):
    assert verify.main(["--config", config(kind, old, new)]) == 1
    report = json.loads((tmp_path / "v" / "verify.json").read_text())
    assert not report["ready"] and said in next(
        c["detail"] for c in report["run"] if c["name"] == check and c["ok"] is False
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("loss:", "los:", "los"),
        ("train.jsonl", "gone.jsonl", "no such data file"),
        ("student:", "tokenizer: {{path: configs}}\nstudent:", "no tokenizer can be loaded"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_not_ready(config, old, new, said, capsys):
    assert verify.main(["--config", config("single", old, new.replace("{{", "{").replace("}}", "}"))]) == 1
    assert said in capsys.readouterr().err


def test_another_template_or_a_model_too_large_is_reported(tmp_path, config, tokenizer, monkeypatch):
    from kd.config.load import load_config

    other = AutoTokenizer.from_pretrained(load_config(config()).teacher.path)
    other.chat_template += " "
    other.save_pretrained(tmp_path / "tokenizer")
    loaded = load_config(config(), [f"tokenizer.path={tmp_path / 'tokenizer'}"])
    monkeypatch.setattr("kd.preflight.run.psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    said: list[str] = []
    checks = {check["name"]: check for check in check_run(loaded, other, said.append)}
    assert (
        checks["chat templates agree"]["ok"] is False
        and "another chat template" in checks["chat templates agree"]["detail"]
    )
    assert (
        checks["forward, loss and gradient of one step"]["ok"] is None
        and "GiB are free" in checks["forward, loss and gradient of one step"]["detail"]
    )
    assert said == []
    monkeypatch.undo()
    monkeypatch.setattr("kd.preflight.run._QUICK", 1000)
    assert all(check["ok"] is not None for check in check_run(loaded, other, said.append))
    assert len(said) == 1 and "may take minutes" in said[0]  # before the step is taken


def test_the_first_batch_has_every_span_if_the_data_does(config, tokenizer, tmp_path):
    from kd.config.load import load_config

    path = config()
    write_records(
        tmp_path / "train.jsonl", [demo.record("chat", index) for index in range(20)] + [demo.record("single", 1)]
    )
    loaded = load_config(path)
    micro, step = find_first_batch(
        stage_source(loaded.data, 0), loaded.data.stages[0], tokenizer, loss=loaded.loss, micro_batch_size=2, seed=1337
    )
    assert any("single" in name for name in micro.record_ids) or step > 0
    assert all((micro.bits & bit).any() for bit in (2, 4, 8))
