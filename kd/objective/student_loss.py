"""Student with its head and loss in one module, as under ZeRO-3 the head's weight is whole only in its forward."""

from __future__ import annotations

from torch import nn

from kd.batching.micro_batch import MicroBatch
from kd.config.schema import Loss
from kd.models.hidden_states import hidden_rows
from kd.models.lm_head import head_of
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
