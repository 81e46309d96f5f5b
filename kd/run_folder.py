"""Run folder: one process at a time, files of others untouched, an earlier run set aside and never deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd.atomic_files import clear_parts, publish
from kd.checkpoints.store import clear_unfinished, list_checkpoints
from kd.errors import SpanwiseError
from kd.folders.lock import FolderLock
from kd.folders.made import set_aside
from kd.hashing import sha256
from kd.outputs import Output, check_outputs, check_writable, read_object
from kd.paths import identify
from kd.records.quarantine import earlier

MARKER = ".spanwise-run.json"  # says that what stands beside it is a run's
RESULTS = (
    "metrics.jsonl",
    "validation.jsonl",
    "rollouts.jsonl",
    "rollouts.html",
    "run.json",
    "evaluation.json",
    "cases.jsonl",
    "report.html",
    "config.yaml",
    "importance.safetensors",
)
FOLDERS = ("student", "best", "tensorboard", "trackers", "checkpoints", "initial_student")


class RunFolderError(SpanwiseError, ValueError):
    """Run folder that cannot be used; the message names what is in the way and the remedy."""


class RunFolder:
    """Folder of one run, output_dir/name. Only rank 0 calls its methods.

    What an earlier run left stays until the new one has taken its first step (`begin`), and then moves into
    previous-N/ beside it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = FolderLock(path)
        self._earlier_refused: Path | None = None

    def take(self) -> None:
        """Make the folder, lock it for this process until it ends, and check that nothing of another's is in the way.

        Raises:
            OutputError: it cannot be written.
            RunFolderError: another process has it (named), or a file stands where the run would write and no run made
                it.
        """
        check_writable("run.output_dir", self.path)
        holder = self._lock.take()
        if holder is not None:
            raise RunFolderError(f"{self.path} is in use by {holder}: wait for it, end it, or choose another run.name")
        if not self._is_a_runs():
            foreign = [self.path / name for name in (*RESULTS, *FOLDERS) if (self.path / name).exists()]
            if foreign:
                raise RunFolderError(
                    f"{foreign[0]} is there already, and no run made it: move it away, or choose another run.name"
                )
        odd = [path for name in (MARKER, *RESULTS) if (path := self.path / name).exists() and not path.is_file()]
        if odd:  # a pipe would be waited for
            raise RunFolderError(f"{odd[0]} is no file: move it away, or choose another run.name")
        for name in (MARKER, *RESULTS, *FOLDERS):
            clear_parts(self.path / name)
        clear_unfinished(self.path / "checkpoints")

    def check_apart(self, inputs: Iterable[tuple[str, Path]], quarantine: Path) -> None:
        """Check that the run reads none of what it writes.

        Args:
            inputs: key, and file or folder, of all that it reads.
            quarantine: data.quarantine, or its default.

        Raises:
            OutputError, RunFolderError: it does; the key and the path are named.
        """
        self._earlier_refused = earlier(quarantine)
        inputs = list(inputs)
        written = [Output("run.name", self.path / name, "a run's", lambda path: True) for name in RESULTS]
        check_outputs([*written, Output("data.quarantine", quarantine, "a run's", lambda path: True)], inputs)
        folders = {identify(self.path / name): self.path / name for name in FOLDERS if name != "checkpoints"}
        for key, path in inputs:
            place = Path(os.path.realpath(path))
            inside = [folders[one] for one in map(identify, (place, *place.parents)) if one in folders]
            if inside:
                raise RunFolderError(
                    f"{key}: {path} is in {inside[0]}, which this run writes: choose another run.name, or copy it"
                )

    def release(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def finished(self) -> dict[str, Any] | None:
        """Return run.json of a run that came to its end here, or None."""
        return read_object(self.path / "run.json") or None

    def begin(self, config: str, *, resumed: bool) -> Path | None:
        """Mark the folder as this run's and write config.yaml.

        Returns:
            The folder that an earlier run's files were moved into, or None where there were none. Where `resumed` they
            are this run's own, and only a config.yaml that someone changed is moved.
        """
        refused = [path for path in [self._earlier_refused] if path is not None and path.exists()]
        if resumed:
            aside = set_aside(self._changed_config(), self.path)
            for path in refused:  # its lines are in the new one
                path.unlink()
        else:
            found = list_checkpoints(self.path / "checkpoints")  # the first to go: what is left of them is not resumed
            written = (*RESULTS, *(name for name in FOLDERS if name not in ("checkpoints", "initial_student")))
            found += [self.path / name for name in written if (self.path / name).exists()]
            for path in refused:
                if path.parent == self.path:
                    found.append(path)
                else:
                    set_aside([path], path.parent)
            aside = set_aside(found, self.path)  # initial_student is made again by every start
        (self.path / "run.json").unlink(missing_ok=True)  # the run is on its way again
        publish(self.path / "config.yaml", config.encode())
        made = {"made_by": "spanwise", "config": sha256(self.path / "config.yaml")}
        publish(self.path / MARKER, (json.dumps(made) + "\n").encode())
        return aside

    def _changed_config(self) -> list[Path]:
        """Return config.yaml where it is not as a run wrote it."""
        path, made = self.path / "config.yaml", read_object(self.path / MARKER).get("config")
        return [path] if made is not None and path.exists() and sha256(path) != made else []

    def _is_a_runs(self) -> bool:
        """Tell whether a run made this folder: by its marker, or by what versions before the marker left."""
        if (self.path / MARKER).exists() or list_checkpoints(self.path / "checkpoints"):
            return True
        return "step" in read_object(self.path / "metrics.jsonl") or "training_seconds" in read_object(
            self.path / "run.json"
        )
