"""Keys of rollouts: contradictions, sizes of a step, and what a checkpoint's identity says of them."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD
from kd.checkpoints.identity import difference, run_identity
from kd.config.derived import count_step, reads_teacher
from kd.config.load import load_config
from kd.config.problems import ConfigError
from kd.config.schema import Rollouts, Training

RUN = GOOD.replace("steps: 100", "steps: 100\n  micro_batch_size: 8")


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=RUN):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


def rollouts(**values):
    return "data.stages.1.rollouts={" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


WELL = {"repair": 1, "max_new_tokens": 64}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repair": 0}, "nothing is learned from the answers"),
        ({"reward": 1, "samples": 1}, "give samples: 2 or more"),
        ({"reward": 1, "temperature": 0.7}, "reward needs answers of the student's own distribution"),
        ({"reward": 1, "top_p": 0.9}, "reward needs answers of the student's own distribution"),
        ({"reward": 1, "rewards": "{json_valid: 0}"}, "give at least one reward a weight above 0"),
        ({"rewards": "{json_vald: 1}"}, "json_valid"),
        ({"divergence": "jsd"}, "required with divergence: jsd"),
        ({"beta": 0.5}, "takes none: remove it"),
        ({"max_new_tokens": 256}, "leave no prompt room in max_length"),
        ({"engine": "vllm"}, "engine: vllm needs"),
        ({"share": 0.1}, "is no whole group of 4 samples"),
        ({"guards": "{entropy: {limit: -1}}"}, "guards.entropy.limit"),
    ],
)
def test_contradictions(load, values, message):
    with pytest.raises(ConfigError, match=message):
        load(rollouts(**WELL | values))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (".", "the program works in it"),
        ("/", "the program works in it"),
        ("..", "the program works in it"),
        ("models", "(?s)server.weights.*teacher.path is it, or is in it"),
        ("models/teacher/../teacher", "teacher.path is it, or is in it"),
        ("alias", "teacher.path is it, or is in it"),
        ("vocabulary", "tokenizer.path is it, or is in it"),
        ("runs", "run.output_dir is it, or is in it"),
    ],
)
def test_weights_take_no_folder_that_the_run_needs(load, tmp_path, monkeypatch, weights, message):
    (tmp_path / "work" / "models" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "alias").symlink_to("models/teacher")
    changes = ["teacher.path=models/teacher", "tokenizer.path=vocabulary", "run.output_dir=runs"]
    server = {"engine": "vllm", "server": f'{{url: "http://a", model: m, weights: "{weights}"}}'}
    with pytest.raises(ConfigError, match=message):
        load(rollouts(**WELL | server), *changes)
    load(rollouts(**WELL | server | {"server": '{url: "http://a", model: m, weights: "models/student"}'}), *changes)


def test_distill_needs_a_live_dense_teacher(load):
    assert reads_teacher(load(rollouts(**WELL, distill=1), "loss.weights={truth: 1}"))
    assert not reads_teacher(load(rollouts(**WELL), "loss.weights={truth: 1}"))
    for change in ("teacher.targets=topk", "teacher.cache={path: c, kind: topk, temperatures: [2.0]}"):
        with pytest.raises(ConfigError, match="needs a live teacher with targets: dense"):
            load(rollouts(**WELL, distill=1), change)


def test_a_users_own_reward_is_taken_by_its_place(load):
    found = load(rollouts(**WELL, rewards='{"my.module:function": 1}'))
    assert found.data.stages[1].rollouts.rewards == {"my.module:function": 1}


@pytest.mark.parametrize(
    ("share", "samples", "world", "sizes"),
    [(0.5, 4, 1, (4, 4)), (0.5, 4, 2, (8, 8)), (1.0, 4, 1, (0, 8)), (0.3, 4, 2, (12, 4)), (0.9, 3, 1, (2, 6))],
)
def test_sizes_of_a_step(share, samples, world, sizes):
    training = Training(steps=10, micro_batch_size=8)
    assert count_step(training, world, Rollouts(share=share, samples=samples)) == sizes
    assert count_step(training, world, None) == (8 * world, 0)


def test_identity(load):
    """Without rollouts it is what earlier versions wrote; what is only watched or shown is free to change."""
    plain = run_identity(load(), None)
    assert all("rollouts" not in stage for stage in plain["data.stages"])
    one = run_identity(load(rollouts(**WELL)), None)
    assert difference(plain, one) and difference(one, run_identity(load(rollouts(**WELL | {"share": 1.0})), None))
    free = {"shown": 3, "guards": "{hacked: null}"}
    assert difference(one, run_identity(load(rollouts(**WELL | free)), None)) is None
