"""The sparse kernel on a real GPU: parity at real widths and K, stores that must not overtake reads, no wait of the
host.

What the interpreter cannot model is here: races between the sweep's stores and those of label, choice and slots; bf16
stores; memory that is reused; asynchrony.
"""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, ENTROPY, assert_within, poison_new_memory
from helpers.sparse_cases import SparseCase, assert_parity, make_sparse, run_ours, topk_of
from kernels import (
    Head,
    RowWeights,
    linear_distill_loss,
    sparse_distill_loss,
    sparse_teacher,
    teacher_sample,
    teacher_topk,
)
from kernels.linear import widening_addmm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [127, 1000, 4096, 32000, 50257, 65537, 128256, 151936, 152064, 262144]


@pytest.fixture(autouse=True)
def fixed_seed(monkeypatch):
    torch.manual_seed(1234)
    poison_new_memory(monkeypatch)
    yield
    torch.cuda.empty_cache()


# What a kernel is compiled for is dtype, divergence, layout and the power of two above K: not all of their products.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width, k", [(width, 64) for width in WIDTHS] + [(151936, k) for k in (1, 12, 512)])
def test_parity_at_real_widths(width, k, dtype):
    for divergence, beta in DIVERGENCES:
        case, _ = make_sparse(8, width, min(k, width), 2.0, dtype=dtype, device="cuda")
        settings = dict(divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY)
        assert_parity(case, *run_ours(case, "triton", **settings), **settings)


