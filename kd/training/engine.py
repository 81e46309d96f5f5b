"""The student under DeepSpeed: one optimizer step in, its report out.

The head and the loss run inside engine.forward, because under ZeRO-3 the head's weight is whole only there, and the
model is never called around the engine, because its hooks reduce the gradients. Micro-batches accumulate; the last one
steps.

The finite gate: a gradient that is not finite on any rank makes DeepSpeed (0.19.8 or later) skip the step on all of
them; `StepReport.skipped` says so, and `suspects` names this rank's records whose rows were not finite.
"""

from __future__ import annotations

from typing import NamedTuple

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from kd.batching.micro_batch import MicroBatch
from kd.config.schema import RunConfig
from kd.models.hidden_states import check_packable, hidden_rows
from kd.models.lm_head import head_of
from kd.objective.loss import CombinedLoss, SpanRows, combined_kd_loss, row_weights
from kd.objective.terms import TERMS, TermWeights
from kd.rendering.spans import BIT_NAMES
from kd.teacher.source import TeacherSource
from kd.training.optimizer import build_optimizer
from kernels import DenseTeacher, SparseTeacher

HITS = tuple(f"{name}_accuracy" for name in BIT_NAMES)
SUMS = (*TERMS, *HITS, "teacher_agreement", "teacher_entropy")  # the columns of StepReport.sums


class StepReport(NamedTuple):
    """`sums` [12] fp32 of SUMS on this rank: weighted terms, then counts of hits (and summed nats); add over ranks."""

    sums: Tensor
    skipped: bool
    suspects: tuple[str, ...]


class _StudentWithLoss(nn.Module):
    """What DeepSpeed wraps: tokens and the teacher's signal in, the loss and its rows out."""

    def __init__(self, model: nn.Module, config: RunConfig, vocab_size: int):
        super().__init__()
        self.model = model
        loss = config.loss
        self._options = {
            "divergence": loss.divergence,
            "beta": loss.beta,
            "chunk_rows": loss.chunk_rows,
            "vocab_size": vocab_size,
        }

    def forward(
        self,
        micro: MicroBatch,
        weights: SpanRows,
        terms: TermWeights,
        teacher: DenseTeacher | SparseTeacher | None,
        grad_scale: float,
    ) -> CombinedLoss:
        hidden = hidden_rows(self.model, micro)
        return combined_kd_loss(
            hidden, head_of(self.model), teacher, micro.labels, weights, terms, grad_scale=grad_scale, **self._options
        )


class StudentEngine:
    """Owns the DeepSpeed engine of the student.

    Args:
        model: from `kd.models.student.build_student`, made with the same `ds_config`.
        vocab_size: len(tokenizer); padded columns beyond it get no probability.
    """

    def __init__(self, model: nn.Module, config: RunConfig, ds_config: dict, vocab_size: int):
        self.model = model
        if config.data.packing != "none":
            check_packable(model)
        if not torch.cuda.is_available():
            _gather_whole_layers(model)
        optimizer = build_optimizer(model, config.optimizer, ds_config)
        self.engine, *_ = deepspeed.initialize(
            model=_StudentWithLoss(model, config, vocab_size), optimizer=optimizer, config=ds_config
        )
        # a loaded model comes in evaluation mode, where gradient checkpointing and dropout silently do nothing
        self.engine.train()
        self.device = self.engine.device
        self.world_size = torch.distributed.get_world_size()

    def set_learning_rate(self, value: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = value

    def train_step(
        self,
        micro_batches: list[MicroBatch],
        counts: Tensor,
        terms: TermWeights,
        teacher: TeacherSource | None = None,
        step: int = 0,
    ) -> StepReport:
        """One optimizer step over this rank's micro-batches.

        Args:
            micro_batches: exactly gradient_accumulation of them, empty ones where there are no records.
            counts: [4] global, see `kd.objective.loss.row_weights`.
            teacher: where the teacher's signal comes from, or None.
            step: the optimizer step, from 0.
        """
        skipped_before = self.engine.skipped_steps
        sums = torch.zeros(len(SUMS), device=self.device)
        seen: list[tuple[MicroBatch, Tensor]] = []
        for micro in micro_batches:
            micro = micro.to(self.device)
            weights = row_weights(micro.bits, micro.weight, counts, terms, divisor=self.world_size)
            signal = teacher.signal(micro, terms.temperature, step) if teacher is not None else None
            out = self.engine(micro, weights, terms, signal, self._grad_scale())
            self.engine.backward(out.loss, scale_wrt_gas=False)
            self.engine.step()
            sums += self._sums(micro, out)
            # With forward_kl a teacher's NaN is in its entropy and not in the divergence.
            seen.append((micro, out.rows.nll + out.rows.divergence + out.rows.hard_nll + out.rows.teacher_entropy))
        skipped = self.engine.skipped_steps > skipped_before
        return StepReport(sums, skipped, _suspects(seen) if skipped else ())

    def grad_norm(self) -> float:
        """Global L2 norm of the last step's gradient before clipping."""
        return float(self.engine.get_global_grad_norm())

    def _grad_scale(self) -> float:
        # fp16: gradients made in forward are scaled with the loss, or they underflow once 1/N is in the weights.
        return float(getattr(self.engine.optimizer, "cur_scale", 1.0)) if self.engine.fp16_enabled() else 1.0

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
    """ZeRO-3 hooks on decoder layers instead of on each small module: on a CPU they cost a quarter of a small model's
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
