"""Run log: progress bar, console, metrics.jsonl, validation.jsonl, rollouts.jsonl, TensorBoard.

Only rank 0 writes. The .jsonl files hold one JSON object a line, flushed as written; a number that is not finite is
null.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch
from tqdm import tqdm

from kd.atomic_files import describe_failure, publish
from kd.distributed.console import say
from kd.toolcalls.json_values import encode_json
from kd.training.trackers import Trackers

try:
    from torch.utils.tensorboard import SummaryWriter
except ModuleNotFoundError:  # a machine that was lent may lack it, and metrics.jsonl has the same numbers
    SummaryWriter = None

METRICS_FILE, VALIDATION_FILE, ROLLOUTS_FILE = "metrics.jsonl", "validation.jsonl", "rollouts.jsonl"
_SHOWN = ("loss", "kd", "hard", "truth", "tool", "args", "integration", "distill", "repair", "reward", "reward_mean")


class RunLog:
    """Log of one run: given a line of metrics each N steps, and closed. On ranks other than 0 it does nothing.

    Files are opened at the first line, so that a run which never takes a step changes none of an earlier one's.
    """

    def __init__(self, run_dir: Path, num_steps: int, *, rank: int = 0, trackers: Trackers | None = None):
        self._trackers = trackers
        self._active, self._run_dir = rank == 0, run_dir
        self._files: dict[str, TextIO] = {}
        self._fails = False  # the last line could not be written
        self._board: Any = None  # a SummaryWriter, where TensorBoard is installed
        self._has_tried_board = False
        hidden = not (self._active and sys.stderr.isatty())
        self._bar = tqdm(total=num_steps, unit="step", dynamic_ncols=True, mininterval=1.0, disable=hidden)

    def resume_at(self, step: int) -> None:
        """Drop the lines past `step`, which will be written again."""
        for path in (self._run_dir / name for name in (METRICS_FILE, VALIDATION_FILE, ROLLOUTS_FILE)):
            if self._active and path.exists():
                kept = [line for line in path.read_bytes().split(b"\n") if _step_of(line) <= step]
                publish(path, b"".join(line + b"\n" for line in kept))
        self._bar.update(step)

    def advance(self) -> None:
        """Move the progress bar by one optimizer step."""
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line for the person watching, clear of the progress bar."""
        if self._active:
            say(text)

    def line(self, values: dict) -> None:
        """Write one line of metrics (`step`, `stage` and numbers) to all places."""
        if not self._active:
            return
        self._try(lambda: self._write(METRICS_FILE, values, ""))
        self._track(values, "")
        terms = "  ".join(f"{name} {values[name]:.4f}" for name in _SHOWN if name in values)
        self.say(
            f"step {values['step']:>6}  {values['stage']}  {terms}  T {values['temperature']:.2f}  lr "
            f"{values['lr']:.2e}  grad {values['grad_norm']:.2f}  {values['tokens_per_second']:.0f} tok/s  "
            f"{values['memory_gib']:.1f} GiB"
        )

    def validation(self, step: int, values: Mapping[str, Mapping[str, float]]) -> None:
        """Write one measurement of the validation splits (split -> metric -> value), a line a split."""
        if not self._active:
            return
        for split, found in values.items():
            line = {"step": step, "split": split, **found}
            self._try(lambda line=line: self._write(VALIDATION_FILE, line, f"validation/{line['split']}/"))
            self._track(line, f"validation/{split}/")
            self.say(f"step {step:>6}  {split}  " + "  ".join(f"{name} {value:.4f}" for name, value in found.items()))

    def rollouts(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Keep some of the student's own answers, a line each."""
        if self._active:
            for line in lines:
                self._try(lambda line=line: self._append(ROLLOUTS_FILE, encode_json(line).decode()))

    def close(self) -> None:
        """Close the files, the trackers and the progress bar."""
        self._bar.close()
        if self._active and self._trackers is not None:
            self._trackers.close()
        for file in filter(None, (*self._files.values(), self._board)):
            self._try(file.close)

    def _track(self, values: Mapping[str, Any], prefix: str) -> None:
        if self._trackers is not None:
            numbers = {prefix + k: v for k, v in values.items() if isinstance(v, (int, float)) and k != "step"}
            self._trackers.log(numbers, values["step"])

    def _try(self, write: Callable[[], None]) -> None:
        """Write, and say where it fails: no step is lost for a line, and the next checkpoint tells a full disk."""
        try:
            write()
            self._fails = False
        except OSError as error:
            if not self._fails:
                said = describe_failure(error, self._run_dir / METRICS_FILE)
                self.say(f"this line of metrics is not kept: {said}; training goes on")
            self._fails = True

    def _write(self, name: str, values: Mapping[str, Any], prefix: str) -> None:
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in values.items()}
        self._append(name, json.dumps(clean, allow_nan=False))
        try:
            self._draw({prefix + k: v for k, v in clean.items() if isinstance(v, (int, float)) and k != "step"}, values)
        except OSError as error:
            self._board = None
            self.say(f"TensorBoard's curves end here ({error.strerror or error}); training goes on")

    def _append(self, name: str, text: str) -> None:
        if name not in self._files:  # by line: what was measured must survive a kill
            self._files[name] = (self._run_dir / name).open("a", encoding="utf-8", buffering=1)
        self._files[name].write(text + "\n")

    def _draw(self, numbers: Mapping[str, float], values: Mapping[str, Any]) -> None:
        if not self._has_tried_board:
            self._has_tried_board = True
            self._open_board()
        for key, value in numbers.items() if self._board else ():
            self._board.add_scalar(key, value, values["step"])

    def _open_board(self) -> None:
        if SummaryWriter is None:
            self.say("tensorboard is not installed: the curves are in metrics.jsonl alone")
        else:
            threading.excepthook = _tell_thread
            self._board = SummaryWriter(str(self._run_dir / "tensorboard"))


def _tell_thread(args: threading.ExceptHookArgs) -> None:
    """Print a thread's error, but not that of TensorBoard's writer, which raises it again in the next call."""
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


def _step_of(line: bytes) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off in mid-write by a kill, or damaged
        return math.inf
    return step if isinstance(step, (int, float)) else math.inf


def memory_gib(device: torch.device) -> float:
    """Return GiB: the peak allocated on a GPU since the start, or on a CPU the resident memory of this process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
