"""Run folder: one process at a time, files of others untouched, an earlier run set aside and never deleted."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from kd.checkpoints.store import list_checkpoints
from kd.errors import SpanwiseError

MARKER = ".spanwise-run.json"  # says that what stands beside it is a run's
LOCK = ".lock"
RESULTS = ("metrics.jsonl", "run.json", "evaluation.json", "cases.jsonl", "report.html", "config.yaml")
FOLDERS = ("student", "tensorboard", "checkpoints", "initial_student")


class RunFolderError(SpanwiseError, ValueError):
    """Run folder that cannot be used; the message names what is in the way and the remedy."""


class RunFolder:
    """Folder of one run, output_dir/name. Only rank 0 calls its methods.

    What an earlier run left stays until the new one has taken its first step (`begin`), and then moves into
    previous-N/ beside it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    def take(self) -> None:
        """Make the folder, lock it for this process until it ends, and check that nothing of another's is in the way.

        Raises:
            RunFolderError: another process has it (named), it cannot be written, or a file stands where the run would
                write and no run made it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunFolderError(
                f"run.output_dir: {self.path} cannot be written ({error.strerror}): choose another run.output_dir or "
                "run.name"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._lock, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(self._lock)
            self._lock = None
            raise RunFolderError(
                f"{self.path} is in use by {holder}: wait for it, end it, or choose another run.name"
            ) from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        if not self._is_a_runs():
            foreign = [self.path / name for name in (*RESULTS, *FOLDERS) if (self.path / name).exists()]
            if foreign:
                raise RunFolderError(
                    f"{foreign[0]} is there already, and no run made it: move it away, or choose another run.name"
                )

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def finished(self) -> dict[str, Any] | None:
        """Return run.json of a run that came to its end here, or None."""
        try:
            facts = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return facts if isinstance(facts, dict) else None

    def begin(self, config: str, *, resumed: bool) -> Path | None:
        """Mark the folder as this run's and write config.yaml.

        Returns:
            The folder that an earlier run's files were moved into, or None where there were none, or `resumed` (they
            are this run's own).
        """
        aside = None if resumed else self._set_aside()
        (self.path / "run.json").unlink(missing_ok=True)  # the run is on its way again
        (self.path / MARKER).write_text(json.dumps({"made_by": "spanwise"}) + "\n", encoding="utf-8")
        (self.path / "config.yaml").write_text(config, encoding="utf-8")
        return aside

    def _is_a_runs(self) -> bool:
        """Tell whether a run made this folder: by its marker, or by what versions before the marker left."""
        if (self.path / MARKER).exists() or list_checkpoints(self.path / "checkpoints"):
            return True
        return _has_key(self.path / "metrics.jsonl", "step") or _has_key(self.path / "run.json", "training_seconds")

    def _set_aside(self) -> Path | None:
        found = [self.path / name for name in (*RESULTS, *FOLDERS[:2]) if (self.path / name).exists()]
        found += list_checkpoints(self.path / "checkpoints")  # initial_student is made again by every start
        if not found:
            return None
        number = 1
        while (self.path / f"previous-{number}").exists():
            number += 1
        aside = self.path / f"previous-{number}"
        for path in found:
            target = aside / path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
        return aside


def _has_key(path: Path, key: str) -> bool:
    """Tell whether a file begins with a JSON object that has `key`; run.json is one object over several lines."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text if path.suffix == ".json" else text.partition("\n")[0])
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and key in value
