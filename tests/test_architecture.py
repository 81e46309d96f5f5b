"""Arrows go one way: launch -> kd -> kernels. `kernels` imports torch and triton and nothing else; nobody imports
launch.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = {package: sorted((REPOSITORY / package).rglob("*.py")) for package in ("kernels", "kd", "launch")}
OURS = {*SOURCES, "tests", "benchmarks"}


def imported(path: Path) -> set[str]:
    """Top packages that a file imports anywhere in it, relative imports as the package they are in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(path.relative_to(REPOSITORY).parts[0] if node.level else node.module.split(".")[0])
    return found


FILES = [
    pytest.param(package, path, id=str(path.relative_to(REPOSITORY)))
    for package, paths in SOURCES.items()
    for path in paths
]


@pytest.mark.parametrize(("package", "path"), FILES)
def test_arrows_go_one_way(package, path):
    allowed = {"kernels": {"kernels"}, "kd": {"kd", "kernels"}, "launch": {"kd", "launch"}}[package]
    assert imported(path) & OURS <= allowed


@pytest.mark.parametrize("path", SOURCES["kernels"], ids=lambda path: path.name)
def test_kernels_know_tensors_only(path):
    assert imported(path) - set(sys.stdlib_module_names) <= {"torch", "triton", "kernels"}


def test_every_package_has_sources():
    assert all(len(paths) > 1 for paths in SOURCES.values())


def test_no_test_folder_shadows_a_package():
    """tests/kernels with an __init__.py would be imported in place of `kernels`."""
    assert not [path for package in SOURCES for path in REPOSITORY.glob(f"tests/**/{package}/__init__.py")]


@pytest.mark.parametrize(
    "path", [path for path in SOURCES["launch"] if "def main(" in path.read_text()], ids=lambda path: path.name
)
def test_entry_points_run_from_a_checkout_that_is_not_installed(path, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr[-2000:]
