"""linear_distill_loss: hidden states and heads in, gradients of both out, logits only a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attach import attach
from kernels.contract import (
    DenseTeacher,
    DistillOutput,
    EntropyWeighting,
    Head,
    RowWeights,
    Scalar,
    check_rows,
    check_teacher_terms,
    join_rows,
    resolve_options,
)
from kernels.logits import choose_rows

# A chunk costs 12 V H bytes of weight traffic whatever its rows: a GPU wants thousands of rows, a CPU wants its memory.
_GPU_CHUNK_BYTES, _GPU_ROWS = 1 << 30, (2048, 4096)
_CPU_CHUNK_BYTES = 64 << 20


def linear_distill_loss(
    hidden: Tensor,
    head: Head,
    teacher: DenseTeacher | None,
    labels: Tensor,
    weights: RowWeights,
    *,
    chunk_rows: int | None = None,
    temperature: Scalar = 1.0,
    divergence: str = "forward_kl",
    beta: Scalar | None = None,
    entropy: EntropyWeighting | None = None,
    vocab_size: int | None = None,
    grad_scale: Scalar = 1.0,
    impl: str = "auto",
) -> DistillOutput:
    """distill_loss of head(hidden) against teacher.head(teacher.hidden), without [N, V] ever in memory.

    Gradients of hidden, head.weight and head.bias are made here, in forward (dW and dbias summed in fp32), and backward
    only multiplies all of them by upstream / grad_scale. The weight is not kept for backward, so the call is safe where
    ZeRO-3 releases it after forward; it must be made inside the engine's forward, where the weight is whole.

    Args:
        hidden: [N, H] of the supervised rows, in the dtype of head.weight. N = 0 gives a loss of 0 that still reaches
            hidden and head, with zero gradients.
        head: the student's; head.weight may be tied to the embedding.
        teacher: frozen; None for cross-entropy alone (weights.kd, weights.hard and entropy must then be None).
        chunk_rows: rows whose logits exist at once; None chooses 2048 to 4096 on a GPU, 64 MiB of fp32 logits on a CPU.

    All else, and what is raised, is as in distill_loss; logits are always overwritten by their gradient here, so there
    is no `inplace`.
    """
    if teacher is not None and not isinstance(teacher, DenseTeacher):
        raise ValueError(f"teacher must be a DenseTeacher(hidden, head) or None, got {type(teacher).__name__}")
    num_rows, device, width = len(hidden), hidden.device, len(head.weight)
    _check_head("student", hidden, head, num_rows, device)
    if teacher is not None:
        _check_head("teacher", teacher.hidden, teacher.head, num_rows, device)
    weights = check_rows(num_rows, device, labels, weights)
    check_teacher_terms(teacher is not None, weights, entropy)
    options = resolve_options(
        device,
        (width, None if teacher is None else len(teacher.head.weight)),
        temperature=temperature,
        divergence=divergence,
        beta=beta,
        entropy=entropy,
        vocab_size=vocab_size,
        grad_scale=grad_scale,
    )
    rows = choose_rows(impl, hidden, None if teacher is None else teacher.hidden)
    if chunk_rows is None:
        chunk_rows = default_chunk_rows(width, hidden.dtype, device)
    elif chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1, or None to let memory decide")

    grads = _Gradients(hidden, head)
    chunks = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for start in range(0, max(num_rows, 1), chunk_rows):
            part = slice(start, start + chunk_rows)
            logits = head_logits(hidden[part], head)
            target = None
            if grads.wanted:
                # The slope of the soft cap is read off the logits, so they have to outlive the gradient's writing.
                target = logits if head.softcap is None else torch.empty_like(logits)
            chunk_weights = RowWeights(*(None if w is None else w[part] for w in weights))
            others = None if teacher is None else head_logits(teacher.hidden[part], teacher.head)
            chunks.append(rows(logits, others, labels[part], chunk_weights, options, target))
            if grads.wanted:
                grads.add(part, target, logits)
    output = join_rows(chunks)
    loss = output.loss.sum()
    if grads.wanted:
        loss = attach(loss, options.grad_scale, grads.pairs())
    return output._replace(loss=loss)


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """[n, V] logits of a chunk in hidden's dtype; the soft cap is computed in fp32, as its slope is."""
    logits = torch.nn.functional.linear(hidden.detach(), head.weight.detach(), head.bias)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        capped = logits.to(_wide(logits.dtype)).div_(head.softcap).tanh_().mul_(head.softcap)
        logits = capped.to(logits.dtype)
    return logits


