"""Rows and calls at the limits: saturation, masks, ties, bad labels, no rows, scaling, memory that is not
contiguous.
"""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, ENTROPY, assert_parity, make_case, run_ours
from kernels import RowWeights, distill_loss

pytestmark = pytest.mark.usefixtures("narrow_tiles")
IMPLS = ["reference", "triton"]
both = pytest.mark.parametrize("impl", IMPLS)
each_divergence = pytest.mark.parametrize("divergence, beta", DIVERGENCES)


@both
@each_divergence
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_saturated_rows(size, divergence, beta, impl):
    case = make_case(4, 150)
    case.student[0], case.teacher[0] = size, -size  # level rows
    for row, column in ((1, 3), (2, 149)):
        case.student[row], case.teacher[row] = -size, -size
        case.student[row, column] = case.teacher[row, 70] = size
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    output, grad = run_ours(case, impl, **settings)
    assert grad.isfinite().all() and output.loss.isfinite()
    assert_parity(case, output, grad, **settings)


@both
@each_divergence
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_masked_teacher_tokens(temperature, divergence, beta, impl):
    """-inf teacher logits: p = 0 adds nothing; reverse_kl pays 1e4 a unit of q. Whole tiles are masked too."""
    case = make_case(4, 200)
    case.teacher[0, 5] = case.teacher[1, :190] = case.teacher[2, 1:] = -float("inf")  # row 2 is one-hot
    settings = dict(divergence=divergence, beta=beta, temperature=temperature, entropy=ENTROPY)
    output, grad = run_ours(case, impl, **settings)
    assert grad.isfinite().all() and output.loss.isfinite() and output.teacher_entropy[2] == 0
    assert_parity(case, output, grad, **settings)


@both
def test_one_hot_teacher_is_cross_entropy(impl):
    case = make_case(3, 90)
    one = torch.ones(3)
    case.teacher.fill_(-float("inf")).scatter_(1, case.labels[:, None], 0.0)
    as_kd, kd_grad = run_ours(case._replace(weights=RowWeights(kd=one)), impl)
    as_ce, ce_grad = run_ours(case._replace(weights=RowWeights(truth=one)), impl)
    torch.testing.assert_close(as_kd.divergence, as_ce.nll)
    torch.testing.assert_close(kd_grad, ce_grad)


@both
def test_tokens_masked_on_both_sides_do_not_matter(impl):
    case = make_case(3, 90, vocab=80)
    narrow = case._replace(student=case.student[:, :80].clone(), teacher=case.teacher[:, :80].clone())
    case.student[:, 80:] = case.teacher[:, 80:] = -float("inf")
    for divergence, beta in DIVERGENCES:
        output, grad = run_ours(case, impl, divergence=divergence, beta=beta)
        expected, expected_grad = run_ours(narrow, impl, divergence=divergence, beta=beta)
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(grad[:, :80], expected_grad)
        assert (grad[:, 80:] == 0).all()


