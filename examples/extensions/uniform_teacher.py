"""A teacher source: every token is equally likely, which makes the distillation term a kind of label smoothing."""

import torch

from kd.config.registries import TEACHER_SOURCES
from kernels import DenseTeacher, Head


class UniformTeacher:
    """TeacherSource (kd/teacher/source.py) that runs no model.

    Args:
        vocab_size: len(tokenizer).
    """

    missing = frozenset()  # it has targets for every record
    has_entropy = True
    content = None

    def __init__(self, vocab_size, device):
        self._head = Head(torch.zeros(vocab_size, 1, device=device))

    def temperature(self, wanted):
        return wanted

    def prefetch(self, micro_batches, temperature):
        pass

    def targets(self, micro, temperature, step=0):
        return DenseTeacher(torch.zeros(len(micro.rows), 1, device=micro.rows.device), self._head)

    def close(self):
        pass


def open_uniform(request):
    """Return the source; `request` is a kd.teacher.source.OpenTeacher."""
    return UniformTeacher(len(request.tokenizer), request.device)


TEACHER_SOURCES.register("uniform", open_uniform)
