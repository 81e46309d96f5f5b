# type: ignore  # pyright checks kd, kernels and launch (pyproject.toml)
"""linear_distill_loss against autograd through the head and the fp64 definition: every gradient, in every chunking."""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, DTYPES, ENTROPY, VOCABULARIES, assert_within
from kernels import DenseTeacher, Head, RowWeights, linear, linear_distill_loss
from kernels.checks import resolve_options
from kernels.contract import Settings
from kernels.head import chunks, default_chunk_rows
from kernels.reference import definition

N, H, HT, V = 7, 12, 9, 50
IMPLS = ["reference", "triton"]


def make_parts(dtype=torch.float32, bias=True, softcap=None, scale=1.0, width=V, vocab=V):
    hidden = torch.randn(N, H).to(dtype).requires_grad_()
    weight = (0.6 * torch.randn(width, H)).to(dtype).requires_grad_()
    head = Head(weight, torch.randn(width).to(dtype).requires_grad_() if bias else None, softcap, scale)
    teacher = DenseTeacher(torch.randn(N, HT).to(dtype), Head((0.6 * torch.randn(vocab, HT)).to(dtype), scale=0.7))
    return hidden, head, teacher, torch.randint(0, vocab, (N,)), RowWeights(*torch.rand(4, N))


def plain_logits(hidden, head):
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def eager(hidden, head, teacher, labels, weights, dtype, **settings):
    """(loss, gradients) by autograd with everything cast to `dtype`; the teacher may be None."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (hidden, head.weight, head.bias)]
    logits = plain_logits(leaves[0], head._replace(weight=leaves[1], bias=leaves[2]))
    others = None
    if teacher is not None:
        their_head = teacher.head._replace(weight=teacher.head.weight.to(dtype))
        others = plain_logits(teacher.hidden.to(dtype), their_head)
    widths = (len(head.weight), None if teacher is None else len(teacher.head.weight))
    options = resolve_options(hidden.device, widths, Settings(**settings))
    loss = definition(logits, others, labels, weights, options).loss
    return loss.detach(), torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


def ours(hidden, head, teacher, labels, weights, upstream=1.0, **settings):
    output = linear_distill_loss(hidden, head, teacher, labels, weights, **settings)
    leaves = [t for t in (hidden, head.weight, head.bias) if t is not None]
    return output, torch.autograd.grad(output.loss * upstream, leaves)


def check(parts, settings, upstream=1.0, eps=2e-6, **ours_only):
    output, grads = ours(*parts, upstream=upstream, **settings, **ours_only)
    truth, truth_grads = eager(*parts, torch.float64, **settings)
    theirs, their_grads = eager(*parts, parts[0].dtype, **settings)
    assert_within(output.loss.detach(), theirs, truth, what="loss")
    for name, mine, their, true in zip(("dX", "dW", "dbias"), grads, their_grads, truth_grads):
        assert_within(mine, their * upstream, true * upstream, eps=eps, what=name)
    return output


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("chunk_rows", [1, 3, N, None])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_gradients_of_all_three(divergence, beta, chunk_rows, impl):
    settings = dict(divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY)
    check(make_parts(), settings, chunk_rows=chunk_rows, impl=impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "vocab", VOCABULARIES[:6] + tuple(pytest.param(v, marks=pytest.mark.slow) for v in VOCABULARIES[6:])
)
def test_vocabularies(vocab, dtype):
    """By the kernel, but for bf16: here it writes bf16 logits' gradients, which the interpreter truncates."""
    place = VOCABULARIES.index(vocab)
    divergence, beta = DIVERGENCES[place % 3]
    settings = dict(
        divergence=divergence,
        beta=beta,
        temperature=(0.5, 1.0, 2.0, 3.7, 4.0)[place % 5],
        entropy=(None, ENTROPY)[place % 2],
    )
    impl = "reference" if dtype == torch.bfloat16 else "triton"
    # One chunk: BLAS sums 151936 columns 30 times less exactly for 3 rows than for 7, and the peer has 7.
    check(make_parts(dtype, width=vocab, vocab=vocab), settings, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("head", [dict(softcap=2.0), dict(scale=0.25, bias=False), dict(softcap=3.0, scale=1.7)])
def test_heads(head, impl):
    check(make_parts(**head), dict(temperature=1.5), chunk_rows=4, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("upstream, grad_scale", [(3.0, 1.0), (1024.0, 1024.0), (0.37, 8.0)])
def test_upstream_reaches_every_gradient_once(upstream, grad_scale, impl):
    check(make_parts(), {}, upstream=upstream, grad_scale=grad_scale, chunk_rows=3, impl=impl)


def test_padded_head():
    parts = make_parts(width=V + 6)
    output, (_, d_weight, d_bias) = ours(*parts, vocab_size=V, chunk_rows=3)
    check(parts, dict(vocab_size=V), chunk_rows=3)
    assert (d_weight[V:] == 0).all() and (d_bias[V:] == 0).all() and output.loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_the_weight_gradient_in_fp32(dtype):
    """One chunk a row: summed in half precision the weight's gradient would be several times PyTorch's error."""
    parts = make_parts(dtype, bias=False)
    output, grads = ours(*parts, chunk_rows=1)
    assert [g.dtype for g in grads] == [dtype, dtype]
    _, truth = eager(*parts, torch.float64)
    _, theirs = eager(*parts, dtype)
    for mine, their, true in zip(grads, theirs, truth):
        assert_within(mine, their, true, eps=torch.finfo(dtype).eps)


@pytest.mark.parametrize("impl", IMPLS)
def test_without_a_teacher(impl):
    hidden, head, _, labels, weights = make_parts()
    parts = (hidden, head, None, labels, weights._replace(kd=None, hard=None))
    output = check(parts, {}, chunk_rows=3, impl=impl)
    assert output.nll.all() and not output.divergence.any() and not output.teacher_entropy.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows_is_zero_and_connected(impl):
    hidden, head, teacher, labels, weights = make_parts()
    empty = hidden[:0].detach().requires_grad_()
    output = linear_distill_loss(
        empty, head, teacher._replace(hidden=teacher.hidden[:0]), labels[:0], RowWeights(*torch.zeros(4, 0)), impl=impl
    )
    output.loss.backward()
    assert output.loss == 0 and empty.grad.shape == (0, H)
    assert head.weight.grad.shape == (V, H) and not head.weight.grad.any() and not head.bias.grad.any()


@pytest.mark.parametrize("which", ["hidden", "weight", "bias", "none"])
def test_frozen_parts_get_nothing_and_change_nothing(which):
    parts = make_parts()
    _, expected = ours(*parts)
    hidden, head = parts[0].detach(), Head(parts[1].weight.detach(), parts[1].bias.detach())
    tensors = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    if which != "none":
        tensors[which].requires_grad_()
    output = linear_distill_loss(hidden, head, *parts[2:])
    assert output.loss.requires_grad == (which != "none")
    if which != "none":
        output.loss.backward()
        torch.testing.assert_close(tensors[which].grad, dict(zip(tensors, expected))[which])
    assert all(t.grad is None for name, t in tensors.items() if name != which)


def test_backward_does_not_read_the_weight():
    """ZeRO-3 has released it by then."""
    parts = make_parts()
    _, expected = ours(*parts)
    output = linear_distill_loss(*parts)
    with torch.no_grad():
        parts[1].weight.fill_(float("nan"))
    output.loss.backward()
    torch.testing.assert_close(parts[0].grad, expected[0])
    torch.testing.assert_close(parts[1].weight.grad, expected[1])


def test_tied_embedding_adds_both_gradients():
    hidden, head, *rest = make_parts(bias=False)
    table = head.weight
    tokens = torch.randint(0, V, (N,))
    output = linear_distill_loss(table[tokens], head, *rest)
    output.loss.backward()
    leaf = table.detach().double().requires_grad_()
    logits = plain_logits(leaf[tokens], head._replace(weight=leaf))
    teacher = rest[0]
    others = plain_logits(teacher.hidden.double(), teacher.head._replace(weight=teacher.head.weight.double()))
    options = resolve_options(leaf.device, (V, V), Settings())
    definition(logits, others, *rest[1:], options).loss.backward()
    torch.testing.assert_close(table.grad.double(), leaf.grad, rtol=1e-4, atol=1e-5)


def test_logits_exist_a_chunk_at_a_time(monkeypatch):
    seen, whole = [], linear.head_logits
    monkeypatch.setattr(linear, "head_logits", lambda x, head: seen.append(len(x)) or whole(x, head))
    linear_distill_loss(*make_parts(), chunk_rows=3)
    assert seen == [2, 2, 2, 2, 3, 3]  # student and teacher of three chunks


def test_default_chunks():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert default_chunk_rows(151936, torch.float32, cpu) == 110
    assert default_chunk_rows(32000, torch.bfloat16, gpu) == 4096
    assert default_chunk_rows(151936, torch.bfloat16, gpu) == 3533
    assert default_chunk_rows(262144, torch.float32, gpu) == 2048


def test_chunks():
    """Even, but whole 256 rows where that takes no chunk more and none over what was asked for."""

    def sizes(num_rows, chunk_rows):
        return [part.stop - part.start for part in chunks(num_rows, chunk_rows)]

    assert sizes(7, 3) == [2, 2, 3] and sizes(0, 3) == [0] and sizes(3, 3) == [3]
    assert sizes(8192, 3533) == [2816, 2816, 2560] and sizes(8192, 4096) == [4096, 4096]
    assert sizes(7000, 3533) == [3500, 3500]  # 3584 would be too many, and 3328 a third chunk
    for num_rows, chunk_rows in ((9000, 3000), (12345, 2047), (5000, 5000), (1025, 1024)):
        found = chunks(num_rows, chunk_rows)
        assert max(part.stop - part.start for part in found) <= chunk_rows
        assert found[0].start == 0 and found[-1].stop == num_rows
        assert all(one.stop == other.start for one, other in zip(found, found[1:]))
