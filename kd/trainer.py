"""The training loop: stages of the curriculum, optimizer steps, schedules, logging, stopping."""

from __future__ import annotations

import signal
import time
from typing import Iterator, NamedTuple

import torch
import torch.distributed as dist

from kd.config_schema import RunConfig, Stage
from kd.data.batches import DemoSource, FileSource, MicroBatch, StepBatches, count_rows
from kd.engine import SUMS, StudentEngine
from kd.objective import TERMS, weights_at
from kd.optimizer import learning_rate
from kd.run_log import RunLog, memory_gib

LOSS_MEAN_DECAY = 0.98  # of the running mean that stage.until.loss_below looks at
MAX_SKIPPED_IN_A_ROW = 10


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class TrainingResult(NamedTuple):
    """`seconds` of training alone; `finished` is False where a signal or the time budget stopped it. `num_too_long` records,
    over all ranks, were left out."""

    steps: int
    seconds: float
    tokens: int
    finished: bool
    num_too_long: int


class _Step(NamedTuple):
    """One optimizer step of a stage of `num_records`; of them `num_too_long`, on this rank so far, do not fit its max_length."""

    stage: Stage
    micro_batches: list[MicroBatch]
    num_records: int
    num_too_long: int
    leave: "_LossBelow | None"


def stage_source(config: RunConfig, stage: Stage, index: int):
    """The records of one stage: files, or the demo corpus (each stage draws its own)."""
    if stage.train is not None:
        return FileSource(stage.train)
    corpus = config.data.demo
    return DemoSource(corpus.num_records, corpus.seed * 1000 + index, stage.mix)


