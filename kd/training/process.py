"""Process stages of a run: the answers of each step as the engine trains them, their guards, figures and samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kd.batching.micro_batch import choose_padding
from kd.config.derived import count_step
from kd.config.schema import Rollouts, RunConfig, Stage
from kd.distributed.ranks import Ranks
from kd.errors import SpanwiseError
from kd.models.whole_copy import WholeCopy
from kd.objective.answer_loss import ANSWER_SUMS, ANSWER_TERMS, AnswerSettings
from kd.rollouts.answer import Answer, Judge
from kd.rollouts.answer_rows import WeighedAnswer, count_answers, list_weights, make_batch, weigh
from kd.rollouts.answer_stream import AnswerStream, StreamShape, share_out
from kd.rollouts.guards import check, measure
from kd.rollouts.prompts import PromptOrder
from kd.rollouts.sampler import OpenSampler, Sampler, find_stop_ids, open_sampler
from kd.sources.source import Source
from kd.teacher.source import TeacherSource
from kd.training.engine import AnswerStep, StepReport
from kd.training.progress import Progress


class GuardStop(SpanwiseError, RuntimeError):
    """Guard of action stop that was passed; the message says which, at which step, and what helps."""


class ProcessInputs(NamedTuple):
    """All that the process stages of a run need.

    Attributes:
        sources: records of each stage.
        model: the student, under the engine.
        copy: of it, whole, for sampling.
        teacher: source of targets for any text; None where no stage distils answers.
        export: writes the student's weights as a folder that loads; all ranks together.
        say: told, in words, what a person should know.
        show: given the lines of rollouts.jsonl.
    """

    sources: Sequence[Source]
    tokenizer: Any
    model: Any
    copy: WholeCopy
    teacher: TeacherSource | None
    ranks: Ranks
    export: Callable[[Path], None]
    say: Callable[[str], None]
    show: Callable[[Iterable[dict[str, Any]]], None]


def open_process(config: RunConfig, inputs: ProcessInputs) -> Process | None:
    """Make the process stages of a run, or None where no stage has rollouts."""
    return Process(config, inputs) if any(stage.rollouts is not None for stage in config.data.stages) else None


class Process:
    """Answers of a run's stages; every rank makes one and calls each method together with the others."""

    def __init__(self, config: RunConfig, inputs: ProcessInputs):
        self._config, self._in = config, inputs
        self._stage: int | None = None
        self._stream: AnswerStream | None = None
        self._sampler: Sampler | None = None
        self._answers: list[WeighedAnswer] = []  # of the step that is being taken
        self._figures: dict[str, list[float]] = {}  # since the last line: name -> sum, number
        self._divergence: float | None = None  # mean of the last step, nats
        self._told: set[str] = set()
        self.num_tokens = 0  # of the step's answers, over all ranks

    def state_dict(self, stage: int) -> dict[str, Any] | None:
        """Return, for a checkpoint, the place in the prompts, the answers not yet trained, and the figures so far; None
        of a stage whose answers were not asked for yet.
        """
        if self._stream is None or self._stage != stage:
            return None
        figures = {name: list(pair) for name, pair in self._figures.items()}
        return {"stream": self._stream.state_dict(), "figures": figures, "divergence": self._divergence}

    def look(self, at: Progress) -> AnswerStep | None:
        """Return the answers of the step after `at`, sampled if need be; None in a stage without rollouts, and where a
        guard skips them.

        Raises:
            GuardStop: a guard of action stop is passed.
            DataError, RewardError, CallSyntaxError: of sampling and judging.
        """
        stage = self._config.data.stages[at.stage]
        self._answers, self.num_tokens = [], 0
        if stage.rollouts is None:
            self.close()
            return None
        if self._stage != at.stage or self._stream is None:
            self._open(stage, stage.rollouts, at)
        assert self._stream is not None, "it was opened"
        answers = self._stream.look(_steps_left(self._config, stage, at))
        self._answers = weigh(answers, stage.rollouts)
        self.num_tokens = sum(len(answer.ids) for answer in answers)
        if self._is_skipped(answers, stage.rollouts, at):
            return None
        return self._make_step(stage, stage.rollouts)

    def advance(self, at: Progress, report: StepReport) -> None:
        """Take in the step that was just taken: its terms, and its samples where they are shown."""
        stage = self._config.data.stages[at.stage]
        if self._stream is None or stage.rollouts is None:
            return
        if not report.skipped:
            self._take_in(stage.rollouts, report)
        self._show(stage, stage.rollouts, at)
        self._stream.advance()

    def _take_in(self, rollouts: Rollouts, report: StepReport) -> None:
        sums = dict(zip(ANSWER_SUMS, self._in.ranks.sum(report.answers.cpu().double()).tolist()))
        rows = count_answers(self._answers, rollouts)[0].item()
        if rollouts.distill and rows:
            self._divergence = divergence = sums["divergence"] / rows
            self._add("divergence_from_teacher", divergence)
        for name in ANSWER_TERMS:
            self._add(name, sums[name])
        if rollouts.reward and rollouts.sync_every > 1:
            self._add("clipped", sums["clipped"] / max(self.num_tokens, 1))

    def line(self) -> dict[str, float]:
        """Return the means of the figures since the last call, and the seconds and the speed of sampling."""
        found = {name: total / num for name, (total, num) in self._figures.items() if num}
        self._figures, self._told = {}, set()
        if self._stream is not None:
            seconds, tokens = self._stream.sampling_seconds, self._stream.num_tokens
            found["sampling_seconds"] = round(seconds, 3)
            if seconds > 0:
                found["sampled_tokens_per_second"] = tokens / seconds
            self._stream.sampling_seconds, self._stream.num_tokens = 0.0, 0
        return found

    def close(self) -> None:
        """Free the sampler."""
        if self._sampler is not None:
            self._sampler.close()
        self._stage, self._stream, self._sampler = None, None, None

    def _open(self, stage: Stage, rollouts: Rollouts, at: Progress) -> None:
        self.close()
        given, config = self._in, self._config
        stop_ids = find_stop_ids(given.model, given.tokenizer)
        judge = Judge(given.tokenizer, rollouts.rewards, stop_ids=stop_ids, repairs=rollouts.repair > 0)
        self._sampler = open_sampler(
            OpenSampler(rollouts, given.model, given.copy, given.tokenizer, stop_ids, given.export, given.ranks.rank)
        )
        seed, source = f"{config.run.seed}:{at.stage}", given.sources[at.stage]
        most = stage.max_length - rollouts.max_new_tokens
        order = PromptOrder(source, given.tokenizer, seed, most, rollouts.no_tool)
        num_answers = count_step(config.training, given.ranks.world_size, rollouts).answers
        shape = StreamShape(num_answers, rollouts.samples, rollouts.batch_size, rollouts.sync_every)
        self._stream = AnswerStream(source, order, self._sampler, judge, shape, seed=seed, ranks=given.ranks)
        self._stage = at.stage
        if at.answers is not None:
            self._stream.load_state_dict(at.answers["stream"])
            self._figures, self._divergence = dict(at.answers["figures"]), at.answers["divergence"]
        terms = ", ".join(f"{name} {getattr(rollouts, name):g}" for name in ANSWER_TERMS if getattr(rollouts, name))
        given.say(
            f"stage {stage.name}: {num_answers} answers of the student in each step, {rollouts.samples} to a prompt, "
            f"sampled every {rollouts.sync_every} steps; {terms}"
        )

    def _make_step(self, stage: Stage, rollouts: Rollouts) -> AnswerStep:
        training, ranks = self._config.training, self._in.ranks
        parts = training.gradient_accumulation * ranks.world_size
        records = count_step(training, ranks.world_size, rollouts).records
        bounds = share_out(len(self._answers), training.micro_batch_size, parts, records)
        padding = choose_padding(self._in.tokenizer)
        batches = []
        for number in range(training.gradient_accumulation):
            first, end = bounds(number * ranks.world_size + ranks.rank)
            batches.append(make_batch(self._answers[first:end], rollouts, padding, stage.max_length))
        settings = AnswerSettings(rollouts, self._config.loss, is_stale=rollouts.sync_every > 1)
        teacher = self._in.teacher if rollouts.distill else None
        return AnswerStep(batches, count_answers(self._answers, rollouts), settings, teacher)

    def _is_skipped(self, answers: Sequence[Answer], rollouts: Rollouts, at: Progress) -> bool:
        figures = measure(answers, rollouts)
        for name, value in figures.items():
            self._add(name, value)
        if rollouts.distill and self._divergence is not None:
            figures["impossible"] = self._divergence
        skipped = False
        for breach in check(figures, rollouts.guards):
            where = f"step {at.step + 1}: rollouts: {breach.sentence}"
            if breach.action == "stop":
                raise GuardStop(f"{where}; stopped, as guards.{breach.name}.action says")
            skipped |= breach.action == "skip"
            if breach.name not in self._told:
                self._told.add(breach.name)
                self._in.say(where + ("; its answers are not trained" if breach.action == "skip" else ""))
        self._add("skipped_answers", float(skipped))
        if skipped:
            self._divergence = None  # the next step is tried again
        return skipped

    def _add(self, name: str, value: float) -> None:
        total, num = self._figures.get(name, (0.0, 0))
        self._figures[name] = [total + value, num + 1]

    def _show(self, stage: Stage, rollouts: Rollouts, at: Progress) -> None:
        every = _show_every(self._config, rollouts)
        if every is None or at.step % every or self._in.ranks.rank:
            return
        shown = self._answers[: rollouts.shown]
        self._in.show(_describe(one, at.step, stage.name, rollouts, self._in.tokenizer) for one in shown)


