"""Student engine: the student under DeepSpeed, one optimizer step in, its report out.

The head and the loss run inside engine.forward, because under ZeRO-3 the head's weight is whole only there, and the
model is never called around the engine, because its hooks reduce the gradients. Micro-batches accumulate; the last one
steps.

The finite gate: a gradient that is not finite on any rank makes DeepSpeed (0.19.8 or later) skip the step on all of
them; `StepReport.skipped` says so, and `suspects` names this rank's records whose rows were not finite. A step that the
trainer refuses for its loss is skipped by the same gate: its gradient is made NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from kd.batching.micro_batch import MicroBatch
from kd.checkpoints.format import CheckpointFormat
from kd.config.schema import Loss, Optimizer
from kd.errors import SpanwiseError, first_line
from kd.models.hidden_states import check_packable
from kd.objective.answer_loss import (
    ANSWER_SUMS,
    ANSWER_TERMS,
    AnswerBatch,
    AnswerInputs,
    AnswerSettings,
    answer_weights,
)
from kd.objective.loss import CombinedLoss, row_weights
from kd.objective.student_loss import StudentWithLoss
from kd.objective.terms import TERMS, TermWeights
from kd.rendering.spans import BIT_NAMES
from kd.teacher.source import TeacherSource
from kd.training.optimizer import build_optimizer
from kd.training.stopwatch import Stopwatch
from kernels import DenseTeacher

HITS = tuple(f"{name}_accuracy" for name in BIT_NAMES)
SUMS = (*TERMS, *HITS, "teacher_agreement", "teacher_entropy")  # the columns of StepReport.sums


class EngineError(SpanwiseError, RuntimeError):
    """Settings of a DeepSpeed JSON that DeepSpeed does not start with."""


class StepReport(NamedTuple):
    """Result of one optimizer step on this rank.

    `sums` [12] fp32, on the device, by SUMS: weighted terms, then counts of hits and summed nats; add them over ranks.
    `suspects`: ids of records whose rows were not finite, where the step was skipped; where it was refused, of the
    records with the largest loss. `answers` [5] fp32, on the device, by ANSWER_SUMS: those of the student's own
    answers, to be added over ranks.
    """

    sums: Tensor
    skipped: bool
    suspects: tuple[str, ...]
    answers: Tensor
    refused: bool = False


class AnswerStep(NamedTuple):
    """The student's own answers in one optimizer step, on this rank.

    Attributes:
        batches: one a micro-batch of records.
        counts: [9] float64, CPU, global: see `kd.objective.answer_loss.answer_weights`.
        teacher: source of the teacher's targets on answers; None where distill is off.
    """

    batches: list[AnswerBatch]
    counts: Tensor
    settings: AnswerSettings
    teacher: TeacherSource | None = None


class StudentEngine:
    """The student's DeepSpeed engine.

    Args:
        model: from `kd.models.student.build_student`, made with the same `ds_config`.
        ds_config: settings of kd/config/deepspeed/fill.py.
        vocab_size: len(tokenizer); padded columns beyond it get no probability.
        packed: whether sequences hold several records, which must not see one another.

    Raises:
        UnpackableModel: `packed`, and this model's attention cannot keep records apart.
        EngineError: DeepSpeed refuses `ds_config`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        ds_config: dict,
        vocab_size: int,
        *,
        packed: bool = False,
    ):
        self.model = model
        if packed:
            check_packable(model)
        if not torch.cuda.is_available():
            _gather_whole_layers(model)
        self._engine: Any  # deepspeed.initialize is typed as four things at once
        try:
            self._engine, *_ = deepspeed.initialize(
                model=StudentWithLoss(model, loss, vocab_size),
                optimizer=build_optimizer(model, optimizer, ds_config),
                config=ds_config,
            )
        except torch.OutOfMemoryError:
            raise  # its own text says what is short
        except Exception as error:  # assertions, and what building its operators raises
            raise EngineError(
                f"training.deepspeed: DeepSpeed cannot start with these settings ({first_line(error)}): change them, "
                "or use ds_configs/zero3.json"
            ) from error
        # a loaded model comes in evaluation mode, where gradient checkpointing and dropout silently do nothing
        self._engine.train()
        self.device: torch.device = self._engine.device
        self.teacher_time = Stopwatch(self.device)
        self.world_size = torch.distributed.get_world_size()

    @property
    def scales_loss(self) -> bool:
        """True where the loss is scaled (fp16): an overflow now and then is then no fault."""
        return bool(self._engine.fp16_enabled())

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that were skipped since the run began, as their gradient was not finite."""
        return int(self._engine.skipped_steps)

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of every parameter group."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = value

    def save(self, folder: Path, state: dict[str, Any], written_as: CheckpointFormat) -> None:
        """Write weights, optimizer and this rank's `state` into `folder`; all ranks together."""
        written_as.save(self._engine, folder, state)

    def load(self, folder: Path, written_as: CheckpointFormat) -> dict[str, Any]:
        """Load what `save` wrote, and return this rank's state; all ranks together."""
        return written_as.load(self._engine, folder)

    def close(self) -> None:
        """Free the engine's hooks and buffers."""
        self._engine.destroy()

    def train_step(
        self,
        micro_batches: list[MicroBatch],
        counts: Tensor,
        terms: TermWeights,
        teacher: TeacherSource | None = None,
        step: int = 0,
        answers: AnswerStep | None = None,
        refuses: Callable[[Tensor], bool] | None = None,
    ) -> StepReport:
        """Take one optimizer step over this rank's micro-batches; all ranks together.

        Args:
            micro_batches: exactly gradient_accumulation of them, empty ones where there are no records.
            counts: [4] float64, CPU, global: see `kd.objective.loss.row_weights`.
            teacher: source of the teacher's targets, or None.
            step: the optimizer step, from 0.
            answers: of the student's own, trained beside the records.
            refuses: given the sums of the whole step, before its last backward, tells whether to skip it; the same on
                every rank.
        """
        refused = False
        skipped_before = self.skipped_steps
        sums, own_sums = (torch.zeros(len(names), device=self.device) for names in (SUMS, ANSWER_SUMS))
        seen: list[tuple[MicroBatch, Tensor]] = []
        for number, micro in enumerate(micro_batches):
            micro = micro.to(self.device)
            own = None if answers is None else self._answer_inputs(answers, answers.batches[number], step)
            out = self._forward(micro, counts, terms, teacher, step, self._grad_scale(), own)
            sums += self._sums(micro, out)
            if refuses is not None and number == len(micro_batches) - 1:
                refused = refuses(sums)
            self._engine.backward(out.loss * math.nan if refused else out.loss, scale_wrt_gas=False)
            self._engine.step()
            # With forward_kl a teacher's NaN is in its entropy and not in the divergence.
            seen.append((micro, out.rows.nll + out.rows.divergence + out.rows.hard_nll + out.rows.teacher_entropy))
            if own is not None and out.answers is not None:
                own_sums += out.answers.sums / torch.tensor(self._own_divisors, device=self.device)
                seen.append((own.batch.micro, out.answers.rows.nll + out.answers.rows.divergence))
        skipped = self.skipped_steps > skipped_before
        suspects = (_worst(seen) if refused else _suspects(seen)) if skipped else ()
        return StepReport(sums, skipped, suspects, own_sums, refused)

    @torch.no_grad()
    def measure(
        self,
        micro_batches: Sequence[MicroBatch],
        counts: Tensor,
        terms: TermWeights,
        teacher: TeacherSource | None,
        step: int,
    ) -> Tensor:
        """Return the sums [12] of `StepReport` without taking a step or changing anything; all ranks together, each
        with as many micro-batches. Arguments are as in `train_step`.
        """
        sums, timed = torch.zeros(len(SUMS), device=self.device), self.teacher_time
        self.teacher_time = Stopwatch(self.device)  # the training's seconds leave these out
        self._engine.eval()  # no dropout: it would draw from the training's random numbers
        try:
            for micro in micro_batches:
                micro = micro.to(self.device)
                sums += self._sums(micro, self._forward(micro, counts, terms, teacher, step, 1.0))
        finally:
            self._engine.train()
            self.teacher_time = timed
        return sums

    def _forward(
        self,
        micro: MicroBatch,
        counts: Tensor,
        terms: TermWeights,
        teacher: TeacherSource | None,
        step: int,
        grad_scale: float,
        answers: AnswerInputs | None = None,
    ) -> CombinedLoss:
        weights = row_weights(micro.bits, micro.weight, counts, terms, divisor=self.world_size)
        with self.teacher_time:
            targets = teacher.targets(micro, terms.temperature, step) if teacher is not None else None
        return self._engine(micro, weights, terms, targets, grad_scale, answers)

    def _answer_inputs(self, answers: AnswerStep, batch: AnswerBatch, step: int) -> AnswerInputs:
        batch = batch.to(self.device)
        weights = answer_weights(batch, answers.counts, answers.settings, divisor=self.world_size)
        teacher = None
        if answers.teacher is not None:
            temperature = answers.settings.rollouts.distill_temperature
            with self.teacher_time:
                found = answers.teacher.targets(batch.micro, temperature, step)
            assert isinstance(found, DenseTeacher), "kd/config/conflicts/rollouts.py asks for targets: dense"
            teacher = found
        return AnswerInputs(batch, weights, teacher, answers.settings)

    @property
    def _own_divisors(self) -> list[float]:
        """What each of ANSWER_SUMS is divided by: the terms hold DeepSpeed's divisor, as records' do."""
        return [float(self.world_size) if name in ANSWER_TERMS else 1.0 for name in ANSWER_SUMS]

    def grad_norm(self) -> float:
        """Return the global L2 norm of the last step's gradient, before clipping."""
        return float(self._engine.get_global_grad_norm())

    def _grad_scale(self) -> float:
        # fp16: gradients made in forward are scaled with the loss, or they underflow once 1/N is in the weights.
        return float(getattr(self._engine.optimizer, "cur_scale", 1.0)) if self.scales_loss else 1.0

    def _sums(self, micro: MicroBatch, out: CombinedLoss) -> Tensor:
        rows = out.rows
        hits = [(rows.label_hit & ((micro.bits & bit) != 0)).sum() for bit in BIT_NAMES.values()]
        return torch.cat(
            [
                out.terms.float() / self.world_size,
                torch.stack([*hits, rows.teacher_hit.sum(), rows.teacher_entropy.sum()]).float(),
            ]
        )


def _gather_whole_layers(model: nn.Module) -> None:
    """Put ZeRO-3 hooks on decoder layers, not on each small module: those cost a quarter of a small model's CPU
    step.
    """
    layers = {type(module) for name, module in model.named_modules() if name.endswith("layers.0")}
    if layers and hasattr(next(model.parameters()), "ds_id"):
        set_z3_leaf_modules(model, list(layers))


def _suspects(seen: list[tuple[MicroBatch, Tensor]]) -> tuple[str, ...]:
    names: list[str] = []
    for micro, value in seen:
        bad = micro.record[~torch.isfinite(value)].unique().tolist()
        names += [micro.record_ids[i] for i in bad]
    return tuple(names)


def _worst(seen: list[tuple[MicroBatch, Tensor]], most: int = 3) -> tuple[str, ...]:
    """Name the records with the largest sums of row losses."""
    found = []
    for micro, value in seen:
        sums = torch.zeros(len(micro.record_ids), device=value.device).index_add_(0, micro.record, value.float())
        found += zip(sums.tolist(), micro.record_ids)
    return tuple(name for _, name in sorted(found, reverse=True)[:most])
