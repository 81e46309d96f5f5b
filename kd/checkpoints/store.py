"""Checkpoints of a run, and going on from one: every rank resumes the same step, or none does.

Invariants
  A checkpoint is visible only when it is complete on all ranks: it is written to a hidden folder, each file's SHA-256
  goes into manifest.json, everything is flushed to disk, and the folder is renamed to step-NNNNNNNN. DeepSpeed's own
  `latest` file is not used: it can name a torn checkpoint.
  A checkpoint is read only when every file still has its hash: a flipped bit loads silently otherwise. A damaged one is
  named and the one before it is taken.
  The newest two are kept, and an older one is deleted only after a newer one is visible.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from kd.atomic_files import flush
from kd.checkpoints.identity import difference
from kd.errors import SpanwiseError
from kd.hashing import sha256

MANIFEST = "manifest.json"
KEEP = 2
_TAG = "state"  # DeepSpeed's folder inside a checkpoint
_NAME = re.compile(r"step-(\d{8})")


class CheckpointError(SpanwiseError, ValueError):
    """A checkpoint cannot be written or gone on from; the message names it and the remedy."""


class Checkpoints:
    """The checkpoints of one run folder. All ranks make one and call `save` and `load` together.

    Args:
        engine: the DeepSpeed engine.
        group: a process group that carries Python objects over the CPU.
        identity: what must be equal for a checkpoint to be gone on from (kd/checkpoints/identity.py).
        say: told, in words, of anything a person should know.
    """

    def __init__(self, folder: Path, engine, group, identity: dict[str, Any], say: Callable[[str], None]):
        self._folder, self._engine, self._group, self._identity, self._say = folder, engine, group, identity, say
        self._rank, self._world = dist.get_rank(), dist.get_world_size()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the engine and this rank's `state` as the checkpoint of `step`.

        Raises:
            CheckpointError: on every rank, when any rank could not write; earlier checkpoints are untouched.
        """
        part, whole = self._folder / f".step-{step:08d}.part", self._folder / f"step-{step:08d}"
        if self._everywhere(whole.exists)[0]:
            return
        self._together(lambda: self._rank == 0 and _empty(part), f"step {step}: cannot make {part}")
        self._together(
            lambda: self._engine.save_checkpoint(str(part), tag=_TAG, client_state={"run": state}, save_latest=False),
            f"step {step}: cannot write {part}",
        )
        self._together(
            lambda: self._rank == 0 and self._publish(part, whole, step), f"step {step}: cannot publish {whole}"
        )

    def load(self) -> dict[str, Any] | None:
        """Restore the newest good checkpoint into the engine; returns this rank's `state`, or None where there is none.

        Raises:
            CheckpointError: checkpoints exist but all are damaged, or the newest good one is of another configuration,
                cache or world size.
        """
        found: list[Any] = [None, None]
        if self._rank == 0:
            try:
                found[0] = self._newest_good()
            except CheckpointError as error:
                found[1] = str(error)
        dist.broadcast_object_list(found, src=0, group=self._group)
        path, error = found
        if error:
            raise CheckpointError(error)
        if path is None:
            return None
        state: dict[str, Any] = {}

        def restore() -> None:
            loaded, client = self._engine.load_checkpoint(path, tag=_TAG, load_lr_scheduler_states=False)
            if loaded is None:
                raise CheckpointError("DeepSpeed found nothing to load")
            state.update(client["run"])

        self._together(restore, f"cannot go on from {path}")
        return state

    def _newest_good(self) -> str | None:
        candidates = listed(self._folder)
        for path in candidates:
            problem = damage(path)
            if problem:
                self._say(f"checkpoint {path} is damaged and left aside: {problem}")
                continue
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["world_size"] != self._world:
                raise CheckpointError(
                    f"{path} was written by {manifest['world_size']} ranks and this run has {self._world}: start "
                    "it with "
                    f"{manifest['world_size']}, or give --fresh to begin again"
                )
            other = difference(manifest["identity"], self._identity)
            if other:
                raise CheckpointError(f"cannot go on from {path}: {other}")
            return str(path)
        if candidates:
            raise CheckpointError(f"{self._folder}: no checkpoint is whole; give --fresh to begin again from the start")
        return None

    def _publish(self, part: Path, whole: Path, step: int) -> None:
        files = {
            str(p.relative_to(part)): [sha256(p), p.stat().st_size] for p in sorted(part.rglob("*")) if p.is_file()
        }
        manifest = {"step": step, "world_size": self._world, "identity": self._identity, "files": files}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in [*part.rglob("*"), part]:
            flush(path)
        os.rename(part, whole)
        flush(self._folder)
        for old in listed(self._folder)[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)

    def _together(self, work: Callable[[], Any], what: str) -> None:
        message = None
        try:
            work()
        except Exception as error:  # told to all ranks below: one that raised alone would leave the others waiting
            message = f"rank {self._rank}: {type(error).__name__}: {error}"
        problems = [m for m in self._everywhere(lambda: message) if m]
        if problems:
            raise CheckpointError(f"{what} ({problems[0]})")

    def _everywhere(self, value: Callable[[], Any]) -> list[Any]:
        values: list[Any] = [None] * self._world
        dist.all_gather_object(values, value(), group=self._group)
        return values


def listed(folder: Path) -> list[Path]:
    """The visible checkpoints of a folder, newest first."""
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: p.name, reverse=True)


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, naming the file, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
        manifest["world_size"], manifest["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {type(error).__name__}: {error}"
    for name, (digest, size) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if sha256(file) != digest:
            return f"{name} does not have the hash it was written with"
    return None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
