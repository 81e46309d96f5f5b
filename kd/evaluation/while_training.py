"""Validation of a run: its splits, its measurements by teacher forcing and by greedy generation, its best step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd.batching.fit import FitPolicy
from kd.checkpoints.export_hf import export_student
from kd.config import schema
from kd.config.defaults import teacher_source
from kd.config.derived import longest_length, run_folder, uses_teacher
from kd.distributed.collectives import on_every_rank, on_rank_0
from kd.distributed.ranks import Ranks
from kd.errors import SpanwiseError
from kd.evaluation.answerers.local_model import LocalModel
from kd.evaluation.cases import build_cases
from kd.evaluation.evaluate import merge
from kd.evaluation.metrics import METRICS
from kd.evaluation.together import ask_together, find_place
from kd.models.whole_copy import WholeCopy
from kd.objective.terms import TermWeights
from kd.records.record import Record
from kd.teacher.source import TeacherSource
from kd.training.engine import StudentEngine
from kd.training.log import RunLog
from kd.training.validation import LOSS_METRICS, LOSSES, Best, Measure, TeacherForcedLoss, Validator, Values, share_out

BEST = "best"  # folder of the best step's export, in the run's folder


class GreedyMetrics:
    """Measure (kd/training/validation.py) of the registered metrics, answers shared out over the ranks.

    Args:
        splits: records to ask, of each split the first evaluation.generate_num_records.
        evaluation: its generate_every must be set.

    Raises:
        DataError: the chat template refuses a record.
    """

    def __init__(
        self, copy: WholeCopy, tokenizer, splits: Mapping[str, Sequence[Record]], evaluation: schema.Evaluation
    ):
        assert evaluation.generate_every is not None
        self.every = evaluation.generate_every
        self._copy, self._tokenizer, self._evaluation = copy, tokenizer, evaluation
        sampled = {name: records[: evaluation.generate_num_records] for name, records in splits.items()}
        self._cases = on_every_rank(
            lambda: {name: build_cases(records, tokenizer, find_place()) for name, records in sampled.items()}
        )

    def measure(self, step: int, terms: TermWeights) -> Values:
        """Generate and judge; a metric that no case is of is left out."""
        evaluation = self._evaluation
        answerer = LocalModel(
            self._copy.refresh(),
            self._tokenizer,
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
        )
        outcomes = {name: ask_together(answerer, cases) for name, cases in self._cases.items()}
        return on_rank_0(lambda: {name: _measure(found) for name, found in outcomes.items() if found})


def _measure(outcomes: list[dict[str, Any]]) -> dict[str, float]:
    metrics = merge(outcomes).metrics
    return {name: metrics[name] for name in METRICS.names() if metrics[name] is not None}


class ChoiceError(SpanwiseError, ValueError):
    """Metric of training.keep_best that the run does not measure; the message lists those that it does."""


def check_choice(
    training: schema.Training, evaluation: schema.Evaluation, teacher: schema.Teacher | None, loss: schema.Loss
) -> None:
    """Check that the run measures the metric that it shall choose by.

    Raises:
        ChoiceError: it does not.
    """
    is_used = uses_teacher(teacher, loss)
    unmeasured = set() if is_used and _is_live(teacher) else {"kd", "hard"}
    if is_used and unmeasured:
        unmeasured.add("loss")
    measured = [name for name in LOSS_METRICS if name not in unmeasured]
    if evaluation.generate_every is not None:
        measured = [*measured, *METRICS.names()]
    if training.keep_best is not None and training.keep_best not in measured:
        why = (
            "" if evaluation.generate_every else " (and with evaluation.generate_every the metrics of evaluation.json)"
        )
        raise ChoiceError(
            f"training.keep_best: {training.keep_best} is not measured in this run: choose one of "
            f"{', '.join(measured)}{why}"
        )


def explain_no_best(training: schema.Training, best: Best | None) -> str | None:
    """Say why a run that should have kept its best step has none; None where it has one, or need not."""
    if training.keep_best is None or best is not None:
        return None
    return (
        f"training.keep_best: {training.keep_best} was not measured at any step, as no record of data.validation has "
        "such a turn: no best step was kept; add such records, or choose another metric"
    )


def _is_lower_better(metric: str | None) -> bool:
    return metric is None or metric in LOSSES or (metric in METRICS and METRICS[metric].lower_is_better)


def _is_live(teacher: schema.Teacher | None) -> bool:
    """Tell whether there are targets for any record, not for those of a cache alone."""
    return teacher is not None and teacher_source(teacher) == "live"


def open_validator(
    config: schema.RunConfig,
    splits: Mapping[str, Sequence[Record]],
    engine: StudentEngine,
    teacher: TeacherSource | None,
    tokenizer,
    log: RunLog,
    ranks: Ranks,
    copy: WholeCopy | None = None,
) -> Validator | None:
    """Encode the validation splits; None where the run has none. All ranks call it together.

    splits: of `kd.evaluation.held_out.read_validation`.
    copy: of the student, for generation; by default one of its own.

    Raises:
        DataError: a record cannot be rendered or located.
    """
    training, evaluation = config.training, config.evaluation
    if not splits or evaluation.every is None:
        return None
    model: Any = engine.model
    policy = FitPolicy(longest_length(config.data), config.data.too_long, turns=config.data.turns)
    shared = {
        name: share_out(records, tokenizer, policy, training.micro_batch_size, ranks)
        for name, records in splits.items()
    }
    for name, split in shared.items():
        if split.num_too_long:
            log.say(f"data.validation.{name}: {split.num_too_long} records are longer than max_length and left out")
    measures: list[Measure] = [
        TeacherForcedLoss(shared, engine, teacher if _is_live(config.teacher) else None, ranks, evaluation.every)
    ]
    if evaluation.generate_every is not None:
        measures.append(GreedyMetrics(copy or WholeCopy(model, engine.device), tokenizer, splits, evaluation))
    metric = training.keep_best
    return Validator(
        measures,
        log.validation,
        keep_best=metric,
        lower_is_better=_is_lower_better(metric),
        export=lambda step: export_student(model, tokenizer, run_folder(config.run) / BEST),
        patience=training.patience,
    )
