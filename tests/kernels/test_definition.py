"""The definition itself: against an independent writing of it, and against finite differences of what it reports."""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, ENTROPY, ROWS, make_case, options_for, peer, run_definition
from kernels import RowWeights, distill_loss


@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_matches_an_independent_writing_in_fp64(divergence, beta, temperature, entropy):
    case = make_case(6, 37, 41, vocab=35, dtype=torch.float64)
    options = options_for(
        case, divergence=divergence, beta=beta, temperature=temperature, entropy=entropy, vocab_size=35
    )
    output, grad = run_definition(case, options)
    student = case.student.clone().requires_grad_()
    parts = peer(student, case.teacher, case.labels, case.weights, options)
    torch.testing.assert_close(output.loss, parts["loss"])
    for name in ROWS:
        torch.testing.assert_close(getattr(output, name), parts[name])
    torch.testing.assert_close(grad, torch.autograd.grad(parts["loss"], student)[0])


@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("divergence, beta", DIVERGENCES)
def test_gradient_is_that_of_the_reported_loss(divergence, beta, temperature, entropy):
    """Catches T^2 on one side only, a term that is shown and not trained, a normaliser applied once too often."""
    case = make_case(5, 23, dtype=torch.float64)
    settings = dict(divergence=divergence, beta=beta, temperature=temperature, entropy=entropy, impl="reference")

    def loss_at(student):
        return distill_loss(student, case.teacher, case.labels, case.weights, **settings).loss

    student = case.student.clone().requires_grad_()
    loss_at(student).backward()
    for _ in range(4):
        direction, step = torch.randn_like(case.student), 1e-5
        slope = (loss_at(case.student + step * direction) - loss_at(case.student - step * direction)) / (2 * step)
        torch.testing.assert_close((student.grad * direction).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_named_terms_are_what_is_optimised(impl, temperature):
    """Each reported term, differentiated numerically, is the gradient that the term adds to the loss."""
    case = make_case(6, 29)
    tool, args, integration = torch.rand(3, 6)
    kd, truth, _, hard = case.weights
    terms = {
        "kl": (RowWeights(kd=kd), lambda o: (kd * temperature**2 * o.divergence).sum()),
        "truth": (RowWeights(truth=truth), lambda o: (truth * o.nll).sum()),
        "hard": (RowWeights(hard=hard), lambda o: (hard * o.hard_nll).sum()),
        "tool": (RowWeights(span=tool), lambda o: (tool * o.nll).sum()),
        "args": (RowWeights(span=args), lambda o: (args * o.nll).sum()),
        "integration": (RowWeights(span=integration), lambda o: (integration * o.nll).sum()),
    }

    def call(student, weights, impl):
        return distill_loss(student, case.teacher, case.labels, weights, temperature=temperature, impl=impl)

    student = case.student.clone().requires_grad_()
    everything = call(student, RowWeights(kd, truth, tool + args + integration, hard), impl)
    (whole,) = torch.autograd.grad(everything.loss, student)
    total, reported_sum = torch.zeros_like(whole), 0.0
    direction, step = torch.randn_like(case.student).double(), 1e-5
    for name, (weights, reported) in terms.items():
        output = call(student, weights, impl)
        torch.testing.assert_close(output.loss.detach(), reported(output), msg=name)
        (grad,) = torch.autograd.grad(output.loss, student)
        up, down = (reported(call(case.student.double() + s * direction, weights, "reference")) for s in (step, -step))
        torch.testing.assert_close((grad.double() * direction).sum(), (up - down) / (2 * step), rtol=1e-4, atol=1e-5)
        total += grad
        reported_sum += reported(everything)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(everything.loss.detach(), reported_sum)


def test_beta_ends_are_the_plain_divergences():
    """beta 0 is forward and 1 reverse, and near the ends jsd / beta approaches them: the convention is not swapped."""
    case = make_case(4, 19, dtype=torch.float64)
    case = case._replace(weights=RowWeights(kd=torch.ones(4)))

    def rows(divergence, beta=None):
        return distill_loss(*case, divergence=divergence, beta=beta, impl="reference").divergence

    assert rows("jsd", 0).equal(rows("forward_kl")) and rows("jsd", 1.0).equal(rows("reverse_kl"))
    assert not torch.allclose(rows("forward_kl"), rows("reverse_kl"))
    near_zero, near_one = rows("jsd", 1e-7) / 1e-7, rows("jsd", 1 - 1e-7) / 1e-7
    torch.testing.assert_close(near_zero, rows("forward_kl"), rtol=1e-3, atol=0)
    torch.testing.assert_close(near_one, rows("reverse_kl"), rtol=1e-3, atol=0)
