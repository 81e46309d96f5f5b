"""Distillation and cross-entropy losses over vocabulary logits, loss and gradient together.

    distill_loss          logits of student and teacher in
    sparse_distill_loss   logits of the student, K tokens a row of the teacher
    linear_distill_loss   hidden states and heads in (the teacher may be sparse); logits exist only a chunk at a time

    teacher_topk, teacher_sample   a teacher's best tokens, or draws, from hidden states and head, for a cache
    sparse_teacher                 the SparseTeacher of either, at one temperature

    Divergence, register_divergence   another divergence, by its formula in PyTorch

The formulas are in kernels/reference.py and kernels/reference_sparse.py, divergences in kernels/divergences.py, inputs
and outputs in kernels/contract.py. All losses work in eager mode and under torch.compile (kernels/ops.py). `impl` names
the implementation: "reference" (PyTorch, any device), "triton" (a GPU, or a CPU under TRITON_INTERPRET=1), or "auto":
triton for fp32, fp16 and bf16 on CUDA or ROCm where triton is installed and has the divergence, else the reference.
"""

from importlib import metadata

__version__ = "0.1.0"


def _refuse_the_other_kernels() -> None:
    """Refuse PyPI's package whose import name is `kernels` too; transformers would take ours for it."""
    try:
        version = metadata.version("kernels")
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"the PyPI package 'kernels' {version} is installed beside Spanwise's own module of that name. One of the two "
        "hides the other, and transformers fails on whichever it did not expect: run `pip uninstall kernels`, or use a "
        "virtual environment without it"
    )


_refuse_the_other_kernels()

from kernels.contract import DenseTeacher, DistillOutput, EntropyWeighting, Head, RowWeights, SparseTeacher  # noqa: E402
from kernels.divergences import Divergence, register_divergence  # noqa: E402
from kernels.linear import linear_distill_loss  # noqa: E402
from kernels.logits import distill_loss, sparse_distill_loss  # noqa: E402
from kernels.topk import TeacherSamples, TeacherTopK, sparse_teacher, teacher_sample, teacher_topk  # noqa: E402

__all__ = [
    "DenseTeacher",
    "DistillOutput",
    "Divergence",
    "EntropyWeighting",
    "Head",
    "RowWeights",
    "SparseTeacher",
    "TeacherSamples",
    "TeacherTopK",
    "distill_loss",
    "linear_distill_loss",
    "register_divergence",
    "sparse_distill_loss",
    "sparse_teacher",
    "teacher_sample",
    "teacher_topk",
]
