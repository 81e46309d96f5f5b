"""Checkpoints of a run: every rank resumes the same step, or none does.

Invariants
  A checkpoint is visible only when it is complete on all ranks: it is written to a hidden folder, each file's SHA-256
  goes into manifest.json, everything is flushed to disk, and the folder is renamed to step-NNNNNNNN. DeepSpeed's own
  `latest` file is not used: it can name a torn checkpoint.
  A checkpoint is read only when every file still has its hash: a flipped bit loads silently otherwise. A damaged one is
  named and the one before it is taken.
  The newest two are kept, and an older one is deleted only after a newer one is visible: the files that it was written
  with, no other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kd.atomic_files import describe_failure, flush
from kd.checkpoints.format import CheckpointFormat
from kd.checkpoints.identity import STEPS, difference, with_other_ranks
from kd.config.registries import CHECKPOINT_FORMATS
from kd.distributed.ranks import Ranks
from kd.errors import SpanwiseError, first_line
from kd.hashing import hash_text, sha256

MANIFEST = "manifest.json"
VERSION = 3  # of the manifest and of the state; 1 had neither this key nor the format's, and 2 no hash of its own
KEEP = 2
REMEDY = "move it away to go on from the checkpoint before it, or give --fresh to begin again"
_NAME = re.compile(r"step-(\d{8})")


class CheckpointError(SpanwiseError, ValueError):
    """Checkpoint that cannot be written or resumed; the message names it and the remedy."""


class Manifest(BaseModel):
    """Content of manifest.json."""

    model_config = ConfigDict(strict=True, extra="allow")

    step: Annotated[int, Field(ge=0)]
    world_size: Annotated[int, Field(ge=1)]
    identity: dict[str, Any]
    files: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]  # relative path -> SHA-256, bytes
    version: int = 1
    format: str = "deepspeed"
    sha256: str | None = None  # of all else in it

    @field_validator("files")
    @classmethod
    def _lie_inside(cls, files: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name in files:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name} is outside of the checkpoint")
        return files


class Engine(Protocol):
    """Writer and loader of weights and optimizer (kd.training.engine.StudentEngine)."""

    def save(self, folder: Path, state: dict[str, Any], written_as: CheckpointFormat) -> None: ...
    def load(self, folder: Path, written_as: CheckpointFormat) -> dict[str, Any]: ...


class Found(NamedTuple):
    """Checkpoint that a run resumes from."""

    path: str
    step: int
    written_as: str  # name in CHECKPOINT_FORMATS
    lengthened: str | None  # how training.steps differs from what it was, which schedules span
    other_ranks: str | None = None  # that another number of ranks wrote it


def find_resumable(folder: Path, identity: dict[str, Any], world_size: int, say: Callable[[str], None]) -> Found | None:
    """Find the newest checkpoint of `folder` that is whole, or None where there is none. One rank calls it.

    Args:
        identity: settings that must be equal (kd/checkpoints/identity.py); training.steps may be another number that
            is not below the checkpoint's step.
        say: told of checkpoints that are damaged.

    Raises:
        CheckpointError: checkpoints exist but all are damaged, or the newest good one is of another configuration,
            cache or version, or of another number of ranks in a format that has to have as many.
    """
    candidates = list_checkpoints(folder)
    for path in candidates:
        problem = find_damage(path)
        if problem:
            say(f"checkpoint {path} is damaged and left aside: {problem}")
            continue
        manifest = read_manifest(path)
        check_version(path, manifest, "resume it with the program that wrote it, or give --fresh to begin again")
        try:
            return _compare(path, manifest, identity, world_size)
        except (TypeError, AttributeError, LookupError) as error:
            raise CheckpointError(
                f"{path / MANIFEST}: its identity is none that this program wrote ({first_line(error)}): {REMEDY}"
            ) from error
    if candidates:
        raise CheckpointError(f"{folder}: no checkpoint is whole; give --fresh to begin again from the start")
    return None


def _compare(path: Path, manifest: Manifest, now: dict[str, Any], world_size: int) -> Found:
    """Compare a whole checkpoint's identity with the run's, `now`. Raises CheckpointError: it is of another run."""
    was, lengthened, other_ranks = manifest.identity, None, None
    if manifest.world_size != world_size:
        if not getattr(CHECKPOINT_FORMATS[manifest.format], "any_world_size", False):
            raise CheckpointError(
                f"{path} was written by {manifest.world_size} ranks, and this run has {world_size}, in the format "
                f"{manifest.format}, which as many resume: start it once with {manifest.world_size} and "
                "training.checkpoint_format: partitions (its next checkpoint is then resumed by any number), or "
                "give --fresh to begin again"
            )
        was, other_ranks = with_other_ranks(was, now, manifest.world_size, world_size)
    other = difference(was, now)
    if other and now[STEPS] >= manifest.step and difference(was | {STEPS: now[STEPS]}, now) is None:
        lengthened = f"{STEPS} was {was.get(STEPS)} and is {now[STEPS]}: schedules span the new number from here on"
    elif other:
        raise CheckpointError(f"cannot go on from {path}: {other}")
    return Found(str(path), manifest.step, manifest.format, lengthened, other_ranks)


class Checkpoints:
    """Checkpoints of one run folder. All ranks make one and call `save` and `load` together.

    Args:
        identity: settings that must match before a checkpoint is resumed (kd/checkpoints/identity.py).
        format: name in CHECKPOINT_FORMATS of what `save` writes.
        resume: what `find_resumable` found, the same on every rank; `load` loads it.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        ranks: Ranks,
        identity: dict[str, Any],
        *,
        format: str = "partitions",
        resume: Found | None = None,
    ):
        self._folder, self._engine, self._ranks, self._identity = folder, engine, ranks, identity
        self._format, self._resume = format, resume
        self._whole = set() if resume is None else {resume.step}  # steps whose checkpoint is known to be whole

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the engine and this rank's `state` as the checkpoint of `step`.

        Raises:
            CheckpointError: on every rank, when any rank could not write; earlier checkpoints are untouched, and
                nothing is left of this one.
        """
        if step in self._whole:
            return
        part, whole = self._folder / f".step-{step:08d}.part", self._folder / f"step-{step:08d}"
        written_as = CHECKPOINT_FORMATS[self._format]
        try:
            self._together(lambda: self._on_rank_0(lambda: _empty(part)), f"step {step}: cannot make {part}")
            self._together(lambda: self._engine.save(part, state, written_as), f"step {step}: cannot write {part}")
            self._together(
                lambda: self._on_rank_0(lambda: self._publish(part, whole, step)),
                f"step {step}: cannot publish {whole}",
            )
        except CheckpointError as error:
            self._on_rank_0(lambda: shutil.rmtree(part, ignore_errors=True))  # it would fill the disk
            kept = self._ranks.gather(bool(list_checkpoints(self._folder)))[0]
            rest = (
                "earlier checkpoints are kept: the same command resumes from them"
                if kept
                else "there is no earlier checkpoint: the same command begins again"
            )
            raise CheckpointError(f"{error}; {rest}") from None
        self._whole.add(step)

    def load(self) -> dict[str, Any] | None:
        """Load the checkpoint to resume from into the engine; returns this rank's `state`, or None where there is none.

        Raises:
            CheckpointError: on every rank, when any rank could not load it.
        """
        if self._resume is None:
            return None
        path, written_as = Path(self._resume.path), CHECKPOINT_FORMATS[self._resume.written_as]
        state: dict[str, Any] = {}
        try:
            self._together(lambda: state.update(self._engine.load(path, written_as)), f"cannot go on from {path}")
        except CheckpointError as error:
            raise CheckpointError(f"{error}: {REMEDY}") from None
        return state

    def _publish(self, part: Path, whole: Path, step: int) -> None:
        files = {
            str(p.relative_to(part)): [sha256(p), p.stat().st_size] for p in sorted(part.rglob("*")) if p.is_file()
        }
        manifest = {
            "version": VERSION,
            "format": self._format,
            "step": step,
            "world_size": self._ranks.world_size,
            "identity": self._identity,
            "files": files,
        }
        manifest["sha256"] = _digest(manifest)
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in [*part.rglob("*"), part]:
            flush(path)
        if whole.exists():  # damaged, and left aside when this run was resumed, or no checkpoint
            os.rename(whole, _find_free(whole.with_name(f"{whole.name}.damaged")))
        os.rename(part, whole)
        flush(self._folder)
        for old in list_checkpoints(self._folder)[KEEP:]:
            _delete(old)

    def _on_rank_0(self, work: Callable[[], Any]) -> None:
        if self._ranks.rank == 0:
            work()

    def _together(self, work: Callable[[], Any], what: str) -> None:
        """Do `work` on every rank, and raise on all of them where it failed on any."""
        message = None
        try:
            work()
        except Exception as error:  # told to all ranks below: one that raised alone would leave the others waiting
            message = f"rank {self._ranks.rank}: {describe_failure(error, self._folder)}"
        problems = [problem for problem in self._ranks.gather(message) if problem]
        if problems:
            raise CheckpointError(f"{what} ({problems[0]})")


def list_checkpoints(folder: Path) -> list[Path]:
    """List the visible checkpoints of a folder, newest first."""
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: p.name, reverse=True)


def find_damage(path: Path) -> str | None:
    """Say what is wrong with the checkpoint at `path`, naming the file, or return None."""
    try:
        manifest = read_manifest(path)
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, (digest, size) in manifest.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if sha256(file) != digest:
            return f"{name} does not have the hash it was written with"
    return None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint at `path`. Raises OSError, ValueError: it is not there, or damaged."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if path.name != f"step-{manifest.step:08d}":
        raise ValueError(f"it is of step {manifest.step}")
    if manifest.sha256 is None and manifest.version >= 3 or manifest.sha256 not in (None, _digest(content)):
        raise ValueError("it does not have the hash it was written with")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    """Hash all of a manifest but its own hash."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hash_text(json.dumps(said, sort_keys=True))


