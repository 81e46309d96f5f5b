"""The training loop: optimizer steps over the curriculum, schedules, logging, checkpoints, stopping."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch

from kd.checkpoints.store import REMEDY
from kd.config.derived import quarantine_file
from kd.config.schema import RunConfig, Stage
from kd.errors import SpanwiseError
from kd.objective.answer_loss import ANSWER_TERMS
from kd.objective.terms import TERMS, TermWeights, weights_at
from kd.records.quarantine import keep_refused
from kd.rendering.spans import BIT_NAMES
from kd.teacher.source import TeacherSource
from kd.training.curriculum import Curriculum, StageStep
from kd.training.engine import SUMS, StepReport, StudentEngine
from kd.training.log import RunLog, memory_gib
from kd.training.optimizer import learning_rate
from kd.training.process import Process
from kd.training.progress import LOSS_MEAN_DECAY, Progress
from kd.training.stopping import StopRequest
from kd.training.tally import LEFT_OUT, NO_TARGETS, REFUSED, TOO_LONG, StepTally, Tally, tally_step
from kd.training.validation import Best, Validator

MAX_SKIPPED_IN_A_ROW = 10
MIN_SKIPPED = 10  # fewer skipped steps than this never stop a run
SPIKES_AFTER = 20  # steps of a stage, whose loss no mean of fewer foretells


class TrainingError(SpanwiseError, RuntimeError):
    """Training that cannot continue; the message says at which step and why."""


class TrainingResult(NamedTuple):
    """End of training: `stopped` is None, or why it ended before its last step: signal, budget or patience."""

    steps: int
    seconds: float
    processor_seconds: float  # of this rank's process
    tokens: int
    stopped: str | None
    tally: Tally  # records that were not trained whole
    num_skipped: int = 0  # optimizer steps that were skipped, as their gradient was not finite
    best: Best | None = None  # by training.keep_best


class Saver(Protocol):
    """Checkpoints of a run (kd/checkpoints/store.py)."""

    def save(self, step: int, state: dict) -> None: ...
    def load(self) -> dict | None: ...


class Beside(NamedTuple):
    """Work of a run beside its steps over records."""

    validator: Validator | None = None  # measurements while it trains
    process: Process | None = None  # the student's own answers, where a stage has rollouts
    flops: Callable[[float], float] | None = None  # of a token, by the mean length of its sequence, for mfu


class Trainer:
    """Optimizer steps of one run; every rank makes one and calls `run`.

    Args:
        config: loss, optimizer, training and data.max_bad_fraction are read.
        curriculum: data of each step.
        checkpoints: saved to every save_every steps, at the end and on a signal, and resumed from; None keeps none.
        beside: measurements and the student's own answers; None for neither.
        begin: called on every rank once the run is on its way: after resuming (True), or after its first step (False).
    """

    def __init__(
        self,
        config: RunConfig,
        engine: StudentEngine,
        teacher: TeacherSource | None,
        curriculum: Curriculum,
        log: RunLog,
        checkpoints: Saver | None = None,
        *,
        beside: Beside | None = None,
        begin: Callable[[bool], None] = lambda resumed: None,
    ):
        self._config, self._engine, self._teacher, self._curriculum = config, engine, teacher, curriculum
        self._log, self._ranks, self._checkpoints = log, curriculum.ranks, checkpoints
        self._validator, self._process, self._flops = beside or Beside()
        self._quarantine = quarantine_file(config.data, config.run)
        self._begin, self._has_begun = begin, False
        self._progress = Progress()
        self._stop = StopRequest()
        # When this training would have begun, had this process done all of it: by the clock, and by its processor time
        self._began = self._began_processor = 0.0

    def run(self) -> TrainingResult:
        """Train to the last step, or until a signal or the time budget stops it.

        Raises:
            TrainingError: nothing is left to train on, too many records are refused, or the gradient is never finite.
        """
        with self._stop:
            self._log.say(f"kill -USR1 {os.getpid()} saves a checkpoint while it trains")
            self._resume()
            return self._run()

    def _run(self) -> TrainingResult:
        at, budget = self._progress, self._config.training.time_budget_seconds
        self._began, self._began_processor = time.monotonic() - at.seconds, time.process_time() - at.processor_seconds
        stopped, asked = None, time.monotonic()
        for step in self._curriculum.steps(at):
            at.window.waited += time.monotonic() - asked
            over_budget = budget is not None and at.seconds >= budget
            asked = time.monotonic()
            tally = tally_step(
                step.micro_batches,
                self._ranks,
                signalled=self._stop.is_asked(),
                over_budget=over_budget,
                saves=self._stop.take_save(),
            )
            at.window.waited_for_ranks += time.monotonic() - asked
            refusals = self._keep_refusals(step) if tally.left_out[REFUSED] else []
            self._check_left_out(step, tally, refusals)
            stopped = tally.stopped or self._is_out_of_patience()
            if stopped:
                self._save()
                break
            self._take_step(step, tally, refusals)
            asked = time.monotonic()
        if stopped is None and at.tokens == 0:
            raise TrainingError(
                f"nothing was trained in {at.step} steps ({'; '.join(at.tally.describe()) or 'no record fits'}): raise "
                "the stages' max_length, cut the records, or train more steps"
            )
        return TrainingResult(
            at.step, at.seconds, at.processor_seconds, at.tokens, stopped, at.tally, at.num_skipped, at.best
        )

    def _take_step(self, step: StageStep, tally: StepTally, refusals: list[str]) -> None:
        training, at = self._config.training, self._progress
        terms, rate = self._terms(at.step), learning_rate(self._config.optimizer, at.step, training.steps)
        if step.following and self._teacher is not None:
            self._teacher.prefetch(step.following, self._terms(at.step + 1).temperature)
        self._engine.set_learning_rate(rate)
        answers = None if self._process is None else self._process.look(at)
        refuses = None if training.loss_spike_factor is None else self._is_spike
        report = self._engine.train_step(
            step.micro_batches, tally.rows, terms, self._teacher, at.step, answers, refuses
        )
        at.step, at.stage_step, at.data = at.step + 1, at.stage_step + 1, step.state
        at.tally.add(step.stage.name, tally.left_out, refusals)
        num_tokens = tally.num_tokens
        if self._process is not None:
            self._process.advance(at, report)
            num_tokens += self._process.num_tokens
        at.tokens, at.window.tokens = at.tokens + num_tokens, at.window.tokens + num_tokens
        at.window.samples += tally.num_samples
        if report.skipped:
            at.skipped_in_a_row, at.num_skipped = at.skipped_in_a_row + 1, at.num_skipped + 1
            self._report_skip(report)
        else:
            at.skipped_in_a_row = 0
            self._add_to_window(report, tally, step.stage)
        at.seconds = time.monotonic() - self._began
        at.processor_seconds = time.process_time() - self._began_processor
        self._log.advance()
        self._once_on_its_way(resumed=False)
        if at.step % training.log_every == 0 or at.step == training.steps:
            self._write_line(step.stage, terms.temperature, rate)
        self._validate(terms)
        if at.step % training.save_every == 0 or at.step == training.steps or tally.saves:
            self._save()
            if tally.saves:
                self._log.say(f"step {at.step}: saved, as SIGUSR1 asked; training goes on")

    def _add_to_window(self, report: StepReport, tally: StepTally, stage: Stage) -> None:
        at = self._progress
        at.window.sums += torch.cat([report.sums.cpu().double(), tally.rows])
        at.window.steps += 1
        is_seen = self._config.training.loss_spike_factor is not None
        if stage.until is not None and stage.until.loss_below is not None and not is_seen:
            at.see_loss(self._sum_loss(report.sums))

    def _sum_loss(self, sums: torch.Tensor) -> float:
        """Return a step's loss over all ranks."""
        return self._ranks.sum(sums[: len(TERMS)].cpu().double()).sum().item()

    def _is_spike(self, sums: torch.Tensor) -> bool:
        """Tell whether a step's loss is too far above the running mean, and let the mean follow it, up to that."""
        at, factor = self._progress, self._config.training.loss_spike_factor
        assert factor is not None, "asked of a run that has it alone"
        loss, (mean, weight) = self._sum_loss(sums), at.loss_mean
        limit = factor * mean / weight if weight > 1 - LOSS_MEAN_DECAY**SPIKES_AFTER else math.inf
        if math.isfinite(loss):
            at.see_loss(min(loss, limit))
        return loss > limit

    def _validate(self, terms: TermWeights) -> None:
        if self._validator is not None:
            began, began_processor = time.monotonic(), time.process_time()
            self._progress.best = self._validator.look(
                self._progress.step, self._config.training.steps, terms, self._progress.best
            )
            self._began += time.monotonic() - began
            self._began_processor += time.process_time() - began_processor

    def _is_out_of_patience(self) -> str | None:
        found = self._validator is not None and self._validator.is_out_of_patience(self._progress.best)
        return "patience" if found else None

    def _terms(self, step: int) -> TermWeights:
        terms = weights_at(self._config.loss, step, self._config.training.steps, has_teacher=self._teacher is not None)
        if self._teacher is None:
            return terms
        return terms._replace(temperature=self._teacher.temperature(terms.temperature))

    def _check_left_out(self, step: StageStep, tally: StepTally, refusals: list[str]) -> None:
        """Raise where more records of the stage are refused than max_bad_fraction allows, or none is left to train
        on.
        """
        stage, so_far, allowed = step.stage, self._progress.tally, self._config.data.max_bad_fraction
        counts = {reason: so_far.count(reason, stage.name) + tally.left_out[reason] for reason in LEFT_OUT}
        if counts[REFUSED] > allowed * step.num_records:
            last = [*so_far.refusals.get(stage.name, []), *refusals][-1]
            raise TrainingError(
                f"stage {stage.name}: {last} ({counts[REFUSED]} of its {step.num_records} records are refused, more "
                f"than data.max_bad_fraction {allowed:g} allows; launch/verify.py finds all of them)"
            )
        if sum(counts.values()) == step.num_sequences:
            what = "records" if step.num_sequences == step.num_records else "sequences"
            raise TrainingError(
                f"stage {stage.name}: {counts[TOO_LONG]} of its {step.num_sequences} {what} are longer than max_length "
                f"({stage.max_length} tokens)"
                + (f", the teacher has no targets for {counts[NO_TARGETS]}" if counts[NO_TARGETS] else "")
                + (f", {counts[REFUSED]} are refused" if counts[REFUSED] else "")
                + ", so there is nothing to train on; raise max_length, or cut the records"
            )

    def _keep_refusals(self, step: StageStep) -> list[str]:
        """Return why each record of this step, on any rank, cannot be rendered or located; rank 0 keeps them in the
        quarantine.
        """
        everyones = self._ranks.gather([reason for micro in step.micro_batches for reason in micro.refused])
        reasons = [reason for own in everyones for reason in own]
        self._log.say(f"stage {step.stage.name}: records left out: {len(reasons)}; {reasons[0]}")
        self._keep({step.stage.name: reasons})
        return reasons

    def _keep(self, refusals: Mapping[str, list[str]]) -> None:
        if self._ranks.rank == 0:
            lines = ({"stage": stage, "reason": reason} for stage, reasons in refusals.items() for reason in reasons)
            keep_refused(self._quarantine, lines)

    def _save(self) -> None:
        answers = None if self._process is None else self._process.state_dict(self._progress.stage)
        if answers is not None:
            self._progress.answers = answers
        if self._checkpoints is not None:
            self._checkpoints.save(self._progress.step, self._progress.state_dict())

    def _resume(self) -> None:
        state = self._checkpoints.load() if self._checkpoints is not None else None
        if state is None:
            return
        try:
            self._progress = Progress.resume(state, self._ranks.rank)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise TrainingError(f"the newest checkpoint's state is none of a training ({what}): {REMEDY}") from error
        self._once_on_its_way(resumed=True)
        self._log.resume_at(self._progress.step)
        if any(self._progress.tally.refusals.values()):
            self._keep(self._progress.tally.refusals)  # the file was begun again when the run was
        self._log.say(f"going on from the checkpoint of step {self._progress.step}")

    def _once_on_its_way(self, *, resumed: bool) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._begin(resumed)

    def _report_skip(self, report: StepReport) -> None:
        at, factor = self._progress, self._config.training.loss_spike_factor
        names = [name for names in self._ranks.gather(report.suspects) for name in names]
        found = f"rows of {', '.join(names[:10])}" if names else "no row's loss (an overflow in backward)"
        why, which = "the gradient is not finite", "not finite"
        if report.refused:
            why, which = f"the loss is over {factor:g} times its running mean (training.loss_spike_factor)", "largest"
        self._log.say(f"step {at.step}: {why}, so the step is skipped on every rank; {which}: {found}")
        if self._engine.scales_loss and not report.refused:
            return  # a loss scale that was too large is found by skipping
        steps, allowed = self._config.training.steps, self._config.training.max_skipped_fraction
        if at.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            reason = f"{at.skipped_in_a_row} steps in a row were skipped, the last one because {why}"
        elif at.num_skipped >= MIN_SKIPPED and at.num_skipped > allowed * steps:
            reason = (
                f"{at.num_skipped} steps were skipped, more than training.max_skipped_fraction ({allowed:g}) of {steps}"
            )
        else:
            return
        raise TrainingError(f"step {at.step}: {reason} ({found}); lower optimizer.lr, or look at those records")

    def _write_line(self, stage: Stage, temperature: float, rate: float) -> None:
        at, window = self._progress, self._progress.window
        # Sums are local and must be added over ranks; the counts behind them are global already.
        values = dict(zip(SUMS, self._ranks.sum(window.sums[: len(SUMS)].clone()).tolist()))
        rows = dict(zip(BIT_NAMES, window.sums[len(SUMS) :].tolist()))
        line = {"step": at.step, "stage": stage.name, "seconds": round(at.seconds, 3)}
        own: dict[str, float] = {}
        if window.steps:
            terms = {name: values[name] / window.steps for name in TERMS}
            own = self._process.line() if self._process is not None else {}
            terms |= {name: own.pop(name) for name in ANSWER_TERMS if name in own}
            line |= {"loss": sum(terms.values()), **terms}
            line |= {f"{name}_accuracy": values[f"{name}_accuracy"] / count for name, count in rows.items() if count}
            if self._teacher is not None and rows["truth"]:
                shown = ("teacher_agreement", "teacher_entropy")[: 1 + self._teacher.has_entropy]
                line |= {name: values[name] / rows["truth"] for name in shown}
        seconds = max(at.seconds - window.began, 1e-9)
        line |= {
            "temperature": temperature,
            "lr": rate,
            "grad_norm": self._engine.grad_norm(),
            "tokens_per_second": window.tokens / seconds,
            "data_wait": min(window.waited / seconds, 1.0),
            "rank_wait": min(window.waited_for_ranks / seconds, 1.0),
            "teacher_wait": min(self._engine.teacher_time.take() / seconds, 1.0),
            **self._utilisation(window.tokens / seconds, window.tokens / max(window.samples, 1)),
            "sequences": window.samples,
            "memory_gib": memory_gib(self._engine.device),
            "skipped_steps": self._engine.skipped_steps,
            **own,
        }
        self._log.line(line)
        window.restart(at.seconds)

    def _utilisation(self, tokens_per_second: float, length: float) -> dict[str, float]:
        """Give mfu, where the peak is known: operations that the model needs over those that its devices can do."""
        peak = self._config.training.peak_tflops
        if peak is None or self._flops is None:
            return {}
        return {"mfu": tokens_per_second * self._flops(length) / (peak * 1e12 * self._ranks.world_size)}
