"""End of a run, once the student is exported: its facts, its report, and what is said where they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist

from kd.atomic_files import describe_failure, publish
from kd.config.schema import Data, RunConfig
from kd.errors import SpanwiseError
from kd.evaluation.files import format_table
from kd.evaluation.held_out import describe_command
from kd.models.load import count_parameters, read_model_config
from kd.records.conversation import describe_notes
from kd.reports.run_page import write_report
from kd.sources.stages import Sources, describe
from kd.toolcalls.json_values import encode_json
from kd.training.tally import REFUSED
from kd.training.trainer import TrainingResult


class JudgingError(SpanwiseError, RuntimeError):
    """Failure after training: the student is exported, but not evaluated, or without its report."""

    exit_code = 3


class Outcome(NamedTuple):
    """End of a run, as its report tells it."""

    result: TrainingResult
    wall_seconds: float
    sources: Sources
    no_teacher: str | None  # why the evaluation leaves the teacher out
    shared: list[str]  # held-out splits that are trained on too


@contextmanager
def after_training(data: Data, run_dir: Path) -> Iterator[None]:
    """Turn whatever fails once the student is exported into a JudgingError, so that it is never taken for a lost
    run.
    """
    try:
        yield
    except Exception as error:
        command = describe_command(run_dir, data)
        alone = f", or evaluate the student alone: {command}" if command else ""
        raise JudgingError(
            f"the student is trained and exported to {run_dir / 'student'}, but its evaluation or report failed: "
            f"{describe_failure(error, run_dir)}; mend that, and give the same command again (it trains nothing more)"
            f"{alone}"
        ) from error


def finish(
    config: RunConfig, run_dir: Path, outcome: Outcome, metrics: dict | None, say: Callable[[str], None]
) -> None:
    """Write run.json and the report, and say where they are."""
    result = outcome.result
    facts: dict[str, Any] = {
        "student_parameters": count_parameters(read_model_config(run_dir / "student")),
        "wall_seconds": outcome.wall_seconds,
        "training_seconds": result.seconds,
        "processor_seconds": result.processor_seconds,  # of training, on rank 0; threads that wait busily count
        "steps": result.steps,
        "tokens": result.tokens,
        "stopped": result.stopped,
        "best": None if result.best is None else {"metric": config.training.keep_best, **result.best._asdict()},
        "data": "; ".join(f"{stage.name}: {describe(stage)}" for stage in config.data.stages),
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__},
        "world_size": dist.get_world_size(),
        "notes": _write_notes(config, outcome),
    }
    if config.teacher is not None:
        model_config = read_model_config(config.teacher.path, config.teacher.revision, key="teacher.path")
        facts["teacher_parameters"] = count_parameters(model_config)
    report = write_report(run_dir, facts)
    publish(run_dir / "run.json", encode_json(facts, indent=2) + b"\n")  # the last: it says that the run is finished
    if metrics:
        say(format_table(metrics))
    say(f"student  {run_dir / 'student'}\nreport   {report}")


def _write_notes(config: RunConfig, outcome: Outcome) -> list[str]:
    """Write what a reader of the report must know to read its numbers."""
    notes = []
    if config.student.init == "teacher_layers":
        notes.append(
            "The student started from layers of the teacher (student.init: teacher_layers), not from random weights."
        )
    if outcome.no_teacher:
        notes.append(f"{outcome.no_teacher[0].upper()}{outcome.no_teacher[1:]}.")
    notes += [f"{note}." for note in outcome.shared]
    if outcome.result.num_skipped:
        notes.append(
            f"{outcome.result.num_skipped} of {outcome.result.steps} optimizer steps were skipped, as their gradient "
            "was not finite; the log names the records."
        )
    sources, tally = outcome.sources, outcome.result.tally
    if sources.num_refused:
        notes.append(f"{sources.num_refused} lines of the data were refused.")
    notes += [f"Of the data, {line}." for line in describe_notes(sources.notes)]
    notes += [f"{sentence}." for sentence in tally.describe()]
    if sources.num_refused or tally.count(REFUSED):
        notes.append(f"All that was refused is in {sources.quarantine}.")
    return notes
