"""Parity check before every time: a way's loss and gradients against fp64, a chunk of rows at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.methods import Data, Way, Workload, eager, make_data
from kernels import DenseTeacher, SparseTeacher

_CHUNK_NUMBERS = 1 << 25  # logits whose fp64 softmax and gradient exist at once


class Parity(NamedTuple):
    """Errors are relative to the size of each quantity: the loss, then the gradient of each leaf."""

    passed: bool
    errors: list[float]
    allowed: list[float]
    rows: int


def loss_and_gradients(way: Way, data: Data) -> list[Tensor]:
    loss = way(data, data.leaves)
    loss.backward()
    out = [loss.detach(), *(leaf.grad for leaf in data.leaves)]
    for leaf in data.leaves:
        leaf.grad = None
    return out


def check(way: Way, work: Workload, device: torch.device, *, is_ours: bool) -> Parity:
    """Ours must stay within twice the error of eager in the same dtype; a peer, not ours to judge, within 5 %."""
    found = loss_and_gradients(way, make_data(work, device, seed=1))
    data = make_data(work, device, seed=1)  # a way may have overwritten the other
    step = max(1, _CHUNK_NUMBERS // work.vocab)
    worst, size = (
        torch.zeros(2, dtype=torch.float64, device=device),
        torch.zeros((), dtype=torch.float64, device=device),
    )
    truth, theirs = [], []
    for start in range(0, work.num_rows, step):
        part = slice(start, start + step)
        exact, by_eager = (loss_and_gradients(eager, _rows(data, part, dtype)) for dtype in (torch.float64, None))
        differences = [(grad.double() - exact[1]).abs().max() for grad in (found[1][part], by_eager[1])]
        worst = torch.maximum(worst, torch.stack(differences))  # keeps NaN
        size = torch.maximum(size, exact[1].abs().max())
        truth, theirs = _add(truth, exact), _add(theirs, by_eager)
    sums = [(mine, other, true, true.abs().max()) for mine, other, true in zip([found[0], *found[2:]], theirs, truth)]
    pairs = [[((x - true).abs().max() / scale).item() for x in (mine, other)] for mine, other, true, scale in sums]
    pairs.insert(1, (worst / size).tolist())
    errors = [mine for mine, _ in pairs]
    digits = torch.finfo(data.leaves[0].dtype).eps
    # Products with the head round in another order than eager's: an error of eager's that is small by chance is no
    # measure.
    more = [1e-5, 2e-6 + digits / 4] if len(errors) == 2 else [1e-5 + digits / 8, *[2e-6 + digits] * 2]
    allowed = [2 * other + extra if is_ours else 0.05 for (_, other), extra in zip(pairs, more)]
    passed = all(error <= limit for error, limit in zip(errors, allowed))  # NaN does not pass
    return Parity(passed, errors, allowed, work.num_rows)


def _add(sums: list[Tensor], part: list[Tensor]) -> list[Tensor]:
    """Loss, and the weight's gradient where there is one, over the parts so far: what is not the rows' own."""
    part = [x.double() for x in (part[0], *part[2:])]
    return [total.add_(x) for total, x in zip(sums, part)] if sums else part


def _rows(data: Data, part: slice, dtype: torch.dtype | None) -> Data:
    """The rows of `part`, in fp64 if so asked. Weights stay 1 / N of all rows: the parts' losses sum to the whole's."""

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if dtype is not None and x.is_floating_point() else x

    teacher = data.teacher
    if isinstance(teacher, DenseTeacher):
        teacher = DenseTeacher(cast(teacher.hidden[part]), teacher.head._replace(weight=cast(teacher.head.weight)))
    elif isinstance(teacher, SparseTeacher):
        teacher = SparseTeacher(*(cast(x[part]) for x in teacher[:-1]), teacher.kind)
    elif teacher is not None:
        teacher = cast(teacher[part])
    leaves = [data.leaves[0][part], *data.leaves[1:]]
    leaves = [cast(leaf).detach().clone().requires_grad_() for leaf in leaves]
    return data._replace(leaves=leaves, teacher=teacher, labels=data.labels[part])