class Trainer:
    """Runs `config.training.steps` optimizer steps; every rank makes one and calls `run`."""

    def __init__(self, config: RunConfig, engine: StudentEngine, teacher, tokenizer, log: RunLog):
        self._config, self._engine, self._teacher, self._tokenizer, self._log = config, engine, teacher, tokenizer, log
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        # Counts and the stop flag travel on the CPU before each step's first forward; NCCL cannot carry CPU tensors.
        self._cpu_group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._stop = False
        self._num_too_long: dict[str, int] = {}  # by stage, over all ranks

    def run(self) -> TrainingResult:
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            return self._run()
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _on_signal(self, number, frame) -> None:
        self._stop = True

    def _run(self) -> TrainingResult:
        config, num_steps = self._config, self._config.training.steps
        started = last_time = time.monotonic()
        window = torch.zeros(len(SUMS) + 4, dtype=torch.float64)  # sums, rows by bit of the steps since the last line
        tokens = last_tokens = skipped_in_a_row = done = logged = 0
        finished = True
        for step, (stage, micro_batches, num_records, num_too_long, leave) in zip(range(num_steps), self._steps()):
            budget = config.training.time_budget_seconds
            stop = self._stop or (budget is not None and time.monotonic() - started >= budget)
            counts, step_tokens, stop, self._num_too_long[stage.name] = self._agree(micro_batches, stop, num_too_long)
            if self._num_too_long[stage.name] == num_records:
                raise TrainingError(f"stage {stage.name}: all of its {num_records} records are longer than max_length ({stage.max_length} tokens), "
                                    "so there is nothing to train on; raise max_length, or cut the records")
            if stop:
                finished = False
                break
            terms = weights_at(config.loss, step, num_steps, has_teacher=self._teacher is not None)
            rate = learning_rate(config.optimizer, step, num_steps)
            self._engine.set_learning_rate(rate)
            report = self._engine.train_step(micro_batches, counts, terms, self._teacher)
            tokens, done = tokens + step_tokens, step + 1
            if report.skipped:
                skipped_in_a_row += 1
                self._report_skip(step, report.suspects, skipped_in_a_row)
            else:
                skipped_in_a_row = 0
                window += torch.cat([report.sums.cpu().double(), counts])
                logged += 1
            if leave is not None and not report.skipped:
                leave.see(self._sum_over_ranks(report.sums[:len(TERMS)].cpu().double()).sum().item())
            self._log.advance()
            if done % config.training.log_every == 0 or done == num_steps:
                now = time.monotonic()
                speed = (tokens - last_tokens) / max(now - last_time, 1e-9)
                self._write_line(done, stage, window, logged, terms.temperature, rate, now - started, speed)
                window.zero_()
                last_time, last_tokens, logged = now, tokens, 0
        return TrainingResult(done, time.monotonic() - started, tokens, finished, sum(self._num_too_long.values()))

    def _steps(self) -> Iterator[_Step]:
        """Micro-batches of each step over the stages of the curriculum, without end in the last one."""
        config = self._config
        for index, stage in enumerate(config.data.stages):
            self._log.say(f"stage {stage.name}: " + (", ".join(stage.train) if stage.train else f"demo corpus, {dict(stage.mix)}"))
            source = stage_source(config, stage, index)
            batches = StepBatches(
                source, self._tokenizer, max_length=stage.max_length,
                micro_batch_size=config.training.micro_batch_size, gradient_accumulation=config.training.gradient_accumulation,
                rank=self._rank, world_size=self._world, seed=config.run.seed)
            until, leave = stage.until, None
            if until is not None and until.loss_below is not None:
                leave = _LossBelow(until.loss_below)
            limit = None if until is None else until.steps or until.max_steps
            for step, micro_batches in enumerate(batches):
                if limit is not None and step >= limit or leave is not None and leave.reached:
                    break
                yield _Step(stage, micro_batches, len(source), batches.num_too_long, leave)

    def _agree(self, micro_batches: list[MicroBatch], stop: bool, num_too_long: int) -> tuple[torch.Tensor, int, bool, int]:
        """Sums over ranks, in one all-reduce: rows by span bit [4], tokens, whether any rank wants to stop, records too long."""
        tokens = sum(int(m.attention_mask.sum()) for m in micro_batches if m.record_ids)
        values = torch.cat([count_rows(micro_batches), torch.tensor([tokens, float(stop), num_too_long], dtype=torch.float64)])
        dist.all_reduce(values, group=self._cpu_group)
        return values[:4], int(values[4]), bool(values[5]), int(values[6])

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(values, group=self._cpu_group)
        return values

    def _report_skip(self, step: int, suspects: tuple[str, ...], in_a_row: int) -> None:
        everyones: list[tuple[str, ...]] = [()] * self._world
        dist.all_gather_object(everyones, suspects, group=self._cpu_group)
        names = [name for names in everyones for name in names]
        found = f"rows of {', '.join(names[:10])}" if names else "no row's loss (an overflow in backward)"
        self._log.say(f"step {step + 1}: the gradient is not finite, so the step is skipped on every rank; not finite: {found}")
        if in_a_row >= MAX_SKIPPED_IN_A_ROW and not self._engine.engine.fp16_enabled():
            raise TrainingError(f"step {step + 1}: {in_a_row} steps in a row had gradients that are not finite ({found}); lower optimizer.lr, "
                                "or look at those records")

    def _write_line(self, step: int, stage: Stage, window: torch.Tensor, num_steps: int, temperature: float, rate: float,
                    seconds: float, speed: float) -> None:
        # Sums are local and must be added over ranks; the counts behind them are global already.
        sums = self._sum_over_ranks(window[:len(SUMS)].clone())
        values = dict(zip(SUMS, sums.tolist()))
        rows = dict(zip(("truth", "tool", "args", "integration"), window[len(SUMS):].tolist()))
        line = {"step": step, "stage": stage.name, "seconds": round(seconds, 3)}
        if num_steps:
            terms = {name: values[name] / num_steps for name in TERMS}
            line |= {"loss": sum(terms.values()), **terms}
            line |= {f"{name}_accuracy": values[f"{name}_accuracy"] / count for name, count in rows.items() if count}
            if self._teacher is not None and rows["truth"]:
                line |= {name: values[name] / rows["truth"] for name in ("teacher_agreement", "teacher_entropy")}
        line |= {"temperature": temperature, "lr": rate, "grad_norm": self._engine.grad_norm(), "tokens_per_second": speed,
                 "memory_gib": memory_gib(self._engine.device), "skipped_steps": int(self._engine.engine.skipped_steps)}
        self._log.line(line)


class _LossBelow:
    """Whether the running mean of the training loss, the same on every rank, has fallen below a limit."""

    def __init__(self, limit: float):
        self._limit, self._mean, self._weight = limit, 0.0, 0.0

    def see(self, loss: float) -> None:
        self._mean = LOSS_MEAN_DECAY * self._mean + (1 - LOSS_MEAN_DECAY) * loss
        self._weight = LOSS_MEAN_DECAY * self._weight + (1 - LOSS_MEAN_DECAY)

    @property
    def reached(self) -> bool:
        return self._weight > 0.5 and self._mean / self._weight < self._limit
