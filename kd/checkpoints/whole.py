"""Student of a checkpoint, whole, without the job that wrote it, which may be running, stopped, or of more ranks.

The run's config.yaml says what student and tokenizer it has. Files are read alone, so that a running job is not
disturbed; it deletes the older of its checkpoints as it goes, and one that is gone by then is told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kd.atomic_files import describe_failure
from kd.checkpoints.store import MANIFEST, CheckpointError, check_version, find_damage, list_checkpoints, read_manifest
from kd.config.load import load_config
from kd.config.registries import CHECKPOINT_FORMATS
from kd.config.schema import RunConfig
from kd.models.student import make_run_student
from kd.models.tokenizer import load_tokenizer

_INNER = "model."  # the student in the engine's module (kd/objective/student_loss.py)


class SavedStudent(NamedTuple):
    """Checkpoint that was looked at: its folder, its run's configuration and tokenizer."""

    path: Path
    config: RunConfig
    tokenizer: Any


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint, or the folder of a run, which has them in checkpoints/."""
    is_one = (folder / MANIFEST).is_file() and not (folder / "config.json").exists()  # which a saved model has
    return is_one or bool(list_checkpoints(folder / "checkpoints"))


def find_checkpoint(folder: Path, say: Callable[[str], None]) -> Path:
    """Find the checkpoint that a folder is, or the newest good one of a run's folder. One rank calls it.

    say: told of checkpoints that are damaged, and of the one that is taken.

    Raises:
        CheckpointError: none is whole.
    """
    if (folder / MANIFEST).is_file():
        if damage := find_damage(folder):
            raise CheckpointError(f"{folder}: {damage}: give another, or the run's folder for its newest good one")
        return folder
    for path in list_checkpoints(folder / "checkpoints"):
        damage = find_damage(path)
        if damage is None:
            say(f"{folder}: its newest good checkpoint is {path.name}")
            return path
        say(f"checkpoint {path} is damaged and left aside: {damage}")
    raise CheckpointError(f"{folder / 'checkpoints'}: no checkpoint is whole: wait for the run to write one")


def read_student(path: Path) -> SavedStudent:
    """Read what student and tokenizer the checkpoint at `path` is of; weights are not read.

    Raises:
        CheckpointError: its run's config.yaml is not there.
        ConfigError, TokenizerError, StudentError: what the run's configuration names cannot be read.
    """
    file = path.parent.parent / "config.yaml"
    if not file.is_file():
        raise CheckpointError(
            f"{path}: {file} is not there, which says what model the checkpoint is of: leave the checkpoint in its "
            "run's folder, as RUN/checkpoints/step-NNNNNNNN"
        )
    config = load_config(file)
    return SavedStudent(path, config, load_tokenizer(config.tokenizer, config.teacher, config.student))


def load_student(saved: SavedStudent) -> Any:
    """Load the student of a checkpoint, whole, on the CPU, in the precision that it trains in.

    Raises:
        CheckpointError: the checkpoint has gone, is of a later version, or does not hold this student.
    """
    path = saved.path
    if saved.config.student.lora is not None:
        raise CheckpointError(
            f"{path}: it holds adapters alone (student.lora): give the folder of a student that the run has exported"
        )
    try:
        manifest = read_manifest(path)
        check_version(path, manifest, "read it with the program that wrote it")
        found = CHECKPOINT_FORMATS[manifest.format].read_weights(path)
    except CheckpointError:
        raise
    except Exception as error:  # of torch's and DeepSpeed's own types
        gone = "" if path.is_dir() else "; it has gone: its run keeps the newest alone, so give the run's folder"
        raise CheckpointError(f"{path}: its weights cannot be read ({describe_failure(error, path)}){gone}") from error
    weights = {name.removeprefix(_INNER): value for name, value in found.items() if name.startswith(_INNER)}
    model = make_run_student(saved.config, saved.tokenizer)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones once
    wrong = sorted(name for name, shape in wanted.items() if name not in weights or tuple(weights[name].shape) != shape)
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong[0]} is missing or of another shape ({len(wrong)} of {len(wanted)} weights): the "
            f"config.yaml in {path.parent.parent} is of another run"
        )
    wrong = sorted(name for name in wanted if not weights[name].isfinite().all())
    if wrong:
        raise CheckpointError(f"{path}: {wrong[0]} holds numbers that are not finite: give another checkpoint")
    model.load_state_dict(weights, strict=False)
    return model.eval()
