"""linear_distill_loss with a sparse teacher: every gradient, in every chunking; and how the weight's gradient is
summed.
"""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, ENTROPY, assert_within
from kernels import (
    DenseTeacher,
    Head,
    RowWeights,
    linear,
    linear_distill_loss,
    sparse_teacher,
    teacher_sample,
    teacher_topk,
)
from kernels.checks import resolve_options
from kernels.contract import Settings
from kernels.reference_sparse import sparse_definition

N, H, HT, V, K = 7, 12, 9, 50, 6
both = pytest.mark.parametrize("impl", ["reference", "triton"])


def make_parts(kind="topk", dtype=torch.float32, temperature=2.0, softcap=None, scale=1.0, k=K):
    hidden = torch.randn(N, H).to(dtype).requires_grad_()
    weight = (0.6 * torch.randn(V, H)).to(dtype).requires_grad_()
    head = Head(weight, torch.randn(V).to(dtype).requires_grad_(), softcap, scale)
    theirs = torch.randn(N, HT), Head(0.6 * torch.randn(V, HT))
    if kind == "topk":
        signal = teacher_topk(*theirs, k, (temperature,))
    else:
        signal = teacher_sample(*theirs, 12, (temperature,), torch.arange(N))
    teacher = sparse_teacher(signal, temperature)
    return hidden, head, teacher, torch.randint(0, V, (N,)), RowWeights(*torch.rand(4, N)), DenseTeacher(*theirs)


def eager(hidden, head, teacher, labels, weights, dtype, **settings):
    leaves = [t.detach().to(dtype).requires_grad_() for t in (hidden, head.weight, head.bias)]
    logits = torch.nn.functional.linear(*leaves) * head.scale
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    options = resolve_options(hidden.device, (V, None), Settings(**settings))
    loss = sparse_definition(logits, teacher, labels, weights, options).loss
    return loss.detach(), torch.autograd.grad(loss, leaves)


def check(parts, upstream=1.0, ours_only=(), **settings):
    hidden, head = parts[:2]
    output = linear_distill_loss(*parts, **settings, **dict(ours_only))
    grads = torch.autograd.grad(output.loss * upstream, (hidden, head.weight, head.bias))
    truth, truth_grads = eager(*parts, torch.float64, **settings)
    theirs, their_grads = eager(*parts, hidden.dtype, **settings)
    eps = max(2e-6, torch.finfo(hidden.dtype).eps)
    assert_within(output.loss.detach(), theirs, truth, eps=eps, what="loss")
    for name, mine, their, true in zip(("dX", "dW", "dbias"), grads, their_grads, truth_grads):
        assert_within(mine, their * upstream, true * upstream, eps=eps, what=name)


@both
@pytest.mark.parametrize("chunk_rows", [1, 3, None])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_gradients_of_all_three(divergence, beta, chunk_rows, impl):
    *parts, _ = make_parts()
    settings = dict(divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY)
    check(parts, ours_only=dict(chunk_rows=chunk_rows, impl=impl), **settings)


@both
@pytest.mark.parametrize("head", [dict(softcap=2.0), dict(scale=0.25)])
def test_heads_and_draws(head, impl):
    *parts, _ = make_parts("sampled", **head)
    check(parts, ours_only=dict(chunk_rows=4, impl=impl), temperature=2.0)


@both
@pytest.mark.parametrize("upstream, grad_scale", [(3.0, 1.0), (1024.0, 1024.0), (0.37, 8.0)])
def test_upstream_reaches_every_gradient_once(upstream, grad_scale, impl):
    *parts, _ = make_parts()
    check(parts, upstream, dict(chunk_rows=3, impl=impl, grad_scale=grad_scale), temperature=2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_the_weight_gradient_in_fp32(dtype):
    *parts, _ = make_parts(dtype=dtype)
    hidden, head = parts[:2]
    output = linear_distill_loss(*parts, temperature=2.0, chunk_rows=1)
    grads = torch.autograd.grad(output.loss, (hidden, head.weight))
    assert [g.dtype for g in grads] == [dtype, dtype]
    _, truth = eager(*parts, torch.float64, temperature=2.0)
    _, theirs = eager(*parts, dtype, temperature=2.0)
    for mine, their, true in zip(grads, theirs, truth):
        assert_within(mine, their, true, eps=torch.finfo(dtype).eps)


@both
def test_every_token_kept_equals_the_dense_teacher(impl):
    hidden, head, teacher, labels, weights, dense = make_parts(k=V)
    found = []
    for signal in (teacher, dense):
        output = linear_distill_loss(hidden, head, signal, labels, weights, temperature=2.0, chunk_rows=3, impl=impl)
        found.append((output, torch.autograd.grad(output.loss, (hidden, head.weight, head.bias))))
    (ours, grads), (theirs, their_grads) = found
    torch.testing.assert_close(ours.divergence, theirs.divergence, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.teacher_entropy, theirs.teacher_entropy)
    for mine, their in zip(grads, their_grads):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


def test_no_rows_is_zero_and_connected():
    hidden, head, teacher, labels, *_ = make_parts()
    empty = hidden[:0].detach().requires_grad_()
    nobody = teacher._replace(**{name: getattr(teacher, name)[:0] for name in teacher._fields[:-1]})
    output = linear_distill_loss(empty, head, nobody, labels[:0], RowWeights(*torch.zeros(4, 0)))
    output.loss.backward()
    assert output.loss == 0 and empty.grad.shape == (0, H)
    assert head.weight.grad.shape == (V, H) and not head.weight.grad.any() and not head.bias.grad.any()


def test_refusals():
    hidden, head, teacher, labels, weights, _ = make_parts("sampled")
    with pytest.raises(ValueError, match="use divergence='forward_kl'"):
        linear_distill_loss(hidden, head, teacher, labels, weights, divergence="reverse_kl")
    with pytest.raises(ValueError, match="7 rows, the student 3"):
        linear_distill_loss(hidden[:3], head, teacher, labels[:3], RowWeights())


def fake_addmm(answer):
    def addmm(total, a, b, *, out_dtype, out, beta=1, alpha=1):
        return out.copy_(answer(total, a, b))

    return addmm


@pytest.mark.parametrize(
    "answer, exact",
    [
        (lambda total, a, b: total + a.float() @ b.float(), True),
        (lambda total, a, b: total + (a.float() @ b.float()).to(a.dtype), False),  # the product is rounded
        (lambda total, a, b: total.to(a.dtype) + a.float() @ b.float(), True),  # 2^-10 survives alone
        (lambda total, a, b: (total + a.float() @ b.float()).to(a.dtype), False),  # the sum is rounded
        (lambda total, a, b: a.float() @ b.float(), False),  # what was there is forgotten
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_addmm_is_asked_before_it_is_trusted(dtype, answer, exact, monkeypatch):
    monkeypatch.setattr(torch, "addmm", fake_addmm(answer))
    asked = linear.widening_addmm.__wrapped__
    assert asked(torch.device("cpu"), dtype, torch.float32) is exact


def test_an_addmm_that_refuses_is_not_used(monkeypatch):
    def refuses(*args, **kwargs):
        raise RuntimeError("expected self and mat1 to have the same dtype")

    monkeypatch.setattr(torch, "addmm", refuses)
    assert linear.widening_addmm.__wrapped__(torch.device("cpu"), torch.bfloat16, torch.float32) is False
