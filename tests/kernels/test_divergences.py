"""Divergences registered from outside the package: the losses against plain autograd over whole logits, in fp64."""

import pytest
import torch

from helpers.kernel_cases import ENTROPY, make_case
from helpers.sparse_cases import make_sparse
from kernels import (
    DenseTeacher,
    Divergence,
    Head,
    RowWeights,
    distill_loss,
    divergences,
    linear_distill_loss,
    register_divergence,
    sparse_distill_loss,
)

T, VOCAB = 2.0, 37


def total_variation(log_p, p, log_q):
    return 0.5 * (p - log_q.exp()).abs().sum(-1)


def alpha_divergence(log_p, p, log_q, beta):
    """Amari's, with alpha = beta: (1 - sum p^a q^(1-a)) / (a (1 - a))."""
    return (1 - (beta * log_p + (1 - beta) * log_q).exp().sum(-1)) / (beta * (1 - beta))


def squares(log_p, p, log_q):
    """Half of the squared distance, with its gradient in closed form."""
    q = log_q.exp()
    apart = q - p

    def gradient(q, factor):
        pull = q * apart
        return (pull - q * pull.sum(-1, keepdim=True)) * factor

    return 0.5 * apart.square().sum(-1), gradient


@pytest.fixture
def register():
    added = []

    def add(name, formula, **fields):
        register_divergence(Divergence(name, dense=formula, **fields))
        added.append(name)
        return name

    yield add
    for name in added:
        divergences.unregister_divergence(name)


FORMULAS = [(total_variation, None), (alpha_divergence, 0.4), (squares, None)]
each_formula = pytest.mark.parametrize("formula, beta", FORMULAS, ids=[formula.__name__ for formula, _ in FORMULAS])


def value_of(formula, log_p, log_q, beta):
    found = formula(log_p, log_p.exp(), log_q, *([] if beta is None else [beta]))
    return found[0] if isinstance(found, tuple) else found


def plain_loss(student, teacher, labels, weights, formula, beta, vocab=VOCAB):
    """One expression of whole logits, from nothing of the package."""
    z, u = student[:, :vocab], teacher[:, :vocab]
    log_q, log_p = (torch.log_softmax(x / T, -1) for x in (z, u))
    divergence = value_of(formula, log_p, log_q, beta)
    nll = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    return (weights.kd * T**2 * divergence + weights.truth * nll).sum(), divergence


def weights_of(case):
    return RowWeights(kd=case.weights.kd.double(), truth=case.weights.truth.double())


@each_formula
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_dense(formula, beta, scale, register, monkeypatch):
    monkeypatch.setitem(reference_chunks(), "cpu", 4 * VOCAB * 2)  # two rows at a time
    name = register("tested", formula, needs_beta=beta is not None)
    case = make_case(7, VOCAB + 3, vocab=VOCAB, dtype=torch.float64)
    weights, student = weights_of(case), case.student.requires_grad_()
    expected, rows = plain_loss(student, case.teacher, case.labels, weights, formula, beta)
    settings = dict(temperature=T, divergence=name, beta=beta, vocab_size=VOCAB, grad_scale=scale)
    output = distill_loss(student, case.teacher, case.labels, weights, **settings)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.divergence, rows.detach())
    found, true = (torch.autograd.grad(loss * 0.5, student)[0] for loss in (output.loss, expected))
    torch.testing.assert_close(found, true)
    assert not found[:, VOCAB:].any() and found[:, :VOCAB].any()


def reference_chunks():
    from kernels import reference

    return reference._CHUNK_BYTES


@each_formula
def test_linear(formula, beta, register):
    name = register("tested", formula, needs_beta=beta is not None)
    case = make_case(7, VOCAB, dtype=torch.float64)
    weights = weights_of(case)
    hidden, weight = torch.randn(7, 5).double().requires_grad_(), torch.randn(VOCAB, 5).double().requires_grad_()
    teacher = DenseTeacher(torch.randn(7, 6).double(), Head(torch.randn(VOCAB, 6).double()))
    expected, _ = plain_loss(
        hidden @ weight.T, teacher.hidden @ teacher.head.weight.T, case.labels, weights, formula, beta
    )
    settings = dict(temperature=T, divergence=name, beta=beta, chunk_rows=3)
    output = linear_distill_loss(hidden, Head(weight), teacher, case.labels, weights, **settings)
    torch.testing.assert_close(output.loss, expected)
    for found, true in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (output.loss, expected))):
        torch.testing.assert_close(found, true)


