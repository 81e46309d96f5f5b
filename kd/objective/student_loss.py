"""Student with its head and loss in one module, as under ZeRO-3 the head's weight is whole only in its forward."""

from __future__ import annotations

from typing import Any

from torch import nn

from kd.batching.micro_batch import MicroBatch, join_inputs
from kd.config.schema import Loss
from kd.models.hidden_states import hidden_rows
from kd.models.lm_head import head_of
from kd.objective.answer_loss import AnswerInputs, answer_loss
from kd.objective.loss import CombinedLoss, SpanRows, combined_kd_loss
from kd.objective.terms import TermWeights
from kernels import DenseTeacher, SparseTeacher


class StudentWithLoss(nn.Module):
    """Student with its loss: a micro-batch and the teacher's targets in, the loss and its rows out.

    DeepSpeed wraps this module in training; the readiness check calls it as it is.

    Args:
        model: from `kd.models.student.build_student`.
        vocab_size: len(tokenizer); padded columns beyond it get no probability.
    """

    def __init__(self, model: nn.Module, loss: Loss, vocab_size: int):
        super().__init__()
        self.model = model
        self._divergence = {"divergence": loss.divergence, "beta": loss.beta}
        self._options: dict[str, Any] = {"chunk_rows": loss.chunk_rows, "vocab_size": vocab_size}

    def forward(
        self,
        micro: MicroBatch,
        weights: SpanRows,
        terms: TermWeights,
        teacher: DenseTeacher | SparseTeacher | None,
        grad_scale: float,
        answers: AnswerInputs | None = None,
    ) -> CombinedLoss:
        """Compute the loss of records, and with `answers` that of the student's own answers beside them."""
        options = {**self._options, "grad_scale": grad_scale}
        if answers is None:
            hidden, own_hidden = hidden_rows(self.model, micro), None
        else:  # in one pass: ZeRO-3 reduces a weight's gradient at its first use in backward
            joined = hidden_rows(self.model, join_inputs(micro, answers.batch.micro))
            hidden, own_hidden = joined.split([len(micro.rows), len(answers.batch.micro.rows)])
        head = head_of(self.model)
        out = combined_kd_loss(hidden, head, teacher, micro.labels, weights, terms, **self._divergence, **options)
        if answers is None or own_hidden is None:
            return out
        own = answer_loss(own_hidden, head, answers, **options)
        return out._replace(loss=out.loss + own.loss, answers=own)
