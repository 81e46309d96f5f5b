"""A training loop without a model: what kd.training.trainer.Trainer is given, and what it writes."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from kd.config.load import load_config
from kd.config.schema import RunConfig
from kd.training.curriculum import StageStep
from kd.training.engine import StepReport
from kd.training.stopwatch import Stopwatch

CONFIG = """\
run: {name: t}
tokenizer: {path: unused}
student: {architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4}
data: {demo: {num_records: 8}, stages: [{name: a, mix: {single: 1}, max_length: 64}]}
training: {steps: %d, log_every: %d, deepspeed: ds_configs/zero3_cpu.json, %s}
"""


def configure(folder: Path, steps: int, more: str = "") -> RunConfig:
    """Load a configuration of `steps` steps that logs the last one; `more` are further keys of training."""
    (folder / "run.yaml").write_text(CONFIG % (steps, steps, more))
    return load_config(folder / "run.yaml")


class ScriptedEngine:
    """Engine on a CPU whose steps a test writes, as `take`."""

    device, scales_loss, skipped_steps = torch.device("cpu"), False, 0

    def __init__(self) -> None:
        self.teacher_time = Stopwatch(self.device)

    def set_learning_rate(self, value):
        pass

    def train_step(self, micro_batches, rows, terms, teacher, step, answers=None, refuses=None) -> StepReport:
        return self.take(step, refuses)

    def take(self, step, refuses) -> StepReport:
        raise NotImplementedError

    def grad_norm(self):
        return 1.0


class EmptySteps:
    """Curriculum of steps without records, each of which takes `seconds` to come."""

    def __init__(self, config: RunConfig, ranks, seconds: float = 0.0):
        self._config, self._seconds, self.ranks = config, seconds, ranks

    def steps(self, at):
        while at.step < self._config.training.steps:
            time.sleep(self._seconds)
            yield StageStep(self._config.data.stages[0], 8, 8, [], {}, [])


class KeptLog:
    """Log that keeps what it is told."""

    def __init__(self) -> None:
        self.said, self.lines = [], []
        self.say, self.line = self.said.append, self.lines.append

    def advance(self):
        pass
