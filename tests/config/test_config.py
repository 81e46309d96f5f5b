"""A run's YAML: what is accepted, and that whatever is wrong is said with its line, its key and the remedy."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.config_cases import GOOD, changed, problems
from kd.config import yaml as config_yaml
from kd.config.load import dump_config, load_config
from kd.config.problems import ConfigError, all_keys


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
            ["24: optimizer.lr: must be above 0, got 0. Peak learning rate, above 0; usual 1e-5 to 1e-3."],
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run:\n  name: [a\nloss: {}\n", ":3: not valid YAML"),
        ("run:\n\tname: a\n", ":2: not valid YAML"),
        ("run: &a {name: x}\nloss: *a\n", ":2: not valid YAML: an alias (*name): write the value out"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        ("run: \x01\n", ":1: not valid YAML"),
        ("- a\n", ":1: expected sections"),
        ("[" * 5000, ":0: not valid YAML: nested too deeply"),
    ],
)
def test_not_yaml(write, text, expected):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(path + expected)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xe9}")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_an_empty_file_names_what_is_required(write):
    found = problems(write(""))
    assert [line.split(":")[1].strip() for line in found] == ["run", "student", "data", "training"]


def test_overrides(write):
    path = write(GOOD)
    config = load_config(
        path,
        [
            "training.steps=50",
            "optimizer.lr=1e-3",
            "data.stages.1.max_length=64",
            "evaluation.baselines=false",
            "loss.weights={kd: 1}",
        ],
    )
    assert (config.training.steps, config.optimizer.lr, config.data.stages[1].max_length) == (50, 1e-3, 64)
    assert config.evaluation.baselines is False and config.loss.weights.kd == 1
    assert load_config(path, ["training.steps=50", "training.steps=60"]).training.steps == 60
    assert load_config(path, ["data.evaluation.held_out=x.jsonl"]).data.evaluation == {"held_out": "x.jsonl"}


def test_an_override_mends_a_wrong_value(write):
    assert load_config(write(changed("  steps: 100", "  steps: many")), ["training.steps=50"]).training.steps == 50


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps", "expected key=value"),
        ("training.steps: 3", "expected key=value"),
        ("training..steps=3", "expected key=value"),
        ("training.steps=[1", "the value is not valid YAML"),
        ("data.stages.7.name=x", "there is no place data.stages.7.name"),
        ("run.name.x=1", "there is no place run.name.x"),
        ("training.stepz=3", "training.stepz: unknown key; did you mean training.steps?"),
        ("optimizer.lr=-1", "optimizer.lr: must be above 0, got -1"),
        ("loss.beta=0.5", "loss.beta: only with divergence: jsd"),
    ],
)
def test_wrong_overrides(write, override, expected):
    found = problems(write(GOOD), [override])
    assert len(found) == 1 and found[0].startswith(f"--set {re.split('[=:]', override)[0]}: {expected}")


@pytest.mark.parametrize(
    "extra", ["", "  entropy_weighting: {kd: [1, 3], hard: [1, 1], truth: [1, 0.3]}\n", "  teacher_share: {}\n"]
)
def test_the_saved_configuration_loads_equal(write, extra):
    config = load_config(write(GOOD.replace("  w_tool: 0.2\n", "  w_tool: 0.2\n" + extra)))
    assert load_config(write(dump_config(config))) == config


def test_entropy_weights_sum_to_one_at_each_end(write):
    weighting = load_config(
        write(changed("w_tool: 0.2", "entropy_weighting: {kd: [1, 3], hard: [1, 1], truth: [2, 0]}"))
    ).loss.entropy_weighting
    assert (weighting.kd, weighting.hard, weighting.truth) == ((0.25, 0.75), (0.25, 0.25), (0.5, 0.0))


def test_the_deepspeed_file_is_found_beside_the_yaml_and_in_the_repository(write, tmp_path, monkeypatch):
    path = write(changed("ds_configs/zero3_cpu.json", "mine.json"))
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert load_config(path).training.deepspeed == str(tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    assert load_config(write(GOOD)).training.deepspeed.endswith("ds_configs/zero3_cpu.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{}",
            "mine.json: zero_optimization.stage is 0, where DeepSpeed may measure no gradient norm and take a step "
            "that is not finite: use 1, 2 or 3",
        ),
        ('{"zero_optimization": {"stage": 0}}', "mine.json: zero_optimization.stage is 0"),
        ('{"zero_optimization": {"stage": 4}}', "mine.json: zero_optimization.stage is 4"),
        ('{\n"a": 1,\n}', "mine.json:3: not valid JSON"),
        ('{"zero_optimization": true}', "mine.json: expected an object with an object zero_optimization in it"),
        ("[]", "mine.json: expected an object"),
    ],
)
def test_a_deepspeed_file_that_cannot_train_is_named(write, tmp_path, text, expected):
    (tmp_path / "mine.json").write_text(text)
    (problem,) = problems(write(changed("ds_configs/zero3_cpu.json", "mine.json")))
    assert problem.startswith(f"27: training.deepspeed: {tmp_path}/{expected}")


def test_the_teachers_deepspeed_file_may_be_of_any_stage(write, tmp_path):
    """Its engine is of ZeRO-3 whatever the JSON says."""
    (tmp_path / "teacher.json").write_text("{}")
    assert load_config(write(GOOD), ["teacher.deepspeed=teacher.json"]).teacher.deepspeed == str(
        tmp_path / "teacher.json"
    )
    (tmp_path / "teacher.json").write_text("{")
    (problem,) = problems(write(GOOD), ["teacher.deepspeed=teacher.json"])
    assert problem.startswith(f"--set teacher.deepspeed: teacher.deepspeed: {tmp_path}/teacher.json:1: not valid JSON")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(scalars, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner), max_leaves=12)
)
@example({"\x85": "a\x85\u2028 b\u2029"})
def test_what_is_dumped_parses_equal(data):
    parsed = config_yaml.parse(config_yaml.dump(data))
    assert parsed.data == data and repr(parsed.data) == repr(data) and parsed.problems == []


CACHE = "teacher:\n  path: some/teacher\n  cache: {path: c, temperatures: [2.0], "


def test_what_the_teacher_gives_is_filled_in(write):
    teacher = load_config(write(GOOD)).teacher
    assert (teacher.targets, teacher.top_k, teacher.num_draws, teacher.cache) == ("dense", None, None, None)
    teacher = load_config(write(GOOD), ["teacher.targets=topk"]).teacher
    assert (teacher.targets, teacher.top_k, teacher.num_draws) == ("topk", 64, None)
    assert load_config(write(GOOD), ["teacher.targets=sampled"]).teacher.num_draws == 50
    teacher = load_config(write(changed("teacher:\n  path: some/teacher\n", CACHE + "kind: topk}\n"))).teacher
    assert teacher.targets is None
    assert (teacher.cache.top_k, teacher.cache.precision, teacher.cache.num_draws) == (32, "16bit", None)
    config = load_config(write(changed("teacher:\n  path: some/teacher\n", CACHE + "}\n")))
    assert (config.teacher.cache.kind, config.teacher.cache.num_draws, config.teacher.cache.precision) == (
        "sampled",
        50,
        None,
    )
    assert load_config(write(dump_config(config))) == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["teacher.top_k=5"], ["teacher.top_k: only with targets: topk (here dense)"]),
        (
            ["teacher.targets=topk", "teacher.num_draws=5"],
            ["teacher.num_draws: only with targets: sampled (here topk)"],
        ),
        (
            ["teacher.targets=sampled", "loss.divergence=reverse_kl"],
            ["loss.divergence: reverse_kl cannot be estimated from draws"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0]}", "loss.divergence=jsd", "loss.beta=0.5"],
            ["loss.divergence: jsd cannot be estimated from draws"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0]}", "teacher.targets=topk", "teacher.top_k=8"],
            [
                "teacher.targets: is of a teacher that runs beside the student",
                "teacher.top_k: is of a teacher that runs",
            ],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0], top_k: 8, precision: fp32}"],
            [
                "teacher.cache.top_k: only with kind: topk (here sampled)",
                "teacher.cache.precision: only with kind: topk",
            ],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0], kind: topk, num_draws: 8}"],
            ["teacher.cache.num_draws: only with kind: sampled (here topk)"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0, 2]}"],
            ["teacher.cache.temperatures: [2, 2] names a temperature twice"],
        ),
        (
            ["teacher.cache={path: c}"],
            [
                "teacher.cache.temperatures: training is at temperature 2 in step 0, and the "
                "nearest of [1] is farther than "
                "t_tolerance (0.05): add 2 to this list"
            ],
        ),
        (
            [
                "teacher.cache={path: c, temperatures: [2.0, 1.0]}",
                "loss.temperature={schedule: linear, start: 2.0, end: 1.0}",
            ],
            ["teacher.cache.temperatures: training is at temperature 1.949 in step 5, and the nearest of [2, 1]"],
        ),
        (
            [
                "teacher.cache={path: c, temperatures: [2.0, 1.0], t_tolerance: 0.5}",
                "loss.temperature={schedule: cosine, start: 2.0, end: 1.0}",
            ],
            [],
        ),
        # no term has the temperature
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.weights={hard: 0.5, truth: 0.5}"], []),
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.weights={truth: 1}"], []),
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.teacher_share={start: 0, end: 0}"], []),
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.entropy_weighting={kd: [0, 0]}"], []),
        (
            ["teacher.cache={path: c}", "loss.teacher_share={start: 0, end: 0.1}"],
            ["teacher.cache.temperatures: training is at temperature 2 in step 0"],
        ),
        (
            ["teacher.cache={path: c}", "loss.entropy_weighting={kd: [0, 0.1]}"],
            ["teacher.cache.temperatures: training is at temperature 2 in step 0"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0], num_draws: 256}"],
            ["teacher.cache.num_draws: must be at most 255"],
        ),
    ],
)
def test_teacher_signal_and_cache(write, overrides, expected):
    if not expected:
        assert load_config(write(GOOD), overrides).teacher.cache.t_tolerance == 0.5
        return
    found = [line.partition(": ")[2] for line in problems(write(GOOD), overrides)]
    found = [
        line[line.index("teacher.") :] if "teacher." in line and not line.startswith("loss") else line for line in found
    ]
    assert len(found) == len(expected) and all(any(wanted in line for line in found) for wanted in expected), found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("no", "no"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'3'", "3"),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("1.2.3", "1.2.3"),
    ],
)
def test_plain_values(text, value):
    parsed = config_yaml.parse(text)
    assert parsed.data == value and type(parsed.data) is type(value)


ENDPOINT = """  path: some/teacher
  cache: {path: c, kind: topk}
  endpoint:
    url: http://127.0.0.1:8000/v1
    model: teacher