def check_version(path: Path, manifest: Manifest, remedy: str) -> None:
    """Check that this program reads the checkpoint at `path`.

    Raises:
        CheckpointError: it is of a later version, or of a format that is not registered; ends in `remedy`.
    """
    if manifest.version > VERSION or manifest.format not in CHECKPOINT_FORMATS:
        raise CheckpointError(
            f"{path} is of version {manifest.version} and format {manifest.format}, and this program reads versions up "
            f"to {VERSION} and {', '.join(CHECKPOINT_FORMATS.names())}: {remedy}"
        )


def clear_unfinished(folder: Path) -> None:
    """Remove checkpoints that killed programs left unfinished; none may be at work."""
    for part in folder.glob(".step-*.part"):
        if _NAME.fullmatch(part.name[1:].removesuffix(".part")):
            shutil.rmtree(part, ignore_errors=True)


def _delete(path: Path) -> None:
    """Delete a checkpoint; files that it was not written with stay, under another name of the folder."""
    try:
        files = {path / name for name in read_manifest(path).files} | {path / MANIFEST}
    except (OSError, ValueError):
        return  # not known as one of ours
    if {file for file in path.rglob("*") if not file.is_dir()} <= files:
        shutil.rmtree(path, ignore_errors=True)
        return
    kept = _find_free(path.with_name(f"{path.name}.kept"))
    os.rename(path, kept)
    for file in files:
        (kept / file.relative_to(path)).unlink(missing_ok=True)


def _find_free(path: Path) -> Path:
    """Return `path`, or where that is taken, the first free one of path-2, path-3, ..."""
    number, free = 1, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
