"""Distillation and cross-entropy losses over vocabulary logits, loss and gradient together.

    distill_loss          logits of student and teacher in
    linear_distill_loss   hidden states and heads in; logits exist only a chunk of rows at a time

The formula is in kernels/reference.py, the inputs and outputs in kernels/contract.py. `impl` chooses who computes it:
"reference" (PyTorch, any device), "triton" (a GPU, or a CPU under TRITON_INTERPRET=1), or "auto": triton for fp32, fp16
and bf16 on CUDA or ROCm where triton is installed, the reference everywhere else.
"""

from importlib import metadata

__version__ = "0.1.0"


def _refuse_the_other_kernels() -> None:
    """PyPI has another package whose import name is `kernels`; transformers would then take ours for it."""
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

from kernels.contract import (  # noqa: E402
    DenseTeacher,
    DistillOutput,
    EntropyWeighting,
    Head,
    RowWeights,
    SparseTeacher,
)
from kernels.linear import linear_distill_loss  # noqa: E402
from kernels.logits import distill_loss  # noqa: E402

__all__ = [
    "DenseTeacher",
    "DistillOutput",
    "EntropyWeighting",
    "Head",
    "RowWeights",
    "SparseTeacher",
    "distill_loss",
    "linear_distill_loss",
]
