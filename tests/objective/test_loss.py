"""The named losses and the row weights: what is reported is what is differentiated, and each span weighs what it
should.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd.objective.loss import (
    combined_kd_loss,
    integration_copy_loss,
    json_argument_loss,
    process_supervision_loss,
    row_weights,
    tool_name_loss,
)
from kd.objective.terms import TERMS, TermWeights
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kernels import DenseTeacher, Head

N, V, H, HT = 12, 40, 16, 24
BITS = torch.tensor([TRUTH, TRUTH | TOOL, TRUTH | ARGS, TRUTH | TOOL | ARGS, TRUTH | INTEGRATION, TRUTH] * 2)
SPAN_LOSSES = {TOOL: tool_name_loss, ARGS: json_argument_loss, INTEGRATION: integration_copy_loss}
TERM_WEIGHTS = TermWeights(2.0, 0.5, 0.3, 0.2, 0.15, 0.25, 0.1)


@pytest.fixture
def logits():
    return torch.randn(N, V, requires_grad=True)


@pytest.fixture
def labels():
    return torch.randint(0, V, (N,))


def counts(bits: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.stack([weight[(bits & bit) != 0].sum() for bit in (TRUTH, TOOL, ARGS, INTEGRATION)])


@pytest.mark.parametrize("bit", SPAN_LOSSES)
def test_a_span_loss_is_the_mean_cross_entropy_of_its_rows_with_gradient(bit, logits, labels):
    chosen = (BITS & bit) != 0
    expected = F.cross_entropy(logits[chosen], labels[chosen])
    loss = SPAN_LOSSES[bit](logits, labels, BITS)
    assert torch.allclose(loss, expected)
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    assert torch.allclose(ours, theirs, atol=1e-7) and ours[chosen].abs().sum() > 0 and (ours[~chosen] == 0).all()


@pytest.mark.parametrize("loss", SPAN_LOSSES.values())
def test_a_span_with_no_row_is_zero_and_still_in_the_graph(loss, logits, labels):
    value = loss(logits, labels, torch.full((N,), TRUTH))
    assert value.item() == 0 and value.requires_grad
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient == 0).all()


@pytest.mark.parametrize("num_rows", [N, 0])
def test_process_supervision_is_the_weighted_sum_of_the_three(num_rows, logits, labels):
    rows, y, bits = logits[:num_rows], labels[:num_rows], BITS[:num_rows]
    loss = process_supervision_loss(rows, y, bits, w_tool=0.3, w_args=0.2, w_integr=0.7)
    parts = (
        0.3 * tool_name_loss(rows, y, bits)
        + 0.2 * json_argument_loss(rows, y, bits)
        + 0.7 * integration_copy_loss(rows, y, bits)
    )
    assert torch.allclose(loss, parts)
    (one,), (other,) = torch.autograd.grad(loss, logits), torch.autograd.grad(parts, logits)
    assert torch.allclose(one, other, atol=1e-7)


def test_row_weights_sum_to_the_terms_weights_over_the_whole_step():
    """Two micro-batches of one step: each term's weights, over both, add up to what the term weighs (times the
    divisor).
    """
    weight = torch.rand(N) + 0.1
    total = counts(BITS, weight)
    halves = [
        row_weights(BITS[part], weight[part], total, TERM_WEIGHTS, divisor=4.0) for part in (slice(0, 5), slice(5, N))
    ]
    for name, share in {"tool": 0.15, "args": 0.25, "integration": 0.1}.items():
        assert sum(float(getattr(half, name).sum()) for half in halves) == pytest.approx(4 * share)
    for name, share in {"kd": 0.5, "hard": 0.3, "truth": 0.2, "span": 0.5}.items():
        assert sum(float(getattr(half.rows, name).sum()) for half in halves) == pytest.approx(4 * share)
    assert torch.allclose(halves[0].rows.span, halves[0].tool + halves[0].args + halves[0].integration)
    assert halves[0].rows.truth[1] / halves[0].rows.truth[0] == pytest.approx(float(weight[1] / weight[0]))


def test_a_term_that_weighs_nothing_is_off_and_one_without_rows_is_zero():
    weights = row_weights(BITS, torch.ones(N), torch.zeros(4), TERM_WEIGHTS._replace(kd=0.0, hard=0.0, tool=0.0))
    assert weights.rows.kd is None and weights.rows.hard is None and weights.tool is None
    assert (weights.rows.truth == 0).all() and (weights.args == 0).all()  # a count of 0 divides nothing
    assert (
        row_weights(BITS, torch.ones(N), torch.ones(4), TermWeights(1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)).rows.span
        is None
    )


@pytest.fixture
def model():
    hidden, weight = torch.randn(N, H, requires_grad=True), (torch.randn(V, H) / 4).requires_grad_()
    return hidden, weight, DenseTeacher(torch.randn(N, HT), Head(torch.randn(V + 3, HT) / 4))


def textbook(hidden, weight, teacher, labels, divergence, terms):
    """The six terms in plain PyTorch, weight 1 a record."""
    z, u, t = hidden @ weight.T, (teacher.hidden @ teacher.head.weight.T)[:, :V], terms.temperature
    log_q, log_p = torch.log_softmax(z / t, -1), torch.log_softmax(u / t, -1)
    p, q = log_p.exp(), log_q.exp()
    d = (p * (log_p - log_q)).sum(-1) if divergence == "forward_kl" else (q * (log_q - log_p)).sum(-1)
    nll = F.cross_entropy(z, labels, reduction="none")
    span = {
        name: (nll * ((BITS & bit) != 0)).sum() / ((BITS & bit) != 0).sum()
        for name, bit in (("tool", TOOL), ("args", ARGS), ("integration", INTEGRATION))
    }
    values = {"kd": t**2 * d.mean(), "hard": F.cross_entropy(z, u.argmax(-1)), "truth": nll.mean(), **span}
    return torch.stack([getattr(terms, name) * values[name] for name in TERMS])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("only", [None, *TERMS])
def test_every_reported_term_is_the_one_that_is_differentiated(divergence, only, model, labels):
    """With one term on, the reported number's finite value and its gradient are both the textbook's: T^2 in both, CE in
    both.
    """
    hidden, weight, teacher = model
    terms = TERM_WEIGHTS if only is None else TermWeights(2.0, **{name: 0.7 * (name == only) for name in TERMS})
    weights = row_weights(BITS, torch.ones(N), counts(BITS, torch.ones(N)), terms)
    out = combined_kd_loss(
        hidden, Head(weight), teacher, labels, weights, terms, divergence=divergence, vocab_size=V, chunk_rows=5
    )
    expected = textbook(hidden, weight, teacher, labels, divergence, terms)
    assert torch.allclose(out.terms, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(out.loss, expected.sum(), rtol=1e-5)
    assert torch.allclose(out.terms.sum(), out.loss, rtol=1e-5) and not out.terms.requires_grad
    ours, theirs = torch.autograd.grad(out.loss, model[:2]), torch.autograd.grad(expected.sum(), model[:2])
    for one, other in zip(ours, theirs):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7) and other.abs().max() > 1e-4


def test_no_rows_at_all_is_a_zero_that_reaches_the_head(model):
    hidden, weight, teacher = model
    none = torch.zeros(0, dtype=torch.int64)
    out = combined_kd_loss(
        hidden[:0],
        Head(weight),
        DenseTeacher(teacher.hidden[:0], teacher.head),
        none,
        row_weights(none, torch.zeros(0), torch.zeros(4), TERM_WEIGHTS),
        TERM_WEIGHTS,
        vocab_size=V,
    )
    assert out.loss.item() == 0 and out.terms.tolist() == [0] * 6
    gradients = torch.autograd.grad(out.loss, (hidden, weight))
    assert all((g == 0).all() for g in gradients)


def test_padded_columns_get_no_probability(model, labels):
    """A student wider than the tokenizer: what stands in the padding changes neither loss nor gradient, and gets
    none.
    """
    hidden, weight, teacher = model
    weights = row_weights(BITS, torch.ones(N), counts(BITS, torch.ones(N)), TERM_WEIGHTS)
    results = []
    for value in (0.0, 30.0):
        wide = torch.cat([weight.detach(), torch.full((8, H), value)]).requires_grad_()
        out = combined_kd_loss(hidden, Head(wide), teacher, labels, weights, TERM_WEIGHTS, vocab_size=V)
        results.append((out.loss.item(), torch.autograd.grad(out.loss, wide)[0]))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert (results[0][1][V:] == 0).all()
