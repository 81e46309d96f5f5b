"""The documentation says what is there: its commands and options exist, its links lead somewhere, its example runs."""

from __future__ import annotations

import re
import runpy
import shlex

import pytest

from helpers.jobs import REPOSITORY
from launch.main import COMMANDS, main

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SCRIPTS = [REPOSITORY / f"launch/{name}.py" for name in COMMANDS]
COMMAND = re.compile(rf"^ +(?:deepspeed .*?)?spanwise ({'|'.join(COMMANDS)}) (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def used_options() -> list:
    """Each (command, option) that a page or a script's docstring shows."""
    texts = [path.read_text(encoding="utf-8") for path in (*PAGES, *SCRIPTS)]
    found = {
        (name, option.partition("=")[0])
        for text in texts
        for name, rest in COMMAND.findall(text.replace("\\\n", ""))
        for option in shlex.split(rest, comments=True)
        if option.startswith("--")
    }
    return sorted(found)


@pytest.mark.parametrize(("name", "option"), used_options())
def test_an_option_that_is_shown_exists(name, option, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert f"{option}" in re.findall(r"--[\w-]+", usage)


def test_every_command_is_shown():
    assert {name for name, _ in used_options()} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_a_page_on_a_file_names_one_that_exists():
    for page in PAGES:
        for path in re.findall(
            r"`((?:kd|kernels|launch|benchmarks|examples|tests)/[\w/]+\.(?:py|md))`", page.read_text()
        ):
            assert (REPOSITORY / path).exists() or "NAME" in path, f"{page.name}: {path}"


def test_the_loss_runs_without_the_trainer(capsys):
    runpy.run_path(str(REPOSITORY / "examples/loss_alone.py"))
    assert capsys.readouterr().out.startswith("loss ")