@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0, 3.7, 4.0])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_parity_over_temperatures(divergence, beta, temperature, entropy):
    case, _ = make_sparse(33, 50048, 50, temperature, dtype=torch.bfloat16, device="cuda", vocab=49990)
    settings = dict(divergence=divergence, beta=beta, temperature=temperature, entropy=entropy, vocab_size=49990)
    output, grad = run_ours(case, "triton", **settings)
    assert_parity(case, output, grad, **settings)
    assert (grad[:, 49990:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled(dtype):
    case, _ = make_sparse(33, 32000, 50, 2.0, dtype=dtype, kind="sampled", device="cuda")
    assert_parity(case, *run_ours(case, "triton", temperature=2.0), temperature=2.0)


def test_every_token_kept():
    case, _ = make_sparse(4, 5000, 5000, 2.0, device="cuda")
    assert_parity(case, *run_ours(case, "triton", temperature=2.0), temperature=2.0)


@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_saturated_rows(divergence, beta, size):
    case, dense = make_sparse(5, 32000, 12, device="cuda")
    for row, column in ((1, 3), (2, 31999)):
        dense.student[row], dense.teacher[row] = -size, -size
        dense.student[row, column] = dense.teacher[row, 70] = size
    dense.student[3] = -size
    dense.student[3, dense.teacher[3].topk(12).indices] = size
    case = case._replace(student=dense.student, teacher=topk_of(dense.teacher, 12, 2.0))
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    output, grad = run_ours(case, "triton", **settings)
    assert output.loss.isfinite() and grad.isfinite().all()
    assert_parity(case, output, grad, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", ["label and choice", "neither"])
def test_the_same_bits_every_time_and_in_place(kept, dtype):
    """Label, choice and slots are written after the sweep, over it: a store out of order changes bits now and then."""
    case, _ = make_sparse(512, 32000, 50, 2.0, dtype=dtype, device="cuda")
    if kept == "neither":
        ids = case.teacher.ids
        case = case._replace(
            labels=(ids[:, -1] + 1).long() % 32000, teacher=case.teacher._replace(argmax=(ids[:, 0] + 7) % 32000)
        )
    else:
        case = case._replace(labels=case.teacher.ids[:, 3].long())
    expected, expected_grad = run_ours(case, "triton", temperature=2.0)
    for _ in range(5):
        logits = case.student.clone().requires_grad_() * 1
        output = sparse_distill_loss(logits, *case[1:], inplace=True, impl="triton", temperature=2.0)
        assert logits.detach().equal(expected_grad)
        for row, other in zip(output[1:-1], expected[1:-1]):
            assert row.equal(other)


def test_addresses_past_two_to_the_31():
    rows, width, stride = 40000, 1000, 60000
    buffer = torch.empty(rows * stride, dtype=torch.bfloat16, device="cuda")
    student = buffer.as_strided((rows, width), (stride, 1))
    case, _ = make_sparse(rows, width, 12, dtype=torch.bfloat16, device="cuda")
    student.copy_(case.student)
    last = slice(rows - 64, rows)
    few = SparseCase(
        student[last].contiguous(),
        case.teacher._replace(**{name: getattr(case.teacher, name)[last] for name in case.teacher._fields[:-1]}),
        case.labels[last],
        RowWeights(*(w[last] for w in case.weights)),
    )
    expected, expected_grad = run_ours(few, "triton")
    output = sparse_distill_loss(student.requires_grad_(), *case[1:], inplace=True, impl="triton")
    assert output.divergence[last].equal(expected.divergence) and student.detach()[last].equal(expected_grad)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_host_never_waits(impl):
    case, _ = make_sparse(64, 4096, 12, 2.0, dtype=torch.bfloat16, device="cuda")
    student = case.student.requires_grad_()
    hidden = torch.randn(64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = Head(torch.randn(4096, 32, device="cuda", dtype=torch.bfloat16).requires_grad_())
    settings = dict(temperature=torch.tensor(2.0, device="cuda"), entropy=ENTROPY, impl=impl)

    def step():
        sparse_distill_loss(student, *case[1:], **settings).loss.backward()
        live = sparse_teacher(teacher_topk(hidden.detach(), head, 12, (2.0,)), 2.0)
        linear_distill_loss(hidden, head, live, *case[2:], chunk_rows=48, **settings).loss.backward()

    step()  # compiles, and asks addmm what it can do
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_addmm_into_a_wider_sum(dtype):
    """Either answer is right; it is printed, so that the log says which path the weight's gradient takes here."""
    print(
        "addmm widens", dtype, widening_addmm(torch.device("cuda", torch.cuda.current_device()), dtype, torch.float32)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_linear_equals_the_head_and_the_sparse_loss(kind, dtype):
    hidden = torch.randn(300, 128, device="cuda").to(dtype)
    weight = (torch.randn(32000, 128, device="cuda") * 0.3).to(dtype)
    theirs = torch.randn(300, 64, device="cuda"), Head(torch.randn(32000, 64, device="cuda") * 0.4)
    if kind == "topk":
        signal = teacher_topk(*theirs, 50, (2.0,))
    else:
        signal = teacher_sample(*theirs, 50, (2.0,), torch.arange(300, device="cuda"))
    teacher = sparse_teacher(signal, 2.0)
    case, _ = make_sparse(300, 32000, 1, device="cuda")

    def gradients(cast, fused):
        x, w = hidden.to(cast).requires_grad_(), weight.to(cast).requires_grad_()
        if fused:
            settings = dict(temperature=2.0, chunk_rows=128, impl="triton")
            loss = linear_distill_loss(x, Head(w), teacher, *case[2:], **settings).loss
        else:
            loss = sparse_distill_loss(x @ w.T, teacher, *case[2:], temperature=2.0, impl="reference").loss
        return torch.autograd.grad(loss * 3.0, (x, w))

    for ours, theirs, truth in zip(gradients(dtype, True), gradients(dtype, False), gradients(torch.float64, False)):
        assert_within(ours, theirs, truth, eps=max(2e-6, torch.finfo(dtype).eps))


def test_top_k_on_a_gpu_is_top_k_on_a_cpu():
    hidden, weight = torch.randn(50, 32), torch.randn(20000, 32)
    here = teacher_topk(hidden.double(), Head(weight.double()), 40, (1.0, 3.0))
    there = teacher_topk(hidden.double().cuda(), Head(weight.double().cuda()), 40, (1.0, 3.0))
    for mine, their in zip(here[:-1], there[:-1]):
        torch.testing.assert_close(mine, their.cpu())
    seeds = torch.arange(50)
    here = teacher_sample(hidden.double(), Head(weight.double()), 50, (1.0,), seeds)
    there = teacher_sample(hidden.double().cuda(), Head(weight.double().cuda()), 50, (1.0,), seeds.cuda())
    assert here.ids.equal(there.ids.cpu()) and here.counts.equal(there.counts.cpu())
