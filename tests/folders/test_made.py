"""A made folder is replaced whole; what someone put into it, or changed in it, is never deleted."""

from __future__ import annotations

import os

import pytest

from helpers.kills import killed_at
from kd.atomic_files import clear_parts
from kd.folders.made import replacing_folder


def make(folder, text):
    with replacing_folder(folder) as part:
        (part / "inner").mkdir()
        (part / "inner" / "weights").write_text(text)
        (part / "config.json").write_text(text)


def texts(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def whole(text):
    return {"inner/weights": text, "config.json": text}


def test_what_it_made_is_replaced_and_nothing_is_left_over(tmp_path):
    for text in ("one", "two"):
        make(tmp_path / "student", text)
        assert texts(tmp_path / "student") == whole(text)
    assert {path.name for path in tmp_path.iterdir()} == {"student", ".student.made.json"}


CHANGES = {
    "a file added": lambda folder: (folder / "notes").write_text("mine"),
    "a file changed": lambda folder: (folder / "config.json").write_text("mine"),
    "a file removed": lambda folder: (folder / "config.json").unlink(),
    "not known": lambda folder: folder.with_name(".student.made.json").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_someone_changed_is_set_aside(tmp_path, change):
    make(tmp_path / "student", "one")
    CHANGES[change](tmp_path / "student")
    before = texts(tmp_path / "student")
    make(tmp_path / "student", "two")
    assert texts(tmp_path / "previous-1" / "student") == before and texts(tmp_path / "student") == whole("two")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_another_made_is_set_aside(tmp_path, kind):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "inside").write_text("mine")
    if kind == "file":
        (tmp_path / "student").write_text("mine")
    elif kind == "folder":
        (tmp_path / "student").mkdir()
    else:
        (tmp_path / "student").symlink_to(tmp_path / "mine")
    make(tmp_path / "student", "two")
    assert texts(tmp_path / "student") == whole("two") and texts(tmp_path / "mine") == {"inside": "mine"}
    assert (tmp_path / "previous-1" / "student").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    make(tmp_path / "student", "one")
    with pytest.raises(OSError, match="No space"), replacing_folder(tmp_path / "student") as part:
        (part / "half").write_text("h")
        raise OSError(28, "No space left on device")
    assert texts(tmp_path / "student") == whole("one")
    assert {path.name for path in tmp_path.iterdir()} == {"student", ".student.made.json"}


def test_a_kill_between_any_two_steps(tmp_path, monkeypatch):
    """The next start clears what is half, and the folder is whole: the old one, the new one, or made again."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    step, seen = 1, set()
    while True:
        folder = tmp_path / str(step) / "student"
        folder.parent.mkdir()
        make(folder, "one")
        killed = killed_at(step, lambda: make(folder, "two"))  # noqa: B023 (called at once)
        clear_parts(folder)
        found = texts(folder) if folder.exists() else None
        assert found in (None, whole("one"), whole("two"))
        seen.add(None if found is None else found["config.json"])
        make(folder, "three")
        assert texts(folder) == whole("three") and not list(folder.parent.glob(".*.part"))
        if not killed:
            break
        step += 1
    assert {"one", "two"} <= seen and step > 8
