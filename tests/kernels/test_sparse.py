"""sparse_distill_loss against fp64 under the parity rule, and the definition against an independent writing of it."""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, ENTROPY, assert_within
from helpers.sparse_cases import assert_parity, draws_of, make_sparse, options_for, run_definition, run_ours, run_peer
from kernels import RowWeights, SparseTeacher, distill_loss, sparse_distill_loss

IMPLS = ["reference", "triton"]
both = pytest.mark.parametrize("impl", IMPLS)
each_divergence = pytest.mark.parametrize("divergence, beta", DIVERGENCES)


@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.7])
@each_divergence
def test_definition_matches_an_independent_writing_in_fp64(divergence, beta, temperature, entropy):
    case, _ = make_sparse(6, 37, 5, temperature, dtype=torch.float64)
    settings = dict(divergence=divergence, beta=beta, temperature=temperature, entropy=entropy)
    options = options_for(case, **settings)
    output, grad = run_definition(case, options)
    parts, their_grad = run_peer(case, options)
    torch.testing.assert_close(output.loss, parts["loss"])
    torch.testing.assert_close(output.divergence, parts["divergence"])
    torch.testing.assert_close(grad, their_grad)
    # The formula of the reference has the definition's gradient to fp64's own accuracy.
    ours, our_grad = run_ours(case, "reference", **settings)
    torch.testing.assert_close(ours.loss, output.loss)
    torch.testing.assert_close(our_grad, grad)


@both
@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0, 3.7, 4.0])
@each_divergence
def test_fp32(divergence, beta, temperature, entropy, impl, narrow_slots):
    case, _ = make_sparse(5, 200, 12, temperature)
    settings = dict(divergence=divergence, beta=beta, temperature=temperature, entropy=entropy)
    assert_parity(case, *run_ours(case, impl, **settings), **settings)


# K = 1: one token and the rest; 15, 16: the rest's bucket inside and outside the first turn of narrow_slots; V: no
# rest.
@both
@pytest.mark.parametrize(
    "width, k", [(2, 1), (127, 1), (127, 8), (128, 15), (64, 16), (127, 127), (1000, 64), (1000, 512)]
)
def test_widths(width, k, impl, narrow_slots):
    for divergence, beta in DIVERGENCES if k < 512 else DIVERGENCES[-1:]:
        case, _ = make_sparse(3, width, k, 2.0)
        settings = dict(divergence=divergence, beta=beta, temperature=2.0)
        assert_parity(case, *run_ours(case, impl, **settings), **settings)


# One column past a tile of the interpreter's real width, as many slots as are taken in one turn, and one more.
@pytest.mark.parametrize("k", [8, 1023, 1024])
def test_wide_row(k):
    case, _ = make_sparse(3, 65537, k, 2.0, spread=2.0)
    settings = dict(divergence="jsd", beta=0.3, temperature=2.0, entropy=ENTROPY)
    assert_parity(case, *run_ours(case, "triton", **settings), **settings)


@both
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_sampled(temperature, impl, narrow_slots):
    case, _ = make_sparse(6, 150, 12, temperature, kind="sampled")
    settings = dict(temperature=temperature, entropy=ENTROPY)
    assert_parity(case, *run_ours(case, impl, **settings), **settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["topk", "sampled"])
@both
def test_half_precision(impl, kind, dtype):
    case, _ = make_sparse(6, 300, 12, 2.0, dtype=dtype, kind=kind)
    settings = dict(temperature=2.0)
    if impl == "triton":
        # The interpreter truncates fp32 -> bf16 stores, a GPU rounds: take the gradient in fp32 and round here.
        from kernels.fused import sparse

        grad = torch.empty(case.student.shape, dtype=torch.float32)
        output = sparse.sparse_rows(*case, options_for(case, **settings), grad)
        output, grad = output._replace(loss=output.loss.sum()), grad.to(dtype)
    else:
        output, grad = run_ours(case, impl, **settings)
        assert grad.dtype == dtype
    assert_parity(case, output, grad, **settings)


@both
@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_slots_in_any_layout(kind, impl):
    """Column by column in memory, as a transposition leaves them."""
    case, _ = make_sparse(6, 150, 12, 2.0, kind=kind)
    expected, expected_grad = run_ours(case, impl, temperature=2.0)
    teacher = case.teacher._replace(
        ids=case.teacher.ids.t().contiguous().t(), probs=case.teacher.probs.t().contiguous().t()
    )
    assert not teacher.ids.is_contiguous()
    output, grad = run_ours(case._replace(teacher=teacher), impl, temperature=2.0)
    assert grad.equal(expected_grad) and output.divergence.equal(expected.divergence)


