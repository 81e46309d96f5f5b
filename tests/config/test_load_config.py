"""Reading a run's YAML: files, overrides, plain values, DeepSpeed JSONs, and writing it back."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.config_cases import GOOD, changed, problems
from kd.config import yaml as config_yaml
from kd.config.load import dump_config, load_config
from kd.config.problems import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run:\n  name: [a\nloss: {}\n", ":3: not valid YAML"),
        ("run:\n\tname: a\n", ":2: not valid YAML"),
        ("run: &a {name: x}\nloss: *a\n", ":2: not valid YAML: an alias (*name): write the value out"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        ("run: \x01\n", ":1: not valid YAML"),
        ("- a\n", ":1: expected sections"),
        ("run:\n  name: " + "[" * 5000, ":2: not valid YAML: nested too deeply"),
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
    assert load_config(path, ["training.steps=50", "training.steps=50"]).training.steps == 50
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
            "mine.json: zero_optimization.stage: is 0, where DeepSpeed may measure no gradient norm and take a step "
            "that is not finite: use 1, 2 or 3",
        ),
        ('{"zero_optimization": {"stage": 0}}', "mine.json:1: zero_optimization.stage: is 0"),
        ('{"zero_optimization": {"stage": 4}}', "mine.json:1: zero_optimization.stage: is 4"),
        ('{\n"a": 1,\n}', "mine.json:3: not valid JSON"),
        ('{"zero_optimization": true}', "mine.json:1: zero_optimization: expected an object, as in"),
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
