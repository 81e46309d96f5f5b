"""What a run's YAML may hold, and that whatever is wrong is said with its line, its key and the remedy."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD, changed, problems
from kd.config.load import load_config


def test_good_file(write):
    config = load_config(write(GOOD))
    assert config.optimizer.lr == 3e-4 and isinstance(config.optimizer.lr, float)  # PyYAML alone reads text here
    assert [stage.max_length for stage in config.data.stages] == [128, 256]
    assert (config.loss.weights.kd, config.loss.weights.hard, config.loss.weights.truth) == (0.5, 0.3, 0.2)
    assert config.optimizer.final_lr_fraction == 0.1


def test_nothing_changes_after_loading(write):
    config = load_config(write(GOOD))
    with pytest.raises(ValueError):
        config.training.steps = 5


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # unknown keys: same section, another section, nothing near
        ("lr: 3e-4", "lrr: 3e-4", ["24: optimizer.lrr: unknown key; did you mean optimizer.lr?"]),
        (
            "loss:",
            "micro_batch_sise: 2\nloss:",
            ["21: micro_batch_sise: unknown key; did you mean training.micro_batch_size?"],
        ),
        (
            "  steps: 100",
            "  steps: 100\n  zzz: 1",
            ["27: training.zzz: unknown key; the keys here are steps, micro_batch_size,"],
        ),
        (
            "max_length: 256",
            "max_length: 256\n      max_len: 3",
            ["21: data.stages.1.max_len: unknown key; did you mean data.stages.1.max_length?"],
        ),
        # duplicates
        ("  lr: 3e-4", "  lr: 3e-4\n  lr: 1", ["25: optimizer.lr: given twice (first on line 24)"]),
        ("training:", "loss: {}\ntraining:", ["25: loss: given twice (first on line 21)"]),
        # wrong types, with YAML's traps
        ("  steps: 100", "  steps: 1:30", ["26: training.steps: expected a whole number, got the text '1:30'"]),
        ("  steps: 100", "  steps: 1e2", ["26: training.steps: expected a whole number, got 100.0"]),
        ("  steps: 100", "  steps: true", ["26: training.steps: expected a whole number, got true"]),
        ("  steps: 100", '  steps: "100"', ["26: training.steps: expected a whole number, got the text '100'"]),
        ("lr: 3e-4", "lr: high", ["24: optimizer.lr: expected a number, got the text 'high'"]),
        ("lr: 3e-4", "lr: false", ["24: optimizer.lr: expected a number, got false"]),
        ("name: test", "name: 2024", ["2: run.name: expected text, got 2024: put it in quotes"]),
        (
            "num_key_value_heads: 2",
            "gradient_checkpointing: no",
            ["11: student.gradient_checkpointing: expected true or false, got the text 'no'"],
        ),
        ("train: [a.jsonl]", "train: a.jsonl", ["15: data.stages.0.train: expected a list, got the text 'a.jsonl'"]),
        (
            "train: [a.jsonl]",
            "train: [a.jsonl, 5]",
            ["15: data.stages.0.train.1: expected a section (key: value lines), got 5"],
        ),
        (
            "train: [a.jsonl]",
            "train: [{files: a.jsonl, weight: 0}]",
            ["15: data.stages.0.train.0.weight: must be above 0, got 0"],
        ),
        (
            "train: [a.jsonl]",
            "train: [{file: a.jsonl}]",
            ["15: data.stages.0.train.0.files: required", "15: data.stages.0.train.0.file: unknown key; did you mean"],
        ),
        (
            "train: [a.jsonl]",
            "train: [{files: a.jsonl, format: bfc}]",
            [
                "15: data.stages.0.train.0.format: must be "
                "one of 'chat', 'chatml', 'sharegpt', 'xlam', "
                "'bfcl' or 'flat', got the text 'bfc'"
            ],
        ),
        ("loss:\n  w_tool: 0.2", "loss:", ["21: loss: expected a section (key: value lines), got nothing"]),
        (
            "architecture: qwen3",
            "architecture: qwen",
            ["6: student.architecture: must be one of 'llama' or 'qwen3', got the text 'qwen'; did you mean 'qwen3'?"],
        ),
        (
            "lr: 3e-4",
            "lr: !!python/object:os.system {}",
            ["24: optimizer.lr: tag !!python/object:os.system is not understood"],
        ),
        ("lr: 3e-4", "lr: 1\n  betas: [0.9]", ["25: optimizer.betas.1: required"]),
        ("lr: 3e-4", "lr: 1\n  betas: [0.9, 0.9, 0.9]", ["25: optimizer.betas: expected 2 values, got 3"]),
        # out of range, with the remedy
        (
            "lr: 3e-4",
            "lr: 0",
            ["24: optimizer.lr: must be above 0, got 0. Peak learning rate, above 0; usual 1e-5 to 1e-3; at most"],
        ),
        ("lr: 3e-4", "lr: .nan", ["24: optimizer.lr: expected a finite number, got nan"]),
        ("lr: 3e-4", "lr: .inf", ["24: optimizer.lr: expected a finite number, got inf"]),
        ("w_tool: 0.2", "w_tool: -1", ["22: loss.w_tool: must be at least 0, got -1"]),
        ("w_tool: 0.2", "temperature: {start: 0}", ["22: loss.temperature.start: must be above 0, got 0"]),
        ("w_tool: 0.2", "temperature: {start: 101}", ["22: loss.temperature.start: must be at most 100, got 101"]),
        ("w_tool: 0.2", "divergence: jsd\n  beta: 1.5", ["23: loss.beta: must be at most 1, got 1.5"]),
        ("name: test", "name: ../x", ["2: run.name: the text '../x' is not allowed"]),
        ("name: second", 'name: ""', ["18: data.stages.1.name: must not be empty"]),
        # missing
        ("  steps: 100\n", "", ["25: training.steps: required, for example steps: 2000"]),
        ("      max_length: 256\n", "", ["18: data.stages.1.max_length: required, for example max_length: 2048"]),
    ],
)
def test_faults_of_one_key(write, old, new, expected):
    found = problems(write(changed(old, new)))
    assert len(found) == len(expected), found
    for line, start in zip(found, expected):
        assert line.startswith(start), line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "num_key_value_heads: 2",
            "num_key_value_heads: 3",
            "11: student.num_key_value_heads: 3 does not divide the 4 attention heads: use one of 1, 2, 4",
        ),
        ("hidden_size: 64", "hidden_size: 66", "7: student.hidden_size: 66 is not a multiple of the 4 attention heads"),
        ("hidden_size: 64", "hidden_size: 60", "7: student.hidden_size: heads of width 15"),
        ("hidden_size: 64", "head_dim: 16", "5: student.hidden_size: required with init: scratch"),
        (
            "num_key_value_heads: 2",
            "attention_implementation: flash_attention_2\n  dtype: fp32",
            "11: student.attention_implementation: flash_attention_2 has no fp32",
        ),
        ("num_key_value_heads: 2", "path: x", "11: student.path: only with init: checkpoint"),
        ("num_key_value_heads: 2", "layers: [0]", "11: student.layers: only with init: teacher_layers"),
        (
            "num_key_value_heads: 2",
            "max_position_embeddings: 128",
            "20: data.stages.1.max_length: 256 tokens are more than student.max_position_embeddings (128)",
        ),
        ("w_tool: 0.2", "divergence: jsd", "21: loss.beta: required with divergence: jsd"),
        ("w_tool: 0.2", "beta: 0.5", "22: loss.beta: only with divergence: jsd"),
        ("w_tool: 0.2", "temperature: {schedule: linear}", "22: loss.temperature.end: required with schedule: linear"),
        ("w_tool: 0.2", "temperature: {end: 1.0}", "22: loss.temperature.end: a constant temperature has no end"),
        (
            "w_tool: 0.2",
            "weights: {kd: 1}\n  teacher_share: {}",
            "23: loss.teacher_share: loss.weights sets the same weights",
        ),
        (
            "w_tool: 0.2",
            "weights: {kd: 1}\n  entropy_weighting: {}",
            "23: loss.entropy_weighting: loss.weights sets the same weights",
        ),
        (
            "w_tool: 0.2",
            "entropy_weighting: {h_min: 8, h_max: 8}",
            "22: loss.entropy_weighting.h_min: h_min (8) must be below h_max (8)",
        ),
        (
            "w_tool: 0.2",
            "entropy_weighting: {kd: [0, 1], hard: [0, 1], truth: [0, 1]}",
            "22: loss.entropy_weighting: the first values of kd, hard and truth are all 0",
        ),
        (
            "w_tool: 0.2",
            "w_tool: 0\n  w_args: 0\n  w_integr: 0\n  weights: {}",
            "25: loss.weights: every weight of the loss is 0",
        ),
        ("lr: 3e-4", "warmup_steps: 100", "24: optimizer.warmup_steps: 100 is not below training.steps (100)"),
        ("lr: 3e-4", "decay_fraction: 0.1", "24: optimizer.decay_fraction: only with schedule: wsd"),
        (
            "lr: 3e-4",
            "schedule: constant\n  final_lr_fraction: 0",
            "25: optimizer.final_lr_fraction: a constant learning rate has no end",
        ),
        (
            "lr: 3e-4",
            "schedule: wsd\n  decay_fraction: 0.5\n  warmup_steps: 60",
            "25: optimizer.decay_fraction: warm-up (60 steps) and decay (0.5 of 100 steps) overlap",
        ),
        (
            "until: {steps: 10}",
            "until: {steps: 100}",
            "17: data.stages.0.until: stages up to here take 100 steps and training.steps is 100",
        ),
        ("until: {steps: 10}", "until: {loss_below: 1.0}", "17: data.stages.0.until.max_steps: goes with loss_below"),
        ("until: {steps: 10}", "until: {}", "17: data.stages.0.until: give one of steps and loss_below"),
        ("      until: {steps: 10}\n", "", "14: data.stages.0.until: required in every stage but the last"),
        (
            "max_length: 256",
            "max_length: 256\n      until: {steps: 3}",
            "21: data.stages.1.until: the last stage lasts to training.steps",
        ),
        ("train: [b.jsonl]", "mix: {echo: 1}", "19: data.stages.1.mix: needs the demo corpus"),
        ("      train: [b.jsonl]\n", "", "18: data.stages.1: give one of train (files) and mix"),
        ("name: second", "name: first", "18: data.stages.1.name: another stage is called 'first' already"),
        ("data:", "data:\n  demo: {}", "13: data.demo: nothing uses the demo corpus"),
        (
            "data:",
            "data:\n  evaluation: {unseen_values: demo}",
            "13: data.evaluation.unseen_values: needs the demo corpus",
        ),
        (
            "path: some/teacher",
            "path: some/teacher\n  placement: replicated\n  deepspeed: ds_configs/zero3.json",
            "6: teacher.deepspeed: a replicated teacher",
        ),
        (
            "deepspeed: ds_configs/zero3_cpu.json",
            "deepspeed: nowhere.json",
            "27: training.deepspeed: no file 'nowhere.json'",
        ),
        (
            "architecture: qwen3",
            "architecture: qwen3\n  init: checkpoint",
            "5: student.path: required with init: checkpoint",
        ),
    ],
)
def test_contradictions(write, old, new, expected):
    assert any(line.startswith(expected) for line in problems(write(changed(old, new))))


def test_without_a_teacher(write):
    text = changed("teacher:\n  path: some/teacher\n", "")
    assert problems(write(text)) == [
        "1: tokenizer.path: required without a teacher: the folder or hub id of the tokenizer"
    ]
    config = load_config(write("tokenizer: {path: tok}\n" + text))
    assert (config.loss.weights.kd, config.loss.weights.hard, config.loss.weights.truth) == (0, 0, 1)
    found = problems(write("tokenizer: {path: tok}\n" + text.replace("w_tool: 0.2", "weights: {kd: 1, truth: 1}")))
    assert len(found) == 1 and found[0].startswith(
        "21: loss.weights.kd: this term learns from a teacher and there is none"
    )
    found = problems(write("tokenizer: {path: tok}\n" + text.replace("w_tool: 0.2", "teacher_share: {}")))
    assert found == ["21: loss.teacher_share: needs a teacher: remove it, or add `teacher: {path: ...}`"]
    found = problems(write("tokenizer: {path: tok}\n" + text.replace("architecture: qwen3", "init: teacher_layers")))
    assert [line.split(": teacher_layers")[0] for line in found] == ["5: student.init"]


def test_everything_wrong_at_once(write):
    text = changed("lr: 3e-4", "lrr: 1\n  betas: 3\n  clip: 0").replace(
        "num_key_value_heads: 2", "num_key_value_heads: 3"
    )
    text = text.replace("w_tool: 0.2", "w_tool: 0.2\n  w_tool: 0.3\n  divergence: jsd").replace(
        "steps: 100", "steps: many"
    )
    found = problems(write(text), ["training.save_evry=3"])
    assert [line.split(":")[1].strip() for line in found[:-1]] == [
        "student.num_key_value_heads",
        "loss.beta",
        "loss.w_tool",
        "optimizer.lrr",
        "optimizer.betas",
        "optimizer.clip",
        "training.steps",
    ]
    assert found[-1] == "--set training.save_evry: training.save_evry: unknown key; did you mean training.save_every?"


def test_a_fault_is_not_reported_twice_as_a_contradiction(write):
    found = problems(write(changed("  steps: 100", "  steps: 0").replace("lr: 3e-4", "warmup_steps: 5")))
    assert len(found) == 1 and found[0].startswith("26: training.steps: must be at least 1")