def default_chunk_rows(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows a chunk, from a memory budget for one operand's logits."""
    if device.type == "cpu":
        return max(16, _CPU_CHUNK_BYTES // (4 * width))
    low, high = _GPU_ROWS
    return min(high, max(low, _GPU_CHUNK_BYTES // (width * dtype.itemsize)))


class _Gradients:
    """Gradients of hidden, weight and bias, gathered chunk by chunk; None for a tensor that wants none."""

    def __init__(self, hidden: Tensor, head: Head):
        needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, head.weight, head.bias)]
        wide = _wide(hidden.dtype)
        self.tensors, self.hidden, self.head, self.wanted = (hidden, head.weight, head.bias), hidden, head, any(needs)
        self.dx = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needs[0] else None
        self.dw = torch.empty(head.weight.shape, dtype=wide, device=hidden.device) if needs[1] else None
        self.db = torch.zeros(len(head.weight), dtype=wide, device=hidden.device) if needs[2] else None

    def add(self, part: slice, grad: Tensor, logits: Tensor) -> None:
        """Take in d(loss)/d(logits) [n, V] of the rows in `part`. Overwrites grad."""
        if self.head.softcap is not None:
            ratio = logits.to(_wide(logits.dtype)) / self.head.softcap
            grad.copy_(grad * (1 - ratio.square_()))
        alpha = self.head.scale
        if self.dx is not None:
            torch.addmm(self.dx[part], grad, self.head.weight.detach(), beta=0, alpha=alpha, out=self.dx[part])
        if self.dw is not None:
            _add_product(self.dw, grad.t(), self.hidden[part].detach(), part.start == 0, alpha)
        if self.db is not None:
            self.db.add_(grad.sum(0, dtype=self.db.dtype), alpha=alpha)

    def pairs(self) -> list[tuple[Tensor, Tensor | None]]:
        found = zip(self.tensors, (self.dx, self.dw, self.db))
        return [(t, None if g is None else g.to(t.dtype)) for t, g in found if t is not None]


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool, alpha: float) -> None:
    """total += alpha * a @ b with products and sums in total's (wider) dtype; the first call ignores what was there."""
    if total.is_cuda and a.dtype != total.dtype:
        # addmm into a wider `total` is refused by some of the torch versions we support; mm is taken by all of them.
        product = torch.mm(a, b, out_dtype=total.dtype)
        if first:
            torch.mul(product, alpha, out=total)
        else:
            total.add_(product, alpha=alpha)
    else:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=0 if first else 1, alpha=alpha, out=total)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_head(who: str, hidden: Tensor, head: Head, num_rows: int, device: torch.device) -> None:
    weight, bias = head.weight, head.bias
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{who}: hidden {list(hidden.shape)} and head.weight {list(weight.shape)} must be [N, H] and [V, H]; under "
            "ZeRO-3 a weight of shape [0] means that it was read outside the engine's forward"
        )
    if bias is not None and bias.shape != (len(weight),):
        raise ValueError(f"{who}: head.bias has shape {list(bias.shape)}, one value a column is needed: [{len(weight)}]")
    if any(t is not None and t.dtype != hidden.dtype for t in (weight, bias)) or not hidden.is_floating_point():
        raise ValueError(f"{who}: hidden is {hidden.dtype} and head.weight {weight.dtype}: cast one to the other's dtype")
    if len(hidden) != num_rows or any(t is not None and t.device != device for t in (hidden, weight, bias)):
        raise ValueError(f"{who}: {len(hidden)} rows on {hidden.device}; {num_rows} rows, all on {device}, are needed")
    if head.softcap is not None and not head.softcap > 0:
        raise ValueError(f"{who}: softcap is {head.softcap}; it must be positive, or None for a head without one")
