"""Places of keys in errors that are found after a configuration was read."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD
from kd.config.places import add_places


@pytest.mark.parametrize(
    ("message", "overrides", "expected"),
    [
        ("teacher.path: 'x' is nothing", [], "FILE:4: teacher.path: 'x' is nothing"),
        ("teacher.path: 'x' is nothing", ["teacher.path=x"], "--set teacher.path: teacher.path: 'x' is nothing"),
        (
            "lower optimizer.lr, or data.stages.1.max_length, or teacher.dtype (not written)",
            ["optimizer.lr=1"],
            "lower optimizer.lr, or data.stages.1.max_length, or teacher.dtype (not written)\n"
            "  --set optimizer.lr: optimizer.lr\n  FILE:20: data.stages.1.max_length",
        ),
        ("run.json is gone, and configs/run.name too, or student.", [], None),
        ("FILE:4: teacher.path: said before", [], None),
    ],
)
def test_a_key_that_is_written_is_placed(write, message, overrides, expected):
    path = write(GOOD)
    message = message.replace("FILE", path)
    assert add_places(message, path, overrides) == (expected or message).replace("FILE", path)


def test_a_file_that_is_gone_changes_nothing():
    assert add_places("teacher.path: x", "/no/such.yaml") == "teacher.path: x"


def test_an_error_after_the_loader_names_its_line(write, capsys):
    from launch.train import main

    path = write(GOOD.replace("  path: some/teacher", "  path: some/teacher\n  targets: topk"))
    assert main(["--config", path, "--dry-run"]) == 1
    assert f"error: {path}:4: teacher.path: 'some/teacher': " in capsys.readouterr().err
