"""Checkpoints on a full disk, and beside files of others."""

from __future__ import annotations

import errno
import json

import pytest

from kd.checkpoints.identity import CACHE, STEPS
from kd.checkpoints.store import (
    MANIFEST,
    CheckpointError,
    Checkpoints,
    clear_unfinished,
    find_damage,
    find_resumable,
    list_checkpoints,
)


class Alone:
    """Ranks of a job of one."""

    rank, world_size = 0, 1

    def gather(self, value):
        return [value]


class Engine:
    def __init__(self, full=False):
        self.full = full

    def save(self, folder, state, written_as):
        (folder / "weights").write_bytes(b"w" * 100)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def checkpoints(folder, full=False):
    return Checkpoints(folder, Engine(full), Alone(), {})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_and_leaves_no_part_and_what_was_there(tmp_path, error, monkeypatch):
    checkpoints(tmp_path).save(1, {})

    def save(self, folder, state, written_as):
        (folder / "weights").write_bytes(b"w")
        raise error

    monkeypatch.setattr(Engine, "save", save)
    with pytest.raises(
        CheckpointError, match=r"step 2: .*the disk is full \(.*make room.*earlier checkpoints are kept"
    ):
        checkpoints(tmp_path).save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert find_damage(tmp_path / "step-00000001") is None
    with pytest.raises(CheckpointError, match="there is no earlier checkpoint: the same command begins again"):
        checkpoints(tmp_path / "first").save(1, {})


@pytest.mark.parametrize("was", [{CACHE: 5}, {CACHE: {"missing": 1}}, {CACHE: [1]}, {"training.micro_batch_size": {}}])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_identity_of_other_types_is_told_with_its_file(tmp_path, was, world_size):
    """An error of Python's was told, which named nothing."""
    now = {STEPS: 9, CACHE: {"signal": "a", "missing": "0"}, "training.micro_batch_size": 2}
    Checkpoints(tmp_path, Engine(), Alone(), now | was).save(1, {})
    with pytest.raises(CheckpointError, match=r"step-00000001.*--fresh to begin again"):
        find_resumable(tmp_path, now, world_size, pytest.fail)


def test_an_old_checkpoint_goes_and_a_users_file_in_it_stays(tmp_path):
    saver = checkpoints(tmp_path)
    saver.save(1, {})
    (tmp_path / "step-00000001" / "notes.txt").write_text("mine")
    (tmp_path / "step-00000000").mkdir()  # of a checkpoint's name, and none
    (tmp_path / "step-00000000" / "mine.jsonl").write_text("mine")
    for step in (2, 3, 4):
        saver.save(step, {})
    assert [path.name for path in list_checkpoints(tmp_path)][:2] == ["step-00000004", "step-00000003"]
    assert [path.name for path in (tmp_path / "step-00000001.kept").iterdir()] == ["notes.txt"]
    assert (tmp_path / "step-00000000" / "mine.jsonl").read_text() == "mine"
    assert not (tmp_path / "step-00000002").exists()


def test_what_a_kill_left_unfinished_goes_and_nothing_else(tmp_path):
    for name in (".step-00000007.part", ".step-7.part", ".mine.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(json.dumps(name))
    clear_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".step-7.part", ".mine.part"}


DAMAGES = {
    "{}": "step: Field required",
    '{"files": [1]}': "files: Input should be a valid dictionary",
    '{"files": {"weights": 3}}': "files.weights: Input should be a valid list",
    '{"files": {"../mine": ["a", 1]}}': "../mine is outside of the checkpoint",
    '{"step": "2"}': "step: Input should be a valid integer",
    '{"step": 1}': "it is of step 1",
    '{"world_size": -3}': "world_size: Input should be greater than or equal to 1",
    '{"version": "new"}': "version: Input should be a valid integer",
    '{"identity": [1]}': "identity: Input should be a valid dictionary",
    "[1]": "Input should be a valid dictionary",
    "[" * 100_000: "maximum recursion depth",
    "\xff": "codec can't decode",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_told_and_the_checkpoint_before_is_taken(tmp_path, damage):
    """Each was an error of Python that named no file, and the whole checkpoint before was of no use."""
    saver = checkpoints(tmp_path)
    saver.save(1, {})
    saver.save(2, {})
    path = tmp_path / "step-00000002" / MANIFEST
    if damage.startswith('{"'):
        path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(damage)))
    else:
        path.write_bytes(damage.encode("latin-1"))
    said = []
    assert find_resumable(tmp_path, {}, 1, said.append).step == 1
    (line,) = said
    assert f"checkpoint {path.parent} is damaged and left aside: {MANIFEST}: " in line and DAMAGES[damage] in line


def test_a_step_whose_checkpoint_is_damaged_is_saved_again(tmp_path):
    """It was taken for saved, and the run's last steps were then in no checkpoint."""
    saver = checkpoints(tmp_path)
    for step in (1, 2):
        saver.save(step, {})
    (tmp_path / "step-00000002" / "weights").write_bytes(b"damaged")
    found = find_resumable(tmp_path, {}, 1, print)
    again = Checkpoints(tmp_path, Engine(), Alone(), {}, resume=found)
    again.save(2, {})
    again.save(2, {})
    assert find_damage(tmp_path / "step-00000002") is None
    assert (tmp_path / "step-00000002.damaged" / "weights").read_bytes() == b"damaged"
    assert find_resumable(tmp_path, {}, 1, pytest.fail).step == 2
