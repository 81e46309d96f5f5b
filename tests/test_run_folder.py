"""A run's folder: one process at a time, files of others intact, an earlier run set aside."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from helpers.jobs import REPOSITORY
from kd.outputs import OutputError
from kd.records.checks import DataError
from kd.records.quarantine import Item, Quarantine, earlier
from kd.run_folder import FOLDERS, MARKER, RESULTS, RunFolder, RunFolderError


def fill(folder) -> None:
    """Make what an ended run leaves, with a note of the user's among the checkpoints."""
    for name in RESULTS:
        (folder / name).write_text(json.dumps({"step": 1, "training_seconds": 1}))
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "inside").write_text(name)
    step = folder / "checkpoints" / "step-00000004"
    step.mkdir()
    (step / "manifest.json").write_text("{}")
    (folder / MARKER).write_text("{}")


def test_an_earlier_run_is_set_aside_whole_and_what_is_not_a_runs_stays(tmp_path):
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folder = RunFolder(tmp_path)
    folder.take()
    aside = folder.begin("run: {name: new}\n", resumed=False)
    assert aside == tmp_path / "previous-1"
    stay = {"notes.txt", MARKER, "checkpoints/inside", "initial_student/inside"}
    for path, content in before.items():
        place = tmp_path / path if str(path) in stay else aside / path
        assert str(path) == MARKER or place.read_bytes() == content, path
    assert (tmp_path / "config.yaml").read_text() == "run: {name: new}\n"
    folder.release()


def test_two_runs_are_set_aside_beside_one_another_and_a_resumed_one_is_not(tmp_path):
    fill(tmp_path)
    folder = RunFolder(tmp_path)
    folder.take()
    folder.begin("first", resumed=False)
    (tmp_path / "metrics.jsonl").write_text("{}")
    assert folder.begin("second", resumed=True) is None and (tmp_path / "metrics.jsonl").exists()
    assert folder.begin("third", resumed=False) == tmp_path / "previous-2"
    assert (tmp_path / "previous-2" / "metrics.jsonl").exists()


@pytest.mark.parametrize("inside", [True, False])
def test_refused_lines_of_an_earlier_run_stay_until_the_new_one_has_taken_a_step(tmp_path, inside):
    run = tmp_path / "run"
    path = (run if inside else tmp_path) / "refused.jsonl"

    def start(line: int) -> RunFolder:
        folder = RunFolder(run)
        folder.take()
        folder.check_apart([], path)
        refused = DataError(f"a.jsonl:{line}: no record")
        Quarantine(path, 1.0).refuse(Item("a.jsonl", line, None, refused, b"x", None))
        return folder

    def lines(file) -> list[int]:
        return [json.loads(line)["line"] for line in file.read_text().splitlines()]

    first = start(1)
    first.begin("config", resumed=False)
    first.release()
    for line in (2, 3):  # starts that fail before a step
        start(line).release()
        assert lines(earlier(path)) == [1] and lines(path) == [line]
    again = start(4)
    again.begin("config", resumed=False)
    again.release()
    assert lines(path) == [4] and not earlier(path).exists()
    assert lines(path.parent / "previous-1" / "refused.jsonl.earlier") == [1]
    resumed = start(5)
    resumed.begin("config", resumed=True)
    resumed.release()
    assert lines(path) == [5] and not earlier(path).exists()


@pytest.mark.parametrize("name", [*RESULTS, *FOLDERS])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_no_run_made_is_refused_and_intact(tmp_path, name, kind):
    (tmp_path / "training.jsonl").write_text("mine")
    foreign = tmp_path / name
    if kind == "folder":
        foreign.mkdir()
        foreign = foreign / "inside.txt"
    foreign.write_text("mine")
    with pytest.raises(RunFolderError, match="is there already, and no run made it: move it away, or choose another"):
        RunFolder(tmp_path).take()
    assert foreign.read_text() == (tmp_path / "training.jsonl").read_text() == "mine"


@pytest.mark.parametrize("name", [MARKER, "metrics.jsonl", "run.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name, make):
    """A pipe was waited for after the models were loaded, and a folder failed the run after its first step."""
    fill(tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{name} is no file: move it away, or choose another run.name"):
        RunFolder(tmp_path).take()


def test_a_second_process_is_refused_and_told_which_has_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.take()
    program = (
        "import sys; from pathlib import Path; from kd.run_folder import RunFolder; RunFolder(Path(sys.argv[1])).take()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert "is in use by process" in second.stderr and second.returncode == 1
    folder.release()
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode == 0


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(
        OutputError, match=r"run.output_dir: .*run is no folder that can be written: .*run is a file; name another"
    ):
        RunFolder(tmp_path / "run").take()
    assert (tmp_path / "run").read_text() == "mine"
