"""The training loop: stages of the curriculum, optimizer steps, schedules, logging, stopping."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from kd.batching.micro_batch import MicroBatch, count_rows
from kd.batching.prefetch import Ahead
from kd.batching.steps import StepBatches, measure
from kd.batching.workers import num_workers
from kd.checkpoints.store import Checkpoints
from kd.config.derived import quarantine_file
from kd.config.schema import RunConfig, Stage
from kd.errors import SpanwiseError
from kd.objective.terms import TERMS, TermWeights, weights_at
from kd.records.quarantine import keep_refused
from kd.rendering.spans import BIT_NAMES
from kd.sources.source import Source
from kd.sources.stages import described
from kd.teacher.source import TeacherSource
from kd.training.engine import SUMS, StudentEngine
from kd.training.log import RunLog, memory_gib
from kd.training.optimizer import learning_rate

LOSS_MEAN_DECAY = 0.98  # of the running mean that stage.until.loss_below looks at
MAX_SKIPPED_IN_A_ROW = 10


class TrainingError(SpanwiseError, RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class TrainingResult(NamedTuple):
    """`stopped` is None, or why training ended before its last step: "signal" or "budget". Of the records seen, over
    all ranks, `num_too_long` and the `num_no_signal` that the teacher has no signal for were left out, `num_truncated`
    cut, and `num_refused` could not be rendered or located."""

    steps: int
    seconds: float
    tokens: int
    stopped: str | None
    num_too_long: int
    num_truncated: int
    num_no_signal: int
    num_refused: int


@dataclass
class _Progress:
    """All that a run is besides weights and optimizer: what a checkpoint must hold for the rest to be the same, bit for
    bit.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    loss_mean: tuple[float, float] = (0.0, 0.0)  # of the stage: running mean and its weight
    tokens: int = 0
    seconds: float = 0.0
    skipped_in_a_row: int = 0
    data: dict[str, Any] | None = None  # of the stage: StepBatches.state_dict after the last step
    num_too_long: dict[str, int] = field(default_factory=dict)  # by stage, over all ranks
    num_truncated: int = 0
    num_no_signal: dict[str, int] = field(default_factory=dict)  # by stage, over all ranks
    refused: dict[str, list[str]] = field(default_factory=dict)  # by stage, over all ranks: the reasons
    window: Tensor = field(
        default_factory=lambda: torch.zeros(len(SUMS) + 4, dtype=torch.float64)
    )  # since the last line: sums, rows by bit
    window_steps: int = 0
    window_tokens: int = 0
    window_seconds: float = 0.0


class _Step(NamedTuple):
    stage: Stage
    micro_batches: list[MicroBatch]
    num_records: int
    state: dict[str, Any]  # of the data, once the step is taken
    following: list[MicroBatch]  # of the stage's next step; none where there is none, or making it failed


