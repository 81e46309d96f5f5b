"""The loss kernels on a real GPU: parity at real widths, addressing past 2^31, no wait of the host, launches per
device.

The interpreter runs the same checks at small sizes (tests/kernels); what it cannot model is here: bf16 stores, races,
memory that is reused, asynchrony.
"""

import pytest
import torch

from helpers.kernel_cases import (
    DIVERGENCES,
    ENTROPY,
    assert_parity,
    assert_within,
    make_case,
    poison_new_memory,
    run_ours,
)
from kernels import DenseTeacher, Head, RowWeights, distill_loss, linear_distill_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [127, 1000, 4096, 32000, 50257, 65537, 128256, 151936, 152064, 262144]


@pytest.fixture(autouse=True)
def fixed_seed(monkeypatch):
    torch.manual_seed(1234)
    poison_new_memory(monkeypatch)
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_parity_at_real_widths(divergence, beta, width, dtype):
    case = make_case(8, width, dtype=dtype, device="cuda")
    settings = dict(divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY)
    assert_parity(case, *run_ours(case, "triton", **settings), **settings)


@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0, 3.7, 4.0])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_parity_over_temperatures(divergence, beta, temperature, entropy):
    case = make_case(33, 50000, 50048, 49990, dtype=torch.bfloat16, device="cuda")
    settings = dict(divergence=divergence, beta=beta, temperature=temperature, entropy=entropy, vocab_size=49990)
    output, grad = run_ours(case, "triton", **settings)
    assert_parity(case, output, grad, **settings)
    assert (grad[:, 49990:] == 0).all()


@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_saturated_and_masked_rows(divergence, beta, size):
    case = make_case(5, 32000, device="cuda")
    case.student[1], case.teacher[1] = -size, -size
    case.student[1, 3] = case.teacher[1, 31000] = size
    case.teacher[2, 1:] = -float("inf")
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    output, grad = run_ours(case, "triton", **settings)
    assert output.loss.isfinite() and grad.isfinite().all()
    assert_parity(case, output, grad, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("teacher", [True, False], ids=["distilled", "cross-entropy"])
def test_inplace_gives_the_same_bits(teacher, dtype):
    """A store that overtook another warp's read of the label's logit would show here, and nowhere on a CPU."""
    case = make_case(512, 32000, dtype=dtype, device="cuda")
    if not teacher:
        case = case._replace(teacher=None, weights=RowWeights(truth=case.weights.truth + 1, span=case.weights.span))
    expected, expected_grad = run_ours(case, "triton")
    for _ in range(5):
        logits = case.student.clone().requires_grad_() * 1
        output = distill_loss(logits, *case[1:], inplace=True, impl="triton")
        assert logits.detach().equal(expected_grad)
        for row, other in zip(output[1:-1], expected[1:-1]):
            assert row.equal(other)


def test_addresses_past_two_to_the_31():
    rows, width, stride = 40000, 1000, 60000
    buffer = torch.empty(rows * stride, dtype=torch.bfloat16, device="cuda")
    student = buffer.as_strided((rows, width), (stride, 1))
    student.copy_(torch.randn(rows, width, device="cuda"))
    case = make_case(rows, width, dtype=torch.bfloat16, device="cuda")
    last = slice(rows - 64, rows)
    expected, expected_grad = run_ours(
        case._replace(
            student=student[last].contiguous(),
            teacher=case.teacher[last],
            labels=case.labels[last],
            weights=RowWeights(*(w[last] for w in case.weights)),
        ),
        "triton",
    )
    student.requires_grad_()
    output = distill_loss(student, *case[1:], inplace=True, impl="triton")
    assert output.divergence[last].equal(expected.divergence) and student.detach()[last].equal(expected_grad)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_host_never_waits(impl):
    case = make_case(64, 4096, dtype=torch.bfloat16, device="cuda")
    student = case.student.requires_grad_()
    hidden = torch.randn(64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = Head(torch.randn(4096, 32, device="cuda", dtype=torch.bfloat16).requires_grad_())
    teacher = DenseTeacher(hidden.detach(), head._replace(weight=head.weight.detach()))
    settings = dict(temperature=torch.tensor(1.7, device="cuda"), entropy=ENTROPY, impl=impl)

    def step():
        distill_loss(student, *case[1:], **settings).loss.backward()
        linear_distill_loss(hidden, head, teacher, *case[2:], chunk_rows=48, **settings).loss.backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_linear_equals_the_head_and_the_dense_loss(upstream, dtype):
    hidden = torch.randn(300, 128, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(32000, 128, device="cuda") * 0.3).to(dtype).requires_grad_()
    teacher_hidden = torch.randn(300, 64, device="cuda").to(dtype)
    teacher_weight = (torch.randn(32000, 64, device="cuda") * 0.4).to(dtype)
    case = make_case(300, 32000, device="cuda")

    def gradients(cast, call):
        leaves = [hidden.detach().to(cast).requires_grad_(), weight.detach().to(cast).requires_grad_()]
        return torch.autograd.grad(call(*leaves) * upstream, leaves)

    def eager(x, w):
        others = teacher_hidden.to(x.dtype) @ teacher_weight.to(x.dtype).T
        return distill_loss(x @ w.T, others, *case[2:], temperature=2.0, impl="reference").loss

    def fused(x, w):
        teacher = DenseTeacher(teacher_hidden, Head(teacher_weight))
        settings = dict(temperature=2.0, chunk_rows=128, impl="triton")
        return linear_distill_loss(x, Head(w), teacher, *case[2:], **settings).loss

    for ours, theirs, truth in zip(gradients(dtype, fused), gradients(dtype, eager), gradients(torch.float64, eager)):
        assert_within(ours, theirs, truth, eps=max(2e-6, torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_spills(dtype):
    """tools/kernel_proof/static_proof.py on the triton and the driver that are here, for each layout of the row
    form.
    """
    from kernels.fused import dense

    for width in (4096, 32000, 151936):
        for divergence, beta in DIVERGENCES:
            case = make_case(2, width, dtype=dtype, device="cuda")
            run_ours(case, "triton", divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY)
    compiled = [kernel for cache in dense.dense_kernel.device_caches.values() for kernel in cache[0].values()]
    print({(kernel.metadata.num_warps, kernel.n_regs) for kernel in compiled})
    assert compiled and not [kernel.n_spills for kernel in compiled if kernel.n_spills]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    case = make_case(4, 1000, device="cuda:1")
    assert_parity(case, *run_ours(case, "triton"))


@pytest.mark.skipif(torch.version.hip is not None, reason="CUDA graphs")
def test_a_captured_graph_keeps_its_numbers():
    """Temperature, entropy ends and scale are part of the graph: none is read from host memory that is freed by
    then.
    """
    case = make_case(16, 32000, dtype=torch.bfloat16, device="cuda")
    settings = dict(temperature=2.5, entropy=ENTROPY, grad_scale=4.0)
    expected, expected_grad = run_ours(case, "triton", **settings)
    run_ours(case, "triton", **settings)
    graph = torch.cuda.CUDAGraph()
    student = case.student.clone().requires_grad_()
    with torch.cuda.graph(graph):
        output = distill_loss(student, *case[1:], **settings, impl="triton")
        (grad,) = torch.autograd.grad(output.loss, student)
    rubbish = [torch.full((11,), float("nan")) for _ in range(1000)]
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    del rubbish
    assert grad.equal(expected_grad) and output.loss.equal(expected.loss)