def _steps_left(config: RunConfig, stage: Stage, at: Progress) -> int:
    left = config.training.steps - at.step
    most = None if stage.until is None else stage.until.steps or stage.until.max_steps
    return left if most is None else min(left, most - at.stage_step)


def _show_every(config: RunConfig, rollouts: Rollouts) -> int | None:
    """Return the steps between two that rollouts.jsonl keeps answers of, at most most_shown in all; None for never."""
    if not rollouts.shown or not rollouts.most_shown:
        return None
    lines = config.training.steps / config.training.log_every * rollouts.shown
    return config.training.log_every * max(1, math.ceil(lines / rollouts.most_shown))


def _describe(weighed: WeighedAnswer, step: int, stage: str, rollouts: Rollouts, tokenizer) -> dict[str, Any]:
    """Describe an answer as a line of rollouts.jsonl."""
    answer, advantage = weighed
    correction = None
    if answer.correction is not None:
        kept, ids, _, kind = answer.correction
        correction = {"kept": kept, "kind": kind, "text": tokenizer.decode(ids, skip_special_tokens=False)}
    return {
        "step": step,
        "stage": stage,
        "record": answer.record_id,
        "turn": answer.turn,
        "prompt": answer.number,
        "sample": answer.sample,
        "asked": answer.asked,
        "wanted": answer.wanted,
        "reward": answer.value,
        "parts": answer.parts,
        "advantage": advantage,
        "finished": answer.finished,
        "tokens": [tokenizer.decode([token], skip_special_tokens=False) for token in answer.ids],
        "bits": answer.bits,
        "weights": list_weights(weighed, rollouts),
        "correction": correction,
    }