@both
@each_divergence
def test_every_token_kept_equals_dense(divergence, beta, impl, narrow_slots):
    case, dense = make_sparse(5, 90, 90, 2.0)
    assert (case.teacher.log_tail == -float("inf")).all()
    settings = dict(divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY, impl=impl)
    student = dense.student.clone().requires_grad_()
    expected = distill_loss(student, *dense[1:], **settings)
    (expected_grad,) = torch.autograd.grad(expected.loss, student)
    output, grad = run_ours(case, **settings)
    for name, row in expected._asdict().items():
        torch.testing.assert_close(getattr(output, name), row, rtol=2e-5, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@each_divergence
def test_is_a_lower_bound_that_grows_with_k(divergence, beta):
    settings = dict(divergence=divergence, beta=beta, temperature=2.0, impl="reference")
    bounds = []
    for k in (1, 5, 30, 100):
        torch.manual_seed(5)
        case, dense = make_sparse(8, 100, k, 2.0, dtype=torch.float64)
        bounds.append(sparse_distill_loss(*case, **settings).divergence)
    full = distill_loss(*dense, **settings).divergence
    assert all((low <= high + 1e-6).all() for low, high in zip(bounds, bounds[1:])) and (bounds[0] < full - 1e-3).any()
    torch.testing.assert_close(bounds[-1], full, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_gradient_is_that_of_the_reported_loss(kind, impl):
    """Also where the probabilities do not quite sum to 1, as those of a cache in 16 bits do not."""
    case, _ = make_sparse(5, 40, 6, 2.0, kind=kind)
    case = case._replace(teacher=case.teacher._replace(probs=case.teacher.probs * 0.98))
    _, grad = run_ours(case, impl, temperature=2.0, entropy=ENTROPY)
    direction, step = torch.randn_like(case.student).double(), 1e-6
    up, down = (
        sparse_distill_loss(
            case.student.double() + s * direction, *case[1:], temperature=2.0, entropy=ENTROPY, impl="reference"
        ).loss
        for s in (step, -step)
    )
    torch.testing.assert_close((grad.double() * direction).sum(), (up - down) / (2 * step), rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("off", range(16))
def test_every_set_of_terms(off, impl):
    """Off (None) costs nothing and gives what zeros give, and zeros in the reports."""
    on = [not off >> bit & 1 for bit in range(4)]
    case, _ = make_sparse(4, 50, 5, 2.0)
    case = case._replace(weights=RowWeights(*(w if use else None for w, use in zip(case.weights, on))))
    settings = dict(temperature=2.0, entropy=ENTROPY)
    output, grad = run_ours(case, impl, **settings)
    filled = case._replace(weights=RowWeights(*(torch.zeros(4) if w is None else w for w in case.weights)))
    truth, truth_grad = run_definition(filled, options_for(case, **settings))
    _, their_grad = run_peer(filled, options_for(case, **settings))
    torch.testing.assert_close(output.loss.double(), truth.loss, rtol=1e-5, atol=1e-6)
    assert_within(grad, their_grad, truth_grad)
    for row, use in zip((output.divergence, output.nll, output.hard_nll), (on[0], on[1] or on[2], on[3])):
        assert row.any() == use


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_sampled_teacher_is_unbiased(temperature):
    """Independent draws: over many, gradient and divergence go to the dense teacher's, within 5 standard errors."""
    torch.manual_seed(7)
    repeats, draws = 6000, 8
    case, dense = make_sparse(1, 20, 1, temperature)
    kd = RowWeights(kd=torch.ones(repeats))
    many = draws_of(dense.teacher.expand(repeats, -1), draws, temperature)
    student = dense.student.expand(repeats, -1).clone().requires_grad_()
    output = sparse_distill_loss(
        student, many, dense.labels.expand(repeats), kd, temperature=temperature, impl="reference"
    )
    (grad,) = torch.autograd.grad(output.loss, student)
    one = dense.student.clone().requires_grad_()
    settings = dict(temperature=temperature, impl="reference")
    expected = distill_loss(one, dense.teacher, dense.labels, RowWeights(kd=torch.ones(1)), **settings)
    (expected_grad,) = torch.autograd.grad(expected.loss, one)
    for found, truth in ((grad, expected_grad[0]), (output.divergence[:, None], expected.divergence)):
        error = (found.mean(0) - truth).abs()
        assert (error <= 5 * found.std(0) / repeats**0.5 + 1e-6).all()
        assert (found.std(0) / repeats**0.5 < 0.05 * truth.abs().max()).all()  # the test could see a bias
    # Against itself the teacher's divergence is 0, which draws miss on both sides.
    itself = sparse_distill_loss(dense.teacher.expand(repeats, -1), many, dense.labels.expand(repeats), kd, **settings)
    rows = itself.divergence
    assert rows.mean().abs() <= 5 * rows.std() / repeats**0.5 and (rows < 0).any() and (rows > 0).any()


def test_the_kernel_docstrings_example():
    log2, one = torch.tensor(2.0).log().item(), torch.ones(1)
    student = torch.tensor([[log2, 0.0, 0.0]], requires_grad=True)
    zero = torch.zeros(1)
    topk = SparseTeacher(
        torch.tensor([[0]], dtype=torch.int32),
        torch.tensor([[0.75]]),
        torch.tensor([0.25]).log(),
        zero,
        zero,
        torch.tensor([0]),
        "topk",
    )
    sampled = topk._replace(
        ids=torch.tensor([[0, 1]], dtype=torch.int32),
        probs=torch.tensor([[0.75, 0.25]]),
        entropy_t=torch.tensor([0.6]),
        kind="sampled",
    )
    for teacher, divergence, value, gradient in (
        (topk, "forward_kl", 0.130812, [-0.25, 0.125, 0.125]),
        (topk, "reverse_kl", 0.143841, [-0.274653, 0.137327, 0.137327]),
        (sampled, "forward_kl", 0.266434, [-0.25, 0.0, 0.25]),
    ):
        output = sparse_distill_loss(
            student, teacher, torch.tensor([0]), RowWeights(kd=one), divergence=divergence, impl="triton"
        )
        (grad,) = torch.autograd.grad(output.loss, student)
        torch.testing.assert_close(output.divergence, torch.tensor([value]), atol=1e-6, rtol=0)
        torch.testing.assert_close(grad, torch.tensor([gradient]), atol=1e-6, rtol=0)