@each_formula
def test_sparse(formula, beta, register):
    name = register("tested", formula, sparse=formula, needs_beta=beta is not None)
    case, _ = make_sparse(7, VOCAB, 5, T, dtype=torch.float64)
    teacher, weights = case.teacher._replace(log_tail=case.teacher.log_tail.double()), weights_of(case)
    student, ids = case.student.requires_grad_(), teacher.ids.long()
    log_q = torch.log_softmax(student / T, -1)
    others = log_q.scatter(1, ids, -float("inf")).logsumexp(-1, keepdim=True)
    log_p = torch.cat([teacher.probs.double().log(), teacher.log_tail[:, None]], 1)
    divergence = value_of(formula, log_p, torch.cat([log_q.gather(1, ids), others], 1), beta)
    nll = torch.nn.functional.cross_entropy(student, case.labels, reduction="none")
    expected = (weights.kd * T**2 * divergence + weights.truth * nll).sum()
    settings = dict(temperature=T, divergence=name, beta=beta)
    output = sparse_distill_loss(student, teacher, case.labels, weights, **settings)
    torch.testing.assert_close(output.loss, expected)
    found, true = (torch.autograd.grad(loss, student)[0] for loss in (output.loss, expected))
    torch.testing.assert_close(found, true)


def test_every_term_and_entropy_weighting(register):
    """A formula of forward_kl in plain PyTorch gives what the built-in one gives."""
    name = register("tested", lambda log_p, p, log_q: (p * (log_p - log_q)).sum(-1))
    case = make_case(6, VOCAB, dtype=torch.float64)
    student = case.student.requires_grad_()
    ours, built_in = (
        distill_loss(student, *case[1:], temperature=T, entropy=ENTROPY, divergence=divergence)
        for divergence in (name, "forward_kl")
    )
    torch.testing.assert_close(ours.loss, built_in.loss)
    found, true = (torch.autograd.grad(output.loss, student)[0] for output in (ours, built_in))
    torch.testing.assert_close(found, true)


def test_names_and_what_is_refused(register):
    assert divergences.names() == ("forward_kl", "reverse_kl", "jsd") == divergences.names_by_kind()
    name = register("total_variation", total_variation)
    assert divergences.names()[-1] == name and name not in divergences.names_by_kind()
    with pytest.raises(ValueError, match="'total_variation' is registered already: choose another name"):
        register(name, total_variation)
    with pytest.raises(ValueError, match="is no identifier"):
        register("total variation", total_variation)
    case = make_case(3, VOCAB)
    with pytest.raises(ValueError, match="no kernel for divergence 'total_variation': use impl='auto'"):
        distill_loss(*case, divergence=name, impl="triton")
    with pytest.raises(ValueError, match="beta belongs to divergence='jsd' only"):
        distill_loss(*case, divergence=name, beta=0.5)
    sparse, _ = make_sparse(3, VOCAB, 4)
    with pytest.raises(ValueError, match="'total_variation' has no formula for a topk teacher: register it with"):
        sparse_distill_loss(*sparse, divergence=name)
    sampled, _ = make_sparse(3, VOCAB, 4, kind="sampled")
    with pytest.raises(ValueError, match="from which total_variation cannot be estimated without bias"):
        sparse_distill_loss(*sampled, divergence=name)
    register("needs", alpha_divergence, needs_beta=True)
    with pytest.raises(ValueError, match="divergence='needs' needs beta between 0 and 1"):
        distill_loss(*case, divergence="needs")
    with pytest.raises(ValueError, match=r"beta is 2.0; it must lie in \[0, 1\]$"):
        distill_loss(*case, divergence="needs", beta=2.0)


def test_formulas_that_cannot_be_used(register):
    student, *rest = make_case(3, VOCAB)
    student.requires_grad_()
    register("unsummed", lambda log_p, p, log_q: p - log_q.exp())
    with pytest.raises(ValueError, match=r"'unsummed' returned shape \[3, 37\]: return one value a row, \[3\]"):
        distill_loss(student, *rest, divergence="unsummed")
    register("detached", lambda log_p, p, log_q: (p - log_q.detach().exp()).abs().sum(-1))
    with pytest.raises(RuntimeError, match="'detached' has no gradient in closed form"):
        distill_loss(student, *rest, divergence="detached")


def test_compiled(register):
    """A gradient in closed form works under torch.compile; autograd does not run there, and says so."""
    student, *rest = make_case(3, VOCAB)
    student.requires_grad_()

    def compiled(divergence):
        call = torch.compile(distill_loss, fullgraph=True, backend="aot_eager")
        return call(student, *rest, divergence=divergence).loss

    name = register("squares", squares)
    expected = torch.autograd.grad(distill_loss(student, *rest, divergence=name).loss, student)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(name), student)[0], expected)
    register("total_variation", total_variation)
    with pytest.raises(RuntimeError, match="let it return"):
        compiled("total_variation")
