"""The command `spanwise`: one name for the scripts of launch/, in this process and installed from a wheel."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.jobs import REPOSITORY, plain_environment
from launch.main import COMMANDS, main

DEMO = str(REPOSITORY / "configs/demo.yaml")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    environment = plain_environment()
    environment.pop("PYTHONPATH", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def test_help_lists_each_command_with_its_line(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0
    for name, line in COMMANDS.items():
        assert f"{name:<9} {line}" in shown


def test_help_imports_neither_torch_nor_the_library(tmp_path):
    code = (
        "import sys\nfrom launch.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'deepspeed', 'kd', 'kernels'} & set(sys.modules)))"
    )
    done = run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{code}", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_its_script_under_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0 and capsys.readouterr().out.startswith(f"usage: spanwise {name} ")


def test_arguments_and_exit_code_are_handed_on(monkeypatch):
    given = []
    train = importlib.import_module("launch.train")
    monkeypatch.setattr(train, "main", lambda argv, prog: given.append((argv, prog)) or 7)
    assert main(["train", "--config", "my.yaml", "--set", "a.b=1"]) == 7
    assert given == [(["--config", "my.yaml", "--set", "a.b=1"], "spanwise train")]


def test_the_rank_that_deepspeed_puts_before_the_command_is_handed_on(monkeypatch):
    given = []
    monkeypatch.setattr(importlib.import_module("launch.capture"), "main", lambda argv, prog: given.append(argv) or 0)
    main(["--local_rank=1", "capture", "--config", "my.yaml"])
    assert given == [["--local_rank=1", "--config", "my.yaml"]]


def test_a_command_that_does_not_exist_is_refused_with_those_that_do(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["trian"])
    assert exit.value.code == 2 and "train" in capsys.readouterr().err


def test_plan_prints_what_a_dry_run_prints(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(REPOSITORY)  # the demo's teacher is at configs/demo_teacher
    assert main(["train", "--config", DEMO, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    dry = dry[dry.index("plan of demo") :]  # DeepSpeed prints a line of its own first
    assert main(["plan", "--config", DEMO]) == 0
    assert capsys.readouterr().out == dry and "student" in dry
    assert main(["plan", "--config", DEMO, "--world-size", "2"]) == 0
    assert capsys.readouterr().out != dry


def test_plan_of_a_wrong_configuration_is_an_error(capsys):
    assert main(["plan", "--config", DEMO, "--set", "training.stepps=1"]) == 1
    assert "did you mean training.steps?" in capsys.readouterr().err


@pytest.mark.slow  # builds a wheel and a virtual environment; the build needs setuptools from the package index
def test_an_installed_wheel_has_all_that_the_command_needs(tmp_path):
    def checked(*command: str | Path, cwd: Path) -> str:
        done = run(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    sources = tmp_path / "sources"  # a build leaves files among its sources
    for folder in ("kd", "kernels", "launch", "ds_configs"):
        shutil.copytree(REPOSITORY / folder, sources / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, sources)
    checked(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, sources, cwd=tmp_path)
    (wheel,) = tmp_path.glob("spanwise-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for file in (
        "kd/reports/page.css",
        "kd/sources/demo/chat_template.jinja",
        "ds_configs/zero3.json",
        "launch/main.py",
    ):
        assert file in names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "benchmarks/", "docs/"))]

    # What the wheel depends on is taken from this environment.
    python, spanwise = tmp_path / "venv/bin/python", tmp_path / "venv/bin/spanwise"
    checked(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{Path(importlib.import_module('numpy').__file__).parent.parent}\n")
    checked(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    assert "plan " in checked(spanwise, "--help", cwd=tmp_path)
    # The demo's teacher is of the checkout; the DeepSpeed JSON must come from the wheel.
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    copy = tmp_path / "demo.yaml"
    copy.write_text(Path(DEMO).read_text())
    assert "student" in checked(spanwise, "train", "--config", copy, "--dry-run", cwd=tmp_path)
    code = "import kd.config.load as load; print(load.__file__)"
    assert os.fspath(tmp_path) in checked(python, "-c", code, cwd=tmp_path)