"""
AT_ONE = "loss.temperature.start=1.0"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@host/v1",
        "http://host/v1?key=hunter2",
        "ftp://host/hunter2",
        "http:///hunter2",
        "http://host/v1 hunter2",
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(write, url):
    path = write(changed("  path: some/teacher\n", ENDPOINT.replace("http://127.0.0.1:8000/v1", url)))
    (problem,) = problems(path, [AT_ONE])
    assert (
        problem.startswith("7: teacher.endpoint.url: a value that is not shown here is not allowed. Base address")
        and "hunter2" not in problem
    )


@pytest.mark.parametrize(
    "url", ["https://host", "https://a.b.c:8443/v1", "http://[::1]:8000/v1", "http://host/team/v1/"]
)
def test_addresses_of_endpoints(write, url):
    config = load_config(
        write(changed("  path: some/teacher\n", ENDPOINT.replace("http://127.0.0.1:8000/v1", url))), [AT_ONE]
    )
    assert config.teacher.endpoint.url == url


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  cache: {path: c, kind: topk}\n",
            "",
            "5: teacher.endpoint: is asked when a cache is captured: add `cache: {path: ..., kind: topk}`",
        ),
        (
            "kind: topk",
            "kind: sampled",
            "5: teacher.cache.kind: an endpoint tells its best tokens alone: use kind: topk (here sampled)",
        ),
        (
            "kind: topk",
            "kind: topk, temperatures: [1.0, 2.0]",
            "5: teacher.cache.temperatures: an endpoint tells probabilities at temperature 1 alone: use [1.0]",
        ),
        (
            "path: some/teacher\n",
            "path: some/teacher\n  deepspeed: ds_configs/zero3_cpu.json\n",
            "5: teacher.deepspeed: no teacher runs here",
        ),
        (
            "",
            "loss.entropy_weighting={}",
            "--set loss.entropy_weighting: loss.entropy_weighting: an endpoint tells no entropy: use loss.weights",
        ),
    ],
)
def test_what_an_endpoint_has_not(write, old, new, expected):
    overrides = [AT_ONE, *([] if old else [new])]
    path = write(changed("  path: some/teacher\n", ENDPOINT.replace(old, new) if old else ENDPOINT))
    (problem,) = problems(path, overrides)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("schedule", "remedy"),
    [
        ("start: 2.0", "set loss.temperature.start: 1.0"),
        (
            "schedule: linear, start: 1.0, end: 3.0",
            "set loss.temperature.start: 1.0, and schedule: constant without end",
        ),
    ],
)
def test_the_temperature_of_a_run_from_an_endpoint_is_1(write, schedule, remedy):
    """Another captured temperature is no advice: an endpoint tells none."""
    text = changed("  path: some/teacher\n", ENDPOINT).replace("loss:\n", f"loss:\n  temperature: {{{schedule}}}\n")
    (problem,) = problems(write(text))
    assert (
        problem.startswith("26: loss.temperature.start: training is at temperature ")
        and "an endpoint tells probabilities at temperature 1 alone" in problem
    )
    assert problem.endswith(remedy)
    load_config(write(text), ["loss.temperature={start: 1.0}"])


def test_a_key_in_place_of_the_name_of_its_variable_is_not_repeated(write):
    path = write(changed("  path: some/teacher\n", ENDPOINT + "    api_key_env: sk-Hunter2\n"))
    (problem,) = problems(path, [AT_ONE])
    assert problem.startswith(
        "9: teacher.endpoint.api_key_env: a value that is not shown here is not allowed. Name of the environment "
        "variable"
    )
    good = write(changed("  path: some/teacher\n", ENDPOINT))
    (problem,) = problems(good, [AT_ONE, "teacher.endpoint.api_key_env=sk-Hunter2"])
    assert (
        problem.startswith("--set teacher.endpoint.api_key_env: teacher.endpoint.api_key_env: a value")
        and "Hunter2" not in problem
    )


@pytest.mark.parametrize(
    "value",
    [
        "sk-Hunter2",
        "*Hunter2",
        "!Hunter2",
        "'Hunter2",
        "[Hunter2",
        "{a: Hunter2}",
        "http://me:Hunter2@host/v1",
        "a: b: Hunter2",
    ],
)
@pytest.mark.parametrize(
    "override",
    [
        "teacher.endpoint.api_key={}",
        "teacher.endpoint.api_key: {}",
        "teacher.endpoint.api_key {}",
        "teacher.endpoint.api_key_env={}",
        "teacher.endpoint={{url: http://h/v1, model: m, api_key: {}}}",
        "teacher.endpoint={{url: http://h/v1, model: m, api_key_env: {}, concurrency: 999}}",
        "teacher.endpoint={{url: {}, model: m, retries: 999}}",
        "teacher.endpoint={}",
        "teacher={}",
        "teacher={{endpoint: {}}}",
        "teacher.api_key={}",
        "endpoint.api_key={}",
        "api_key={}",
        "={}",
    ],
)
def test_nothing_that_an_override_sets_is_repeated(write, override, value):
    """A key given in a wrong place, beside another fault, or not as YAML, must not come into a log."""
    found = problems(write(changed("  path: some/teacher\n", ENDPOINT)), [AT_ONE, override.format(value)])
    assert found and not any("Hunter2" in line for line in found), found


@pytest.mark.parametrize("line", ["api_key: sk-Hunter2", "api_key_env: !Hunter2", "api_key_env: [Hunter2]"])
def test_nothing_that_may_be_a_key_is_repeated_from_the_file(write, line):
    (problem,) = problems(write(changed("  path: some/teacher\n", f"{ENDPOINT}    {line}\n")), [AT_ONE])
    assert problem.startswith("9: teacher.endpoint.api_key") and "Hunter2" not in problem


def test_every_key_is_documented_and_the_list_is_frozen():
    """Keys are a public surface: users' files name them. Add here on purpose; never rename."""
    from kd.config.problems import field_at, undotted

    keys = list(all_keys())
    assert keys == FROZEN_KEYS
    for key in keys:
        if not key.endswith("*"):
            field = field_at(undotted(key.replace("*", "0")))
            assert field is not None and field.description, key


