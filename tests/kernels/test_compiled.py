"""torch.compile(fullgraph=True) around the public functions: the numbers and gradients of eager mode, every kind of
call.

The backend is aot_eager: tracing, shapes and autograd formulas are what is ours, not the code that inductor writes.
"""

import pytest
import torch

from helpers.kernel_cases import ENTROPY
from kernels import (
    DenseTeacher,
    DistillOutput,
    Head,
    RowWeights,
    distill_loss,
    linear_distill_loss,
    sparse_distill_loss,
    sparse_teacher,
    teacher_sample,
    teacher_topk,
)
from kernels.contract import Settings

N, H, V = 5, 8, 40


class Losses(torch.nn.Module):
    """A student's head, and whichever of the public functions fits the teacher."""

    def __init__(self, form, settings, bias=True):
        super().__init__()
        self.head = torch.nn.Linear(H, V, bias=bias)
        self.form, self.settings = form, settings

    def forward(self, hidden, teacher, labels, weights, temperature=2.0):
        settings = dict(self.settings, temperature=temperature)
        if self.form == "linear":
            head = Head(self.head.weight, self.head.bias, softcap=3.0)
            return linear_distill_loss(hidden, head, teacher, labels, weights, chunk_rows=2, **settings)
        call = sparse_distill_loss if self.form == "sparse" else distill_loss
        return call(self.head(hidden), teacher, labels, weights, **settings)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def make_call(kind):
    theirs = torch.randn(N, H), Head(torch.randn(V, H))
    if kind == "topk":
        teacher = sparse_teacher(teacher_topk(*theirs, 6, (2.0,)), 2.0)
    elif kind == "sampled":
        teacher = sparse_teacher(teacher_sample(*theirs, 8, (2.0,), torch.arange(N)), 2.0)
    elif kind == "dense":
        teacher = DenseTeacher(*theirs)
    else:
        teacher = theirs[0] @ theirs[1].weight.T if kind == "logits" else None
    weights = RowWeights(*torch.rand(4, N))
    if teacher is None:
        weights = weights._replace(kd=None, hard=None)
    return torch.randn(N, H, requires_grad=True), teacher, torch.randint(0, V, (N,)), weights


def both_ways(model, call, upstream, **kwargs):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for run in (model, compiled):
        output = run(*call, **kwargs)
        leaves = [call[0], *model.parameters()]
        yield output, torch.autograd.grad(output.loss * upstream, leaves)


@pytest.mark.parametrize(
    "form, kind",
    [
        ("dense", "logits"),
        ("dense", None),
        ("sparse", "topk"),
        ("sparse", "sampled"),
        ("linear", "dense"),
        ("linear", "topk"),
        ("linear", "sampled"),
        ("linear", None),
    ],
)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_equals_eager(form, kind, impl):
    entropy = None if kind is None else ENTROPY
    model = Losses(form, dict(entropy=entropy, grad_scale=8.0, impl=impl), bias=kind != "topk")
    (eager, grads), (compiled, other_grads) = both_ways(model, make_call(kind), upstream=3.0)
    assert isinstance(compiled, DistillOutput) and isinstance(compiled.weights, RowWeights)
    torch.testing.assert_close(compiled, eager)
    assert not any(row.requires_grad for row in (*compiled[1:-1], *compiled.weights))
    for mine, their in zip(other_grads, grads):
        torch.testing.assert_close(mine, their)


def test_a_schedule_of_temperatures_is_followed():
    """As a 0-d tensor it is an input of the graph; as a number it may compile anew, and must not be frozen."""
    call = make_call("dense")
    model = Losses("linear", dict(divergence="jsd", beta=torch.tensor(0.3)))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for temperature in (1.0, 2.0, 3.5, torch.tensor(1.5), torch.tensor(2.5)):
        expected = model(*call, temperature=temperature)
        torch.testing.assert_close(compiled(*call, temperature=temperature).loss, expected.loss)


def test_another_number_of_rows():
    model = Losses("linear", dict(impl="reference"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_rows in (5, 3, 4):
        hidden, teacher, labels, weights = make_call("dense")
        part = (
            hidden[:num_rows].detach().requires_grad_(),
            teacher._replace(hidden=teacher.hidden[:num_rows]),
            labels[:num_rows],
            RowWeights(*(w[:num_rows] for w in weights)),
        )
        output = compiled(*part)
        output.loss.backward()
        torch.testing.assert_close(output.loss, model(*part).loss)
        assert output.nll.shape == (num_rows,) and part[0].grad.shape == (num_rows, H)


def test_without_gradients():
    model, call = Losses("linear", {}), make_call("dense")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        output = compiled(*call)
        torch.testing.assert_close(output.loss, model(*call).loss)
    assert not output.loss.requires_grad
    model.requires_grad_(False)
    output = compiled(*call)
    output.loss.backward()
    assert call[0].grad is not None and model.head.weight.grad is None


def test_the_teachers_side():
    hidden, head, seeds = torch.randn(N, H), torch.randn(V, H), torch.arange(N)

    def both(hidden, head, seeds):
        topk, draws = teacher_topk(hidden, Head(head), 4, (2.0,)), teacher_sample(hidden, Head(head), 4, (2.0,), seeds)
        return sparse_teacher(topk, 2.0), sparse_teacher(draws, 2.0)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for mine, their in zip(compiled(hidden, head, seeds), both(hidden, head, seeds)):
        assert mine.kind == their.kind
        torch.testing.assert_close(mine[:-1], their[:-1])


@pytest.mark.parametrize("form, kind", [("dense", "logits"), ("sparse", "topk")])
def test_inplace_is_refused(form, kind):
    compiled = torch.compile(Losses(form, dict(inplace=True)), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="inplace=True overwrites an input.*set inplace=False"):
        compiled(*make_call(kind))


def test_mistakes_are_still_named():
    compiled = torch.compile(Losses("dense", dict(divergence="kl")), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="unknown divergence 'kl'"):
        compiled(*make_call("logits"))


def test_the_operators_keep_their_promises():
    """torch's own checks: schema, no aliasing of inputs or outputs, shapes under fake tensors, autograd
    registration.
    """
    from kernels import ops

    hidden, teacher, labels, weights = make_call("topk")
    settings = Settings(temperature=2.0, divergence="jsd", beta=0.3, entropy=ENTROPY, impl="reference")
    packed = ops.pack(teacher, labels, weights, settings)
    assert len(packed) == ops.NUM_ARGUMENTS
    weight = torch.randn(V, H, requires_grad=True)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    logits = (hidden @ weight.T).detach().requires_grad_()
    torch.library.opcheck(torch.ops.spanwise.logits_loss.default, (logits, None, True, *packed), test_utils=tests)
    linear = (hidden, weight, None, None, 1.0, None, None, None, None, 1.0, 2, [True, True, False], *packed)
    torch.library.opcheck(torch.ops.spanwise.linear_loss.default, linear, test_utils=tests)
