"""Job of benchmarks/peers.py: models, data and steps that every method shares, and the record of one method's steps."""

from __future__ import annotations

import functools
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from benchmarks.measure import resident_bytes, restart_peak
from kd.batching.fit import Sample
from kd.batching.micro_batch import MicroBatch, pad_samples
from kd.batching.record_key import record_key
from kd.config.fields import Dtype
from kd.config.schema import Optimizer
from kd.rendering.spans import TRUTH
from kd.training.stopwatch import Stopwatch

OPTIMIZER = Optimizer(lr=1e-4, schedule="constant")
PARTS = ("teacher", "forward", "backward", "optimizer")
IGNORED = -100


class Job(NamedTuple):
    """Models, data and steps of one comparison; the same for every method."""

    folder: str  # of models, data and results
    size: str
    vocab: int
    length: int
    batch: int
    prompt: int  # tokens at the beginning of each record that are not supervised
    warmup: int
    steps: int
    threads: int
    deepspeed: str  # JSON of our engine

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> Dtype:
        """Precision of the arithmetic, by the name that kd uses."""
        return "bf16" if torch.cuda.is_available() else "fp32"

    def autocast(self) -> torch.autocast:
        """Make the context of a student with fp32 weights."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bf16")

    def ids(self) -> Tensor:
        """Read the records' tokens [S, B, T] of all steps."""
        return torch.load(Path(self.folder) / "ids.pt")

    def labels(self, ids: Tensor) -> Tensor:
        """Make labels as transformers takes them: a token's own id at its own place."""
        found = ids.clone()
        found[..., : self.prompt] = IGNORED
        return found

    def micro_batches(self) -> list[MicroBatch]:
        """Make our batches of the same records."""
        found = []
        for number, batch in enumerate(self.ids().numpy().astype("int32")):
            bits = (batch * 0).astype("uint8")
            bits[:, self.prompt :] = TRUTH
            samples = [
                Sample(f"{number}-{i}", row, bits[i], 1.0, record_key(row.tolist())) for i, row in enumerate(batch)
            ]
            found.append(pad_samples(samples, 0))
        return found

    def load(self, which: str) -> Any:
        """Load student or teacher as transformers does; on a GPU the student keeps fp32 weights."""
        dtype = torch.bfloat16 if self.dtype == "bf16" and which == "teacher" else torch.float32
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(Path(self.folder) / which, dtype=dtype)
        model.config.use_cache = False
        return model.to(self.device).train(which == "student").requires_grad_(which == "student")


class Recorder:
    """Times, parts, losses and memory of a method's steps."""

    def __init__(self, job: Job):
        self._job, self._times, self._processor, self._losses = job, [], [], []
        self._watches = {name: Stopwatch(job.device) for name in PARTS}
        self._parts: list[dict[str, float]] = []
        self._held = self._began = self._used = 0.0

    def hold(self) -> None:
        """Note what is resident before a model is loaded: the libraries."""
        self._held = resident_bytes("VmRSS")

    def part(self, name: str) -> Stopwatch:
        """Return the clock of a part; teacher may run within forward, which is then told without it."""
        return self._watches[name]

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time a method of an object as a part."""
        call = getattr(owner, name)

        @functools.wraps(call)
        def timed(*args, **kwargs):
            with self.part(part):
                return call(*args, **kwargs)

        setattr(owner, name, timed)

    def begin(self) -> None:
        """Begin a step; the peak of memory is of the steps, not of the loading before them."""
        if not self._times:
            _reset_peak(self._job.device)
        self._synchronize()
        for watch in self._watches.values():
            watch.take()
        self._used, self._began = time.process_time(), time.perf_counter()

    def end(self, loss: float) -> None:
        """End a step."""
        self._synchronize()
        self._times.append(1e3 * (time.perf_counter() - self._began))
        self._processor.append(1e3 * (time.process_time() - self._used))
        self._losses.append(loss)
        parts = {name: 1e3 * watch.take() for name, watch in self._watches.items()}
        self._parts.append(parts | {"forward": max(0.0, parts["forward"] - parts["teacher"])})

    def result(self) -> dict:
        """Return what was measured; warm-up steps are in the memory and in the losses alone."""
        peak = resident_bytes("VmHWM")
        if self._job.device.type == "cuda":
            peak, self._held = torch.cuda.max_memory_allocated(), 0
        first = self._job.warmup
        timed = self._parts[first:]
        return {
            "step_ms": self._times[first:],
            "processor_ms": self._processor[first:],
            "parts_ms": {name: round(statistics.median(parts[name] for parts in timed), 3) for name in PARTS},
            "losses": self._losses,
            "peak_bytes": peak,
            "libraries_bytes": self._held,
        }

    def _synchronize(self) -> None:
        if self._job.device.type == "cuda":
            torch.cuda.synchronize()


def _reset_peak(device: torch.device) -> None:
    restart_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