FROZEN_KEYS = [
    "run.name",
    "run.output_dir",
    "run.seed",
    "run.extensions",
    "teacher.path",
    "teacher.revision",
    "teacher.dtype",
    "teacher.placement",
    "teacher.deepspeed",
    "teacher.targets",
    "teacher.top_k",
    "teacher.num_draws",
    "teacher.cache.path",
    "teacher.cache.kind",
    "teacher.cache.num_draws",
    "teacher.cache.top_k",
    "teacher.cache.precision",
    "teacher.cache.temperatures",
    "teacher.cache.t_tolerance",
    "teacher.endpoint.url",
    "teacher.endpoint.model",
    "teacher.endpoint.api_key_env",
    "teacher.endpoint.concurrency",
    "teacher.endpoint.timeout_seconds",
    "teacher.endpoint.retries",
    "teacher.endpoint.record_deadline_seconds",
    "teacher.endpoint.deadline_seconds",
    "teacher.endpoint.max_missing",
    "teacher.source",
    "tokenizer.path",
    "student.init",
    "student.path",
    "student.layers",
    "student.architecture",
    "student.hidden_size",
    "student.intermediate_size",
    "student.num_hidden_layers",
    "student.num_attention_heads",
    "student.num_key_value_heads",
    "student.head_dim",
    "student.tie_word_embeddings",
    "student.rope_theta",
    "student.max_position_embeddings",
    "student.rms_norm_eps",
    "student.vocab_size",
    "student.attention_implementation",
    "student.gradient_checkpointing",
    "student.dtype",
    "data.stages.*.name",
    "data.stages.*.train.*.files",
    "data.stages.*.train.*.format",
    "data.stages.*.train.*.weight",
    "data.stages.*.mix",
    "data.stages.*.max_length",
    "data.stages.*.until.steps",
    "data.stages.*.until.loss_below",
    "data.stages.*.until.max_steps",
    "data.packing",
    "data.too_long",
    "data.workers",
    "data.max_bad_fraction",
    "data.quarantine",
    "data.demo.seed",
    "data.demo.num_records",
    "data.evaluation",
    "loss.divergence",
    "loss.beta",
    "loss.temperature.schedule",
    "loss.temperature.start",
    "loss.temperature.end",
    "loss.weights.kd",
    "loss.weights.hard",
    "loss.weights.truth",
    "loss.teacher_share.schedule",
    "loss.teacher_share.start",
    "loss.teacher_share.end",
    "loss.entropy_weighting.h_min",
    "loss.entropy_weighting.h_max",
    "loss.entropy_weighting.kd",
    "loss.entropy_weighting.hard",
    "loss.entropy_weighting.truth",
    "loss.w_tool",
    "loss.w_args",
    "loss.w_integr",
    "loss.chunk_rows",
    "optimizer.lr",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.clip",
    "optimizer.warmup_steps",
    "optimizer.schedule",
    "optimizer.final_lr_fraction",
    "optimizer.decay_fraction",
    "training.steps",
    "training.micro_batch_size",
    "training.gradient_accumulation",
    "training.log_every",
    "training.save_every",
    "training.deepspeed",
    "training.time_budget_seconds",
    "training.checkpoint_format",
    "evaluation.num_records",
    "evaluation.batch_size",
    "evaluation.max_new_tokens",
    "evaluation.baselines",
]
