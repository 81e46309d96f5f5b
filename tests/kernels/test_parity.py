"""Both implementations against fp64 under the rule of kernel_cases, over dtypes, shapes, temperatures and terms."""

import itertools

import pytest
import torch

from helpers.kernel_cases import (
    DIVERGENCES,
    ENTROPY,
    assert_parity,
    assert_within,
    make_case,
    options_for,
    run_definition,
    run_ours,
    run_peer,
)
from kernels import RowWeights, distill_loss

IMPLS = ["reference", "triton"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0, 3.7, 4.0])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_fp32(divergence, beta, temperature, entropy, impl, narrow_tiles):
    case = make_case(5, 200)
    settings = dict(divergence=divergence, beta=beta, temperature=temperature, entropy=entropy)
    assert_parity(case, *run_ours(case, impl, **settings), **settings)


# 2: the smallest; 64, 128: whole tiles of narrow_tiles; 127: none of 16 fits; 1000: a last tile that is partly filled.
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [2, 64, 127, 128, 1000])
def test_widths(width, impl, narrow_tiles):
    case = make_case(3, width)
    assert_parity(case, *run_ours(case, impl, temperature=2.0), temperature=2.0)


# 65537: one column past a tile of the interpreter's real width.
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_wide_row(divergence, beta):
    case = make_case(3, 65537, spread=2.0)
    settings = dict(divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY)
    assert_parity(case, *run_ours(case, "triton", **settings), **settings)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("widths", [(70, 66, 65), (66, 80, 65), (65, 65, 65), (70, 70, 3)])
def test_padded_vocabularies(widths, impl, narrow_tiles):
    """Columns past vocab_size hold the largest logits of all: none of them may be seen, nor get gradient."""
    width, teacher_width, vocab = widths
    case = make_case(4, width, teacher_width, vocab)
    case.student[:, vocab:], case.teacher[:, vocab:] = 50.0, 60.0
    for divergence, beta in DIVERGENCES:
        settings = dict(divergence=divergence, beta=beta, vocab_size=vocab)
        output, grad = run_ours(case, impl, **settings)
        assert_parity(case, output, grad, **settings)
        assert (grad[:, vocab:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision(impl, divergence, beta, dtype):
    case = make_case(6, 300, dtype=dtype)
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    if impl == "triton":
        # The interpreter truncates fp32 -> bf16 stores, a GPU rounds: take the gradient in fp32 and round here.
        from kernels.fused import dense

        grad = torch.empty(case.student.shape, dtype=torch.float32)
        output = dense.dense_rows(*case, options_for(case, **settings), grad)
        output, grad = output._replace(loss=output.loss.sum()), grad.to(dtype)
    else:
        output, grad = run_ours(case, impl, **settings)
        assert grad.dtype == dtype
    assert output.loss.dtype == torch.float32
    assert_parity(case, output, grad, **settings)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=4)))
def test_every_set_of_terms(on, impl):
    """Off (None) costs nothing and gives what zeros give, and zeros in the reports."""
    case = make_case(4, 50)
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


@pytest.mark.parametrize("impl", IMPLS)
def test_tensor_scalars_equal_numbers(impl):
    case = make_case(4, 60)
    numbers = dict(divergence="jsd", beta=0.25, temperature=2.5, entropy=ENTROPY, grad_scale=8.0)
    tensors = dict(
        divergence="jsd",
        beta=torch.tensor(0.25),
        temperature=torch.tensor(2.5),
        grad_scale=torch.tensor(8.0),
        entropy=type(ENTROPY)(
            torch.tensor(1.0), torch.tensor(5.0), *(tuple(torch.tensor(x) for x in pair) for pair in ENTROPY[2:])
        ),
    )
    (a, grad_a), (b, grad_b) = run_ours(case, impl, **numbers), run_ours(case, impl, **tensors)
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(grad_a, grad_b)


def test_the_kernel_docstrings_example():
    log3 = torch.tensor(3.0).log().item()
    student = torch.tensor([[log3, 0.0]], requires_grad=True)
    one = torch.ones(1)
    args = (torch.zeros(1, 2), torch.tensor([0]))
    output = distill_loss(student, *args, RowWeights(kd=one, truth=one), impl="triton")
    (grad,) = torch.autograd.grad(output.loss, student)
    found = torch.stack([output.divergence[0], output.nll[0], output.loss, output.teacher_entropy[0]])
    torch.testing.assert_close(found, torch.tensor([0.143841, 0.287682, 0.431523, 0.693147]), atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, torch.zeros(1, 2), atol=1e-6, rtol=0)

    output = distill_loss(student, *args, RowWeights(kd=one), temperature=2.0, impl="triton")
    (grad,) = torch.autograd.grad(output.loss, student)
    found = torch.stack([output.divergence[0], output.loss])
    torch.testing.assert_close(found, torch.tensor([0.037253, 0.149010]), atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, torch.tensor([[0.267949, -0.267949]]), atol=1e-6, rtol=0)