class Trainer:
    """Runs `config.training.steps` optimizer steps; every rank makes one and calls `run`.

    With `checkpoints` it saves every save_every steps, at the end and on SIGTERM, and goes on from the newest one.
    `sources` are the records of each stage, the same on every rank (kd/sources/stages.py).
    """

    def __init__(
        self,
        config: RunConfig,
        engine: StudentEngine,
        teacher: TeacherSource | None,
        tokenizer,
        log: RunLog,
        group,
        checkpoints: Checkpoints | None = None,
        *,
        sources: Sequence[Source],
    ):
        self._sources = sources
        self._config, self._engine, self._teacher, self._tokenizer, self._log = config, engine, teacher, tokenizer, log
        self._rank, self._world, self._group, self._checkpoints = (
            dist.get_rank(),
            dist.get_world_size(),
            group,
            checkpoints,
        )
        self._progress = _Progress()
        self._signalled = False

    def run(self) -> TrainingResult:
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            self._restore()
            return self._run()
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _on_signal(self, number, frame) -> None:
        self._signalled = True

    def _run(self) -> TrainingResult:
        config, at, num_steps = self._config, self._progress, self._config.training.steps
        started, stopped = time.monotonic() - at.seconds, None
        for stage, micro_batches, num_records, state, following in self._steps():
            over = config.training.time_budget_seconds is not None and at.seconds >= config.training.time_budget_seconds
            counts, step_tokens, num_truncated, left_out, stopped = self._agree(micro_batches, over)
            refused = at.refused.get(stage.name, []) + (self._refuse(stage, micro_batches) if left_out[2] else [])
            if len(refused) > config.data.max_bad_fraction * num_records:
                raise TrainingError(
                    f"stage {stage.name}: {refused[-1]} ({len(refused)} of its {num_records} records are refused, "
                    "more than "
                    f"data.max_bad_fraction {config.data.max_bad_fraction:g} allows; launch/verify.py finds all "
                    "of them)"
                )
            too_long, no_signal = (
                left_out[0] + at.num_too_long.get(stage.name, 0),
                left_out[1] + at.num_no_signal.get(stage.name, 0),
            )
            if too_long + no_signal + len(refused) == num_records:
                raise TrainingError(
                    f"stage {stage.name}: {too_long} of its {num_records} records are longer than max_length "
                    f"({stage.max_length} tokens)"
                    + (f", the teacher has no signal for {no_signal}" if no_signal else "")
                    + (f", {len(refused)} are refused" if refused else "")
                    + ", so there is nothing to train on; raise max_length, or cut the records"
                )
            if stopped:
                break
            terms = self._terms(at.step)
            if following and self._teacher is not None:
                self._teacher.prefetch(following, self._terms(at.step + 1).temperature)
            rate = learning_rate(config.optimizer, at.step, num_steps)
            self._engine.set_learning_rate(rate)
            report = self._engine.train_step(micro_batches, counts, terms, self._teacher, at.step)
            at.step, at.stage_step, at.data = at.step + 1, at.stage_step + 1, state
            at.num_too_long[stage.name], at.num_no_signal[stage.name], at.num_truncated = (
                too_long,
                no_signal,
                at.num_truncated + num_truncated,
            )
            at.refused[stage.name] = refused
            at.tokens, at.window_tokens = at.tokens + step_tokens, at.window_tokens + step_tokens
            if report.skipped:
                at.skipped_in_a_row += 1
                self._report_skip(report.suspects)
            else:
                at.skipped_in_a_row = 0
                at.window += torch.cat([report.sums.cpu().double(), counts])
                at.window_steps += 1
                if stage.until is not None and stage.until.loss_below is not None:
                    self._see_loss(self._sum_over_ranks(report.sums[: len(TERMS)].cpu().double()).sum().item())
            at.seconds = time.monotonic() - started
            self._log.advance()
            if at.step % config.training.log_every == 0 or at.step == num_steps:
                self._write_line(stage, terms.temperature, rate)
            if at.step % config.training.save_every == 0 or at.step == num_steps:
                self._save()
        if stopped:
            self._save()
        return TrainingResult(
            at.step,
            at.seconds,
            at.tokens,
            stopped,
            sum(at.num_too_long.values()),
            at.num_truncated,
            sum(at.num_no_signal.values()),
            sum(map(len, at.refused.values())),
        )

    def _terms(self, step: int) -> TermWeights:
        terms = weights_at(self._config.loss, step, self._config.training.steps, has_teacher=self._teacher is not None)
        return (
            terms if self._teacher is None else terms._replace(temperature=self._teacher.temperature(terms.temperature))
        )

    def _steps(self) -> Iterator[_Step]:
        """What each remaining step trains on, over the stages of the curriculum."""
        config, at = self._config, self._progress
        while at.step < config.training.steps:
            stage = config.data.stages[at.stage]
            source = self._sources[at.stage]
            self._log.say(f"stage {stage.name}: {described(stage)}")
            batches = self._batches(source, stage)
            made = Ahead(batches)
            while at.step < config.training.steps and not self._leaves(stage):
                micro_batches, state = made.take()
                if at.step + 1 < config.training.steps and not self._surely_last(stage):
                    made.look()
                yield _Step(stage, micro_batches, len(source), state, made.following)
            made.close()  # its workers end here
            at.stage, at.stage_step, at.loss_mean, at.data = at.stage + 1, 0, (0.0, 0.0), None

    def _batches(self, source, stage: Stage) -> StepBatches:
        data, training = self._config.data, self._config.training
        fitting = {
            "max_length": stage.max_length,
            "too_long": data.too_long,
            "rank": self._rank,
            "world_size": self._world,
            "workers": num_workers(data.workers),
            "no_signal": self._teacher.missing if self._teacher is not None else frozenset(),
            "refuse": data.max_bad_fraction > 0,
        }
        lengths = None
        if data.packing == "length":
            lengths = self._sum_over_ranks(measure(source, self._tokenizer, **fitting)).tolist()
            filled = sum(lengths)
            self._log.say(
                f"stage {stage.name}: {len(source)} records of {filled:,} tokens, packed into rows of "
                f"{stage.max_length}"
            )
        batches = StepBatches(
            source,
            self._tokenizer,
            micro_batch_size=training.micro_batch_size,
            gradient_accumulation=training.gradient_accumulation,
            seed=self._config.run.seed,
            lengths=lengths,
            **fitting,
        )
        if self._progress.data is not None:
            batches.load_state_dict(self._progress.data)
        return batches

    def _leaves(self, stage: Stage) -> bool:
        """Whether the stage is over by its own rule; the same on every rank."""
        if stage.until is None:
            return False
        mean, weight = self._progress.loss_mean
        low = stage.until.loss_below is not None and weight > 0.5 and mean / weight < stage.until.loss_below
        return low or self._progress.stage_step >= (stage.until.steps or stage.until.max_steps)

    def _surely_last(self, stage: Stage) -> bool:
        """Whether the stage ends with the step that is being taken, whatever its loss."""
        return stage.until is not None and self._progress.stage_step + 1 >= (stage.until.steps or stage.until.max_steps)

    def _see_loss(self, loss: float) -> None:
        mean, weight = self._progress.loss_mean
        self._progress.loss_mean = (
            LOSS_MEAN_DECAY * mean + (1 - LOSS_MEAN_DECAY) * loss,
            LOSS_MEAN_DECAY * weight + 1 - LOSS_MEAN_DECAY,
        )

    def _save(self) -> None:
        if self._checkpoints is not None:
            random_state = {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            }
            self._checkpoints.save(self._progress.step, {**vars(self._progress), "random_state": random_state})

    def _restore(self) -> None:
        state = self._checkpoints.load() if self._checkpoints is not None else None
        if state is None:
            return
        random_state = state.pop("random_state")
        self._progress = _Progress(**state)
        torch.set_rng_state(random_state["cpu"])
        if random_state["cuda"] is not None:
            torch.cuda.set_rng_state(random_state["cuda"])
        self._log.resume_at(self._progress.step)
        if any(self._progress.refused.values()):
            self._keep(self._progress.refused)  # the file was begun again when the run was
        self._log.say(f"going on from the checkpoint of step {self._progress.step}")

    def _agree(
        self, micro_batches: list[MicroBatch], over_budget: bool
    ) -> tuple[Tensor, int, int, tuple[int, int, int], str | None]:
        """One all-reduce a step: rows by span bit [4], tokens, records cut, records left out (too long, for want of a
        signal, refused), and whether any rank must stop."""
        tokens = sum(int(m.attention_mask.sum()) for m in micro_batches if m.record_ids)
        named = (
            sum(map(len, found))
            for found in zip(*((m.truncated, m.left_out, m.no_signal, m.refused) for m in micro_batches))
        )
        own = [tokens, *named, self._signalled, over_budget]
        values = self._sum_over_ranks(torch.cat([count_rows(micro_batches), torch.tensor(own, dtype=torch.float64)]))
        tokens, truncated, *left_out = map(int, values[4:9])
        return (
            values[:4],
            tokens,
            truncated,
            tuple(left_out),
            "signal" if values[9] else "budget" if values[10] else None,
        )

    def _refuse(self, stage: Stage, micro_batches: list[MicroBatch]) -> list[str]:
        """Why each record of this step that cannot be rendered or located is left out; all ranks together, and rank 0
        keeps them.
        """
        everyones: list[list[str]] = [[] for _ in range(self._world)]
        dist.all_gather_object(
            everyones, [reason for micro in micro_batches for reason in micro.refused], group=self._group
        )
        reasons = [reason for own in everyones for reason in own]
        self._log.say(f"stage {stage.name}: records left out: {len(reasons)}; {reasons[0]}")
        self._keep({stage.name: reasons})
        return reasons

    def _keep(self, refused: dict[str, list[str]]) -> None:
        if self._rank == 0:
            keep_refused(
                quarantine_file(self._config),
                ({"stage": stage, "reason": reason} for stage, reasons in refused.items() for reason in reasons),
            )

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(values, group=self._group)
        return values

    def _report_skip(self, suspects: tuple[str, ...]) -> None:
        at = self._progress
        everyones: list[tuple[str, ...]] = [()] * self._world
        dist.all_gather_object(everyones, suspects, group=self._group)
        names = [name for names in everyones for name in names]
        found = f"rows of {', '.join(names[:10])}" if names else "no row's loss (an overflow in backward)"
        self._log.say(
            f"step {at.step}: the gradient is not finite, so the step is skipped on every rank; not finite: {found}"
        )
        if at.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW and not self._engine.engine.fp16_enabled():
            raise TrainingError(
                f"step {at.step}: {at.skipped_in_a_row} steps in a row had gradients that are not finite "
                f"({found}); lower "
                "optimizer.lr, or look at those records"
            )

    def _write_line(self, stage: Stage, temperature: float, rate: float) -> None:
        at = self._progress
        # Sums are local and must be added over ranks; the counts behind them are global already.
        values = dict(zip(SUMS, self._sum_over_ranks(at.window[: len(SUMS)].clone()).tolist()))
        rows = dict(zip(BIT_NAMES, at.window[len(SUMS) :].tolist()))
        line = {"step": at.step, "stage": stage.name, "seconds": round(at.seconds, 3)}
        if at.window_steps:
            terms = {name: values[name] / at.window_steps for name in TERMS}
            line |= {"loss": sum(terms.values()), **terms}
            line |= {f"{name}_accuracy": values[f"{name}_accuracy"] / count for name, count in rows.items() if count}
            if self._teacher is not None and rows["truth"]:
                line |= {
                    name: values[name] / rows["truth"]
                    for name in ("teacher_agreement", "teacher_entropy")[: 1 + self._teacher.has_entropy]
                }
        line |= {
            "temperature": temperature,
            "lr": rate,
            "grad_norm": self._engine.grad_norm(),
            "tokens_per_second": at.window_tokens / max(at.seconds - at.window_seconds, 1e-9),
            "memory_gib": memory_gib(self._engine.device),
            "skipped_steps": int(self._engine.engine.skipped_steps),
        }
        self._log.line(line)
        at.window.zero_()
        at.window_steps, at.window_tokens, at.window_seconds = 0, 0, at.seconds
