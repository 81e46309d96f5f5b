"""Run log: progress bar, console, metrics.jsonl, TensorBoard.

Only rank 0 writes. metrics.jsonl holds one JSON object a line, flushed as written; a number that is not finite is null.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch
from tqdm import tqdm

from kd.atomic_files import describe_failure, publish

try:
    from torch.utils.tensorboard import SummaryWriter
except ModuleNotFoundError:  # a machine that was lent may lack it, and metrics.jsonl has the same numbers
    SummaryWriter = None

_SHOWN = ("loss", "kd", "hard", "truth", "tool", "args", "integration")


class RunLog:
    """Log of one run: given a line of metrics each N steps, and closed. On ranks other than 0 it does nothing.

    Files are opened at the first line, so that a run which never takes a step changes none of an earlier one's.
    """

    def __init__(self, run_dir: Path, num_steps: int, *, rank: int = 0):
        self._active, self._run_dir = rank == 0, run_dir
        self._path = run_dir / "metrics.jsonl"
        self._metrics: TextIO | None = None
        self._fails = False  # the last line could not be written
        self._board: Any = None  # a SummaryWriter, where TensorBoard is installed
        hidden = not (self._active and sys.stderr.isatty())
        self._bar = tqdm(total=num_steps, unit="step", dynamic_ncols=True, mininterval=1.0, disable=hidden)

    def resume_at(self, step: int) -> None:
        """Drop the lines past `step`, which will be written again."""
        if self._active and self._path.exists():
            kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            publish(self._path, "".join(line + "\n" for line in kept).encode())
        self._bar.update(step)

    def advance(self) -> None:
        """Move the progress bar by one optimizer step."""
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line for the person watching, clear of the progress bar."""
        if self._active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def line(self, values: dict) -> None:
        """Write one line of metrics (`step`, `stage` and numbers) to all places."""
        if not self._active:
            return
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in values.items()}
        self._try(lambda: self._write(clean))
        terms = "  ".join(f"{name} {values[name]:.4f}" for name in _SHOWN if name in values)
        self.say(
            f"step {values['step']:>6}  {values['stage']}  {terms}  T {values['temperature']:.2f}  lr "
            f"{values['lr']:.2e}  grad {values['grad_norm']:.2f}  {values['tokens_per_second']:.0f} tok/s  "
            f"{values['memory_gib']:.1f} GiB"
        )

    def close(self) -> None:
        """Close the files and the progress bar."""
        self._bar.close()
        for file in filter(None, (self._metrics, self._board)):
            self._try(file.close)

    def _write(self, line: dict) -> None:
        if self._metrics is None:
            self._metrics = self._open()
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        for name, value in line.items():
            if self._board and isinstance(value, (int, float)) and name != "step":
                self._board.add_scalar(name, value, line["step"])

    def _try(self, write: Callable[[], None]) -> None:
        """Write, and say where it fails: no step is lost for a line, and the next checkpoint tells a full disk."""
        try:
            write()
            self._fails = False
        except OSError as error:
            if not self._fails:
                self.say(f"this line of metrics is not kept: {describe_failure(error, self._path)}; training goes on")
            self._fails = True

    def _open(self) -> TextIO:
        if SummaryWriter is None:
            self.say("tensorboard is not installed: the curves are in metrics.jsonl alone")
        else:
            self._board = SummaryWriter(str(self._run_dir / "tensorboard"))
        return self._path.open("a", encoding="utf-8", buffering=1)  # by line: what was measured must survive a kill


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # cut off in mid-write by a kill
        return math.inf


def memory_gib(device: torch.device) -> float:
    """Return GiB: the peak allocated on a GPU since the start, or on a CPU the resident memory of this process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
