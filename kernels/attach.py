"""Graph node of a loss whose gradients were made in forward."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from kernels.contract import Scalar


def attach(loss: Tensor, grad_scale: Scalar, pairs: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Make `loss` [] a node of the graph: backward gives each tensor of `pairs` its gradient * upstream / grad_scale.

    The gradients are held until backward and scaled in place, every one of them by the same factor, once. A pair whose
    gradient is None only connects: its tensor gets no gradient. Nothing else of the pairs is kept: under ZeRO-3 a
    weight is gathered during forward and gone afterwards.
    """
    tensors, grads = zip(*pairs)
    return _GradientsMadeInForward.apply(loss, grad_scale, grads, *tensors)


class _GradientsMadeInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, grad_scale, grads, *tensors):
        ctx.grads, ctx.grad_scale = grads, grad_scale
        return loss.clone()

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():  # not caught by once_differentiable, which looks at the upstream gradient alone
            raise RuntimeError(
                "the gradient of this loss has no gradient of its own: it is made in forward, by formula. Call "
                "backward or "
                "autograd.grad without create_graph=True; for a penalty on gradients use plain PyTorch losses."
            )
        if ctx.grads is None:
            raise RuntimeError(
                "backward went through this loss twice: its gradients are made in forward and handed on, not copied. "
                "Call the loss again for a second backward (retain_graph=True does not help)."
            )
        grads, ctx.grads = ctx.grads, None
        factor = upstream / ctx.grad_scale
        for grad in grads:
            if grad is not None:
                _scale(grad, factor)
        return None, None, None, *grads


def _scale(grad: Tensor, factor: Tensor) -> None:
    """Scale grad by factor, in place. The usual factor is 1: the host sees that on a CPU, the kernel on a GPU, where
    asking would wait.
    """
    if grad.device.type == "cpu":
        if factor.item() != 1.0:
            grad.mul_(factor)
    elif grad.is_cuda and have_triton():
        from kernels.fused.dense import scale_unless_one

        scale_unless_one(grad, factor)
    else:
        grad.mul_(factor)


def have_triton() -> bool:
    """Return true where triton is installed. One that is there and fails to import raises its own error."""
    return importlib.util.find_spec("triton") is not None
