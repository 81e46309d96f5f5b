"""run.extensions: a user's modules are imported before the file is checked, and what they register is a choice."""

from __future__ import annotations

import sys

import pytest

from helpers.config_cases import GOOD, changed, problems
from kd.config.load import load_config
from kd.config.registries import FORMATS, SCHEDULES, imported_extensions


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_schedule.py").write_text(
        "from kd.config.registries import SCHEDULES\nSCHEDULES.register('square', lambda done: done * done)\n"
    )
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    (tmp_path / "my_leaving.py").write_text("raise SystemExit(7)\n")
    (tmp_path / "my_cancelled.py").write_text("import asyncio\nraise asyncio.CancelledError\n")
    (tmp_path / "my_needy.py").write_text("import my_other_module\n")
    yield "my_schedule"
    sys.modules.pop("my_schedule", None)
    if "square" in SCHEDULES:
        SCHEDULES.unregister("square")


def test_what_an_extension_registers_may_be_chosen(write, module):
    text = changed("w_tool: 0.2", "temperature: {schedule: square, start: 1.0, end: 2.0}")
    (problem,) = problems(write(text))
    assert problem.startswith(
        "22: loss.temperature.schedule: must be one of 'constant', 'linear' or 'cosine', got the text 'square'"
    )
    config = load_config(write(text.replace("name: test", f"name: test\n  extensions: [{module}]")))
    assert config.loss.temperature.schedule == "square" and config.run.extensions == (module,)
    assert module in imported_extensions()
    assert load_config(write(text), [f"run.extensions=[{module}]"]).run.extensions == (module,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such_module", "no module 'no_such_module': install it, or put the folder that holds it in PYTHONPATH"),
        ("no_such_package.part", "no module 'no_such_package': install it"),
        ("my_broken", "importing my_broken failed: ZeroDivisionError: division by zero"),
        ("my_leaving", "importing my_leaving failed: SystemExit: 7"),
        ("my_cancelled", "importing my_cancelled failed: CancelledError"),
        ("my_needy", "importing my_needy failed: ModuleNotFoundError: No module named 'my_other_module'"),
    ],
)
def test_an_extension_that_cannot_be_imported_is_named(write, module, name, expected):
    (problem,) = problems(write(changed("name: test", f"name: test\n  extensions:\n    - {name}")))
    assert problem.startswith(f"4: run.extensions.0: {expected}")


def test_extensions_that_are_no_list_of_names_are_left_to_the_schema(write):
    (problem,) = problems(write(GOOD), ["run.extensions=json"])
    assert problem.startswith("--set run.extensions: run.extensions: expected a list, got the text 'json'")


def test_choices_are_the_registered_names(write):
    (problem,) = problems(write(GOOD), ["data.stages.0.train=[{files: a.jsonl, format: caht}]"])
    assert problem.endswith("did you mean 'chat'?") and all(repr(name) in problem for name in FORMATS.names())
    (problem,) = problems(write(GOOD), ["loss.divergence=3"])
    assert "loss.divergence: must be one of 'forward_kl', 'reverse_kl' or 'jsd', got 3" in problem


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["teacher.source=cache"], "needs teacher.cache: add `cache: {path: ...}`, or remove this key"),
        (["teacher.source=live", "teacher.cache={path: c, temperatures: [2.0]}"], "runs the model, and teacher.cache"),
        (["teacher.source=dead"], "must be one of 'live' or 'cache', got the text 'dead'"),
    ],
)
def test_a_source_that_contradicts_the_cache_is_refused(write, overrides, expected):
    (problem,) = problems(write(GOOD), overrides)
    assert problem.startswith(f"--set teacher.source: teacher.source: {expected}")
