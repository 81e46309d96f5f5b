"""Each silent bug of bug_table.py is put into a copy of the tree, and a test that is named there must fail.

Half an hour on two cores, so it runs where it is asked for alone: pytest -m bugs
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from bugs.bug_table import BUGS, Bug

from helpers.jobs import REPOSITORY

COPIED = ("kd", "kernels", "launch", "tests", "configs", "ds_configs", "benchmarks", "pyproject.toml", "setup.py")


def put_in(bug: Bug, text: str) -> str:
    """Return a file's text with the bug in it."""
    for old, new in bug.edits:
        assert text.count(old) == 1, f"{bug.file} has changed: {old!r} stands there {text.count(old)} times"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run_tests(tree, tests) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment)


def test_the_table_has_all_18_and_stands_in_this_tree():
    assert {bug.number for bug in BUGS} == set(range(1, 19))
    for bug in BUGS:
        compile(put_in(bug, (REPOSITORY / bug.file).read_text()), bug.file, "exec")


@pytest.mark.bugs
def test_without_a_bug_they_pass(tree):
    done = run_tests(tree, sorted({test for bug in BUGS for test in bug.tests}))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.bugs
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.number} {bug.name}")
def test_a_bug_is_caught(tree, bug):
    file = tree / bug.file
    sound = file.read_text()
    file.write_text(put_in(bug, sound))
    try:
        done = run_tests(tree, bug.tests)
    finally:
        file.write_text(sound)
    assert done.returncode == 1 and "FAILED " in done.stdout, done.stdout[-3000:]