@both
@each_divergence
def test_equal_models_and_shifted_rows(divergence, beta, impl):
    case = make_case(4, 130)._replace(weights=RowWeights(kd=torch.ones(4)))
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    output, grad = run_ours(case._replace(teacher=case.student.clone()), impl, **settings)
    torch.testing.assert_close(output.divergence, torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, torch.zeros(4, 130), atol=1e-6, rtol=0)

    shift = torch.tensor([[8.0], [-16.0], [32.0], [0.0]])
    output, grad = run_ours(case, impl, **settings)
    moved, moved_grad = run_ours(
        case._replace(student=case.student + shift, teacher=case.teacher - shift), impl, **settings
    )
    torch.testing.assert_close(moved.loss, output.loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(moved_grad, grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(grad.sum(1), torch.zeros(4), atol=2e-6 * float(grad.abs().max()) * 130, rtol=0)


@both
def test_strided_rows(impl):
    """Every other row of a buffer wider than the vocabulary."""
    buffer, other = torch.randn(12, 110), torch.randn(6, 130)
    case = make_case(6, 100)._replace(student=buffer[::2, :100], teacher=other[:, 10:110])
    whole = case._replace(student=case.student.contiguous(), teacher=case.teacher.contiguous())
    student = case.student.detach().requires_grad_()
    output = distill_loss(student, *case[1:], impl=impl)
    (grad,) = torch.autograd.grad(output.loss, student)
    expected, expected_grad = run_ours(whole, impl)
    assert output.loss.equal(expected.loss) and grad.equal(expected_grad)


@both
def test_ties_go_to_the_lowest_index(impl):
    case = make_case(2, 150)
    case.student[:, 20] = case.student[:, 140] = case.teacher[:, 20] = case.teacher[:, 70] = 99.0
    case.labels[:] = torch.tensor([20, 140])
    output, grad = run_ours(case._replace(weights=RowWeights(hard=torch.ones(2))), impl)
    assert output.label_hit.tolist() == [True, False] and output.teacher_hit.tolist() == [True, True]
    assert (grad[:, 20] < 0).all() and (grad[:, 140] > 0).all()


@both
def test_labels(impl):
    """-100 without truth or span weight is a plain row; every other stranger turns its own row, and no other, to
    NaN.
    """
    kd = torch.ones(6)
    truth = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    labels = torch.tensor([-100, -100, 40, 3, -1, 10**10])
    case = make_case(6, 50, vocab=40)._replace(labels=labels, weights=RowWeights(kd=kd, truth=truth))
    output, grad = run_ours(case, impl, vocab_size=40)
    bad = [False, True, True, False, True, True]
    assert output.loss.isnan() and output.nll.isnan().tolist() == bad and output.nll[0] == 0
    assert grad[:, :40].isnan().all(1).tolist() == bad and grad[:, :40].isnan().any(1).tolist() == bad
    assert (grad[:, 40:] == 0).all() and not output.label_hit[0]
    # A stranger is caught where no term reads the labels at all.
    for weights in (RowWeights(kd=kd), RowWeights(hard=kd), RowWeights()):
        output, grad = run_ours(case._replace(weights=weights), impl, vocab_size=40)
        assert output.loss.isnan() and grad[:, :40].isnan().all(1).tolist() == [False, False, True, False, True, True]


@both
def test_no_weight_and_no_rows(impl):
    case = make_case(3, 40)
    output, grad = run_ours(case._replace(weights=RowWeights(*torch.zeros(4, 3))), impl)
    assert output.loss == 0 and (grad == 0).all() and output.divergence.all()
    empty = case._replace(
        student=torch.zeros(0, 40),
        teacher=torch.zeros(0, 40),
        labels=case.labels[:0],
        weights=RowWeights(*torch.zeros(4, 0)),
    )
    student = empty.student.requires_grad_()
    output = distill_loss(student, *empty[1:], impl=impl, entropy=ENTROPY)
    output.loss.backward()
    assert output.loss == 0 and student.grad.shape == (0, 40) and output.divergence.shape == (0,)


@both
def test_upstream_and_grad_scale(impl):
    case = make_case(5, 70)
    _, grad = run_ours(case, impl)
    _, scaled = run_ours(case, impl, upstream=3.0)
    torch.testing.assert_close(scaled, 3 * grad)
    _, held = run_ours(case, impl, upstream=1.0, grad_scale=1024.0)
    torch.testing.assert_close(held, grad)


@both
def test_grad_scale_saves_fp16_from_underflow(impl):
    """Weights of 1 / 131072: held at scale 1, most of the gradient is below fp16's smallest number."""
    case = make_case(4, 300, dtype=torch.float16, spread=1.0)
    tiny = case._replace(weights=RowWeights(kd=torch.full((4,), 1 / 131072)))
    ones = case._replace(weights=RowWeights(kd=torch.ones(4)))
    _, expected = run_ours(ones, impl)
    _, scaled = run_ours(tiny, impl, upstream=131072.0, grad_scale=131072.0)
    _, lost = run_ours(tiny, impl, upstream=131072.0)
    torch.testing.assert_close(scaled, expected)
    assert (lost == 0).float().mean() > 0.1 + (expected == 0).float().mean()


@both
def test_inplace_gives_the_same_gradient(impl):
    case = make_case(4, 70, 75, 66)
    settings = dict(divergence="jsd", beta=0.4, temperature=2.0, vocab_size=66)
    expected, expected_grad = run_ours(case, impl, **settings)
    leaf = case.student.clone().requires_grad_()
    logits = leaf * 1.0
    output = distill_loss(logits, *case[1:], inplace=True, impl=impl, **settings)
    assert logits.detach().equal(expected_grad)
    output.loss.backward()
    assert output.loss.equal(expected.loss) and leaf.grad.equal(expected_grad)


@both
def test_inplace_is_seen_by_autograd(impl):
    """Whoever saved the logits for its own backward gets autograd's error, not a silently wrong gradient."""
    case = make_case(3, 30)
    logits = case.student.clone().requires_grad_() * 1.0
    squares = (logits * logits).sum()
    output = distill_loss(logits, *case[1:], inplace=True, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (output.loss + squares).backward()


@both
def test_only_the_loss_carries_gradient_and_only_once(impl):
    case = make_case(3, 30)
    student = case.student.requires_grad_()
    weights = RowWeights(*(w.clone().requires_grad_() for w in case.weights))
    output = distill_loss(student, case.teacher.requires_grad_(), case.labels, weights, impl=impl)
    assert output.loss.requires_grad and not any(row.requires_grad for row in (*output[1:-1], *output.weights))
    output.loss.backward(retain_graph=True)
    assert case.teacher.grad is None and weights.kd.grad is None
    with pytest.raises(RuntimeError, match="twice"):
        output.loss.backward()
    with torch.no_grad():
        assert not distill_loss(student, *case[1:], impl=impl).loss.requires_grad


@both
def test_a_gradient_of_the_gradient_is_refused_not_wrong(impl):
    """A penalty on gradients, added to the loss, would else be a constant."""
    case = make_case(3, 30)
    student = case.student.requires_grad_()
    loss = distill_loss(student, *case[1:], impl=impl).loss
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        torch.autograd.grad(loss, student, create_graph=True)


@both
def test_autocast_changes_nothing(impl):
    """The loss is computed in fp32 whatever the region it is called in."""
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case(3, 90, dtype=dtype)
        settings = dict(divergence="jsd", beta=0.3, temperature=2.0, entropy=ENTROPY)
        expected, expected_grad = run_ours(case, impl, **settings)
        with torch.autocast("cpu", torch.bfloat16):
            output, grad = run_ours(case, impl, **settings)
        assert output.loss.equal(expected.loss) and grad.equal(expected_grad)


@both
def test_without_a_teacher(impl):
    """The teacher is trained on its own by the same function: cross-entropy rows, zeros for all a teacher gives."""
    case = make_case(4, 60)
    weights = case.weights._replace(kd=None, hard=None)
    expected, expected_grad = run_ours(case._replace(weights=weights), impl)
    output, grad = run_ours(case._replace(teacher=None, weights=weights), impl)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(grad, expected_grad)
    assert output.label_hit.equal(expected.label_hit)
    for row in (output.divergence, output.hard_nll, output.teacher_entropy, output.teacher_hit):
        assert not row.any()


def test_chunks_of_the_reference_do_not_show(monkeypatch):
    from kernels import reference

    case = make_case(7, 50)
    expected, expected_grad = run_ours(case, "reference", entropy=ENTROPY)
    monkeypatch.setattr(reference, "_CHUNK_BYTES", {"cpu": 3 * 50 * 4})
    output, grad = run_ours(case, "reference", entropy=ENTROPY)
    torch.testing.assert_close(grad, expected_grad)
    for name, row in expected._asdict().items():
        torch.testing.assert_close(getattr(output, name), row)
