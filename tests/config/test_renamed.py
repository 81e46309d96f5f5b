"""Old names of keys: read for one release, told once, refused beside the new name."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD, changed, problems
from kd.config.load import load_config
from kd.config.problems import all_keys
from kd.config.renamed import RENAMED


def test_new_names_exist_and_old_ones_do_not():
    keys = set(all_keys())
    assert keys >= set(RENAMED.values()) and not keys & set(RENAMED)


def test_an_old_name_in_the_file_is_read_and_told_in_one_line(write, capsys, monkeypatch):
    text = changed("path: some/teacher", "path: some/teacher\n  signal: topk").replace(
        "w_tool: 0.2", "weights: {kl: 1}"
    )
    path = write(text)
    config = load_config(path)
    assert config.teacher.targets == "topk" and config.loss.weights.kd == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{path}:5: teacher.signal is now teacher.targets; this release reads both, the next one will not",
        f"{path}:23: loss.weights.kl is now loss.weights.kd; this release reads both, the next one will not",
    ]
    monkeypatch.setenv("RANK", "1")
    load_config(path)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("override", ["loss.weights.kl=0.5", "loss.weights={kl: 0.5}", "loss={weights: {kl: 0.5}}"])
def test_an_old_name_in_an_override_is_read(write, capsys, override):
    assert load_config(write(GOOD), [override]).loss.weights.kd == 0.5
    assert f"--set {override.split('=')[0]}: loss.weights.kl is now loss.weights.kd" in capsys.readouterr().err


def test_an_override_replaces_the_file_by_either_name(write):
    for written in ("kl", "kd"):
        path = write(changed("w_tool: 0.2", f"weights: {{{written}: 1, truth: 1}}"))
        for given in ("kl", "kd"):
            weights = load_config(path, [f"loss.weights.{given}=0.25"]).loss.weights
            assert (weights.kd, weights.truth) == (0.25, 1)


def test_a_fault_of_an_old_key_stands_at_its_line(write):
    (problem,) = problems(write(changed("w_tool: 0.2", "weights:\n    kl: -1")))
    assert problem.startswith("23: loss.weights.kd: must be at least 0, got -1")


@pytest.mark.parametrize(
    ("new", "overrides", "expected"),
    [
        (
            "weights:\n    kl: 1\n    kd: 1",
            [],
            "23: loss.weights.kl: the old name of loss.weights.kd, which is given too",
        ),
        ("w_tool: 1", ["loss.weights={kl: 1, kd: 1}"], "--set loss.weights: loss.weights.kl: the old name of"),
        ("w_tool: 1", ["loss.weights.kd=1", "loss.weights.kl=1"], "--set loss.weights.kl: the old name of"),
    ],
)
def test_both_names_at_once_are_refused(write, new, overrides, expected):
    (problem,) = problems(write(changed("w_tool: 0.2", new)), overrides)
    assert problem.startswith(expected)
