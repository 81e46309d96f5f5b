"""Sparse rows and calls at the limits: slots that are empty, wrong or in any order, tails, saturation, scaling,
memory.
"""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, ENTROPY
from helpers.sparse_cases import SparseCase, assert_parity, make_sparse, options_for, run_definition, run_ours, topk_of
from kernels import RowWeights, SparseTeacher, distill_loss, sparse_distill_loss

pytestmark = pytest.mark.usefixtures("narrow_slots")
both = pytest.mark.parametrize("impl", ["reference", "triton"])
each_divergence = pytest.mark.parametrize("divergence, beta", DIVERGENCES)


def replaced(case: SparseCase, **fields) -> SparseCase:
    return case._replace(teacher=case.teacher._replace(**fields))


@both
@each_divergence
def test_empty_slots_and_the_order_of_slots_do_not_matter(divergence, beta, impl):
    case, _ = make_sparse(5, 100, 9, 2.0)
    ids, probs = case.teacher.ids, case.teacher.probs
    settings = dict(divergence=divergence, beta=beta, temperature=2.0, entropy=ENTROPY)
    expected, expected_grad = run_ours(case, impl, **settings)
    unnamed = torch.full((5, 4), -1, dtype=torch.int32)
    # Probability 0 empties a slot whatever it names: a column, the same one twice, one that is kept elsewhere, none.
    named = torch.tensor([3, 3, 200, -7], dtype=torch.int32).expand(5, 4).clone()
    named[:, 0] = ids[:, 0]
    order = torch.randperm(9 + 8)
    padded = replaced(
        case,
        ids=torch.cat([ids, unnamed, named], 1)[:, order],
        probs=torch.cat([probs, torch.full((5, 4), 0.3), torch.zeros(5, 4)], 1)[:, order],
    )
    output, grad = run_ours(padded, impl, **settings)
    torch.testing.assert_close(grad, expected_grad)
    for name, row in expected._asdict().items():
        torch.testing.assert_close(getattr(output, name), row)


@both
@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_wrong_slots_turn_their_row_and_no_other_to_nan(kind, impl):
    case, _ = make_sparse(6, 50, 20, kind=kind, vocab=40)
    ids, probs = case.teacher.ids.clone(), case.teacher.probs.clone()
    ids[1, 1] = ids[1, 0]  # twice
    ids[2, 0], ids[3, 0], ids[4, 0] = 40, -2, 2**31 - 1  # past vocab_size, below, far past
    probs[5, 0] = -0.1
    case = replaced(case, ids=ids, probs=probs)
    for weights in (case.weights, RowWeights(kd=torch.ones(6))):
        output, grad = run_ours(case._replace(weights=weights), impl, vocab_size=40)
        bad = [False, True, True, True, True, True]
        assert grad[:, :40].isnan().all(1).tolist() == bad and grad[:, :40].isnan().any(1).tolist() == bad
        assert output.loss.isnan() and (grad[:, 40:] == 0).all()
    # Without the divergence slots are not read.
    output, grad = run_ours(case._replace(weights=RowWeights(truth=torch.ones(6))), impl, vocab_size=40)
    assert output.loss.isfinite() and grad.isfinite().all()


@both
def test_an_argmax_out_of_range_matters_where_it_has_weight(impl):
    case, _ = make_sparse(3, 30, 4)
    hard = torch.tensor([0.0, 1.0, 1.0])
    case = replaced(case, argmax=torch.tensor([-1, -1, 3]))._replace(weights=RowWeights(hard=hard))
    output, grad = run_ours(case, impl)
    assert grad.isnan().any(1).tolist() == [False, True, False] and output.loss.isnan()
    assert output.teacher_hit.tolist()[0] is False
    output, grad = run_ours(case._replace(weights=RowWeights(kd=hard)), impl)
    assert output.loss.isfinite() and grad.isfinite().all()


@both
def test_labels(impl):
    """-100 without truth or span weight is a plain row; every other stranger turns its own row, and no other, to
    NaN.
    """
    case, _ = make_sparse(6, 50, 5, vocab=40)
    truth = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    labels = torch.tensor([-100, -100, 40, 3, -1, 10**10])
    case = case._replace(labels=labels, weights=RowWeights(kd=torch.ones(6), truth=truth))
    output, grad = run_ours(case, impl, vocab_size=40)
    bad = [False, True, True, False, True, True]
    assert output.loss.isnan() and output.nll.isnan().tolist() == bad and output.nll[0] == 0
    assert grad[:, :40].isnan().all(1).tolist() == bad and grad[:, :40].isnan().any(1).tolist() == bad


@both
@pytest.mark.parametrize("k", [1, 7, 90])
def test_one_hot_teacher_is_cross_entropy(k, impl):
    case, dense = make_sparse(3, 90, k)
    dense.teacher.fill_(-float("inf")).scatter_(1, case.labels[:, None], 0.0)
    case = case._replace(teacher=topk_of(dense.teacher, k), weights=RowWeights(kd=torch.ones(3)))
    assert (case.teacher.log_tail == -float("inf")).all()
    as_kd, kd_grad = run_ours(case, impl)
    as_ce, ce_grad = run_ours(case._replace(weights=RowWeights(truth=torch.ones(3))), impl)
    torch.testing.assert_close(as_kd.divergence, as_ce.nll)
    torch.testing.assert_close(kd_grad, ce_grad)


@both
@each_divergence
def test_a_teacher_with_no_tail_still_holds_the_student_to_it(divergence, beta, impl):
    """log_tail = -inf is a bucket of probability 0, not no bucket: mass that escapes there costs, and is pulled
    back.
    """
    case, dense = make_sparse(4, 60, 5, 2.0)
    masked = dense.teacher.clone()
    masked.scatter_(1, masked.topk(5).indices, 0.0)
    masked[masked != 0] = -float("inf")
    case = case._replace(teacher=topk_of(masked, 5, 2.0), weights=RowWeights(kd=torch.ones(4)))
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    output, grad = run_ours(case, impl, **settings)
    assert_parity(case, output, grad, **settings)
    expected = distill_loss(dense.student, masked, *case[2:], impl=impl, **settings)
    # Merging tokens of probability 0 loses their entropy beside the floor of 1e4, and nothing else.
    torch.testing.assert_close(output.divergence, expected.divergence, rtol=1e-3, atol=1e-5)
    assert (grad.scatter(1, case.teacher.ids.long(), 0.0) >= 0).all()


@both
@each_divergence
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_saturated_rows(size, divergence, beta, impl):
    case, dense = make_sparse(5, 150, 5)
    dense.student[0], dense.teacher[0] = size, -size  # level rows
    for row, column in ((1, 3), (2, 149)):
        dense.student[row], dense.teacher[row] = -size, -size
        dense.student[row, column] = dense.teacher[row, 70] = size
    dense.student[3] = -size
    dense.student[3, dense.teacher[3].topk(5).indices] = size  # the student gives the rest e^(-2 size)
    case = case._replace(student=dense.student, teacher=topk_of(dense.teacher, 5, 2.0))
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    output, grad = run_ours(case, impl, **settings)
    assert grad.isfinite().all() and output.loss.isfinite()
    assert_parity(case, output, grad, **settings)


@both
def test_a_tiny_tail_of_the_student_is_not_rounded_away(impl):
    """A rest of e^-40: 1 - sum is 0 in fp32 and fp64, the log-sum-exp is right, and its columns keep their
    proportions.
    """
    student = torch.full((1, 50), -40.0) + torch.linspace(0, 2, 50)
    student[0, :2] = 4.0
    teacher = torch.zeros(1, 50)
    teacher[0, :2] = 2.0
    weights = RowWeights(kd=torch.ones(1))
    case = SparseCase(student, topk_of(teacher, 2), torch.tensor([0]), weights)
    output, grad = run_ours(case, impl)
    assert_parity(case, output, grad)
    share = torch.softmax(student[0, 2:], 0)
    torch.testing.assert_close(grad[0, 2:], -case.teacher.log_tail.exp() * share, rtol=1e-5, atol=0)


@both
@each_divergence
def test_a_rest_of_almost_everything_is_not_rounded_away(divergence, beta, impl):
    """One token of 1e-4 kept of flat logits: a divergence of 1e-5 is not the rounding of logarithms near 9."""
    case, dense = make_sparse(3, 5000, 1, 4.0, spread=1.0)
    case = case._replace(weights=RowWeights(kd=torch.ones(3)))
    settings = dict(divergence=divergence, beta=beta, temperature=4.0)
    output, _ = run_ours(case, impl, **settings)
    truth, _ = run_definition(case, options_for(case, **settings))
    assert truth.divergence.max() < 1e-3
    torch.testing.assert_close(output.divergence.double(), truth.divergence, rtol=1e-4, atol=1e-9)


@both
@each_divergence
def test_gradients_sum_to_zero_and_shifts_do_not_matter(divergence, beta, impl):
    case, _ = make_sparse(4, 130, 12, 2.0)
    case = case._replace(weights=RowWeights(kd=torch.ones(4)))
    settings = dict(divergence=divergence, beta=beta, temperature=2.0)
    output, grad = run_ours(case, impl, **settings)
    torch.testing.assert_close(grad.sum(1), torch.zeros(4), atol=2e-6 * float(grad.abs().max()) * 130, rtol=0)
    shift = torch.tensor([[8.0], [-16.0], [32.0], [0.0]])
    moved, moved_grad = run_ours(case._replace(student=case.student + shift), impl, **settings)
    torch.testing.assert_close(moved.loss, output.loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(moved_grad, grad, rtol=1e-3, atol=1e-5)


@both
@each_divergence
def test_equal_models(divergence, beta, impl):
    case, dense = make_sparse(4, 130, 12, 2.0)
    case = case._replace(student=dense.teacher.clone(), weights=RowWeights(kd=torch.ones(4)))
    output, grad = run_ours(case, impl, divergence=divergence, beta=beta, temperature=2.0)
    torch.testing.assert_close(output.divergence, torch.zeros(4), atol=2e-6, rtol=0)
    torch.testing.assert_close(grad, torch.zeros(4, 130), atol=2e-6, rtol=0)


@both
def test_padded_vocabulary(impl):
    """Columns past vocab_size hold the largest logits of all: none of them may be seen, nor get gradient."""
    for vocab in (65, 64, 3):
        case, _ = make_sparse(4, 70, 3, vocab=vocab)
        case.student[:, vocab:] = 50.0
        for divergence, beta in DIVERGENCES:
            settings = dict(divergence=divergence, beta=beta, vocab_size=vocab)
            output, grad = run_ours(case, impl, **settings)
            assert_parity(case, output, grad, **settings)
            assert (grad[:, vocab:] == 0).all()


@both
def test_ties_go_to_the_lowest_index(impl):
    """Between a kept token and another one, either way round."""
    case, _ = make_sparse(2, 150, 1)
    case.student[:, 20] = case.student[:, 140] = 99.0
    for kept, argmax in ((20, 20), (140, 20)):
        tied = replaced(case, ids=torch.full((2, 1), kept, dtype=torch.int32), argmax=torch.full((2,), argmax))
        tied.labels[:] = torch.tensor([20, 140])
        output, _ = run_ours(tied, impl)
        assert output.label_hit.tolist() == [True, False] and output.teacher_hit.tolist() == [True, True]


@both
def test_no_weight_and_no_rows(impl):
    case, _ = make_sparse(3, 40, 5)
    output, grad = run_ours(case._replace(weights=RowWeights(*torch.zeros(4, 3))), impl)
    assert output.loss == 0 and (grad == 0).all() and output.divergence.all()
    empty = SparseCase(
        torch.zeros(0, 40),
        SparseTeacher(*(t[:0] for t in case.teacher[:-1]), "topk"),
        case.labels[:0],
        RowWeights(*torch.zeros(4, 0)),
    )
    output, grad = run_ours(empty, impl, entropy=ENTROPY)
    assert output.loss == 0 and grad.shape == (0, 40) and output.divergence.shape == (0,)


@both
def test_upstream_and_grad_scale(impl):
    case, _ = make_sparse(5, 70, 6)
    _, grad = run_ours(case, impl)
    _, scaled = run_ours(case, impl, upstream=3.0)
    torch.testing.assert_close(scaled, 3 * grad)
    _, held = run_ours(case, impl, upstream=1.0, grad_scale=1024.0)
    torch.testing.assert_close(held, grad)


@both
def test_grad_scale_saves_fp16_from_underflow(impl):
    case, _ = make_sparse(4, 300, 12, dtype=torch.float16, spread=1.0)
    tiny = case._replace(weights=RowWeights(kd=torch.full((4,), 1 / 131072)))
    _, expected = run_ours(case._replace(weights=RowWeights(kd=torch.ones(4))), impl)
    _, scaled = run_ours(tiny, impl, upstream=131072.0, grad_scale=131072.0)
    _, lost = run_ours(tiny, impl, upstream=131072.0)
    torch.testing.assert_close(scaled, expected)
    assert (lost == 0).float().mean() > 0.1 + (expected == 0).float().mean()


@both
def test_inplace_strided_and_in_chunks(impl, monkeypatch):
    """Every other row of a wider buffer, overwritten: the same bits, and nothing beside them is touched."""
    from kernels import reference

    case, _ = make_sparse(6, 70, 5, 2.0, vocab=66)
    settings = dict(divergence="jsd", beta=0.4, temperature=2.0, vocab_size=66)
    expected, expected_grad = run_ours(case, impl, **settings)
    monkeypatch.setattr(reference, "_CHUNK_BYTES", {"cpu": 2 * 66 * 4})
    buffer = torch.full((12, 90), 7.0)
    buffer[::2, :70] = case.student
    leaf = buffer.clone().requires_grad_()
    whole = leaf * 1.0
    logits = whole[::2, :70]
    output = sparse_distill_loss(logits, *case[1:], inplace=True, impl=impl, **settings)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(leaf.grad[::2, :70], expected_grad)
    torch.testing.assert_close(logits.detach(), expected_grad)
    assert (whole.detach()[1::2] == 7).all() and (whole.detach()[:, 70:] == 7).all()
    with pytest.raises(RuntimeError, match="twice"):
        output.loss.backward()


@both
def test_tensor_scalars_equal_numbers(impl):
    case, _ = make_sparse(4, 60, 6, 2.5)
    numbers = dict(divergence="jsd", beta=0.25, temperature=2.5, entropy=ENTROPY, grad_scale=8.0)
    tensors = numbers | {name: torch.tensor(numbers[name]) for name in ("beta", "temperature", "grad_scale")}
    (a, grad_a), (b, grad_b) = run_ours(case, impl, **numbers), run_ours(case, impl, **tensors)
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(grad_a, grad_b)


def test_a_signal_in_sixteen_bits():
    """Whatever a cache hands over is read in fp32."""
    case, _ = make_sparse(4, 60, 6, 2.0)
    short = case._replace(
        teacher=SparseTeacher(*(t.half() if t.is_floating_point() else t for t in case.teacher[:-1]), "topk")
    )
    long = case._replace(
        teacher=SparseTeacher(*(t.float() if t.is_floating_point() else t for t in short.teacher[:-1]), "topk")
    )
    for impl in ("reference", "triton"):
        (a, grad_a), (b, grad_b) = (run_ours(c, impl, temperature=2.0) for c in (short, long))
        assert a.loss.equal(b.loss) and grad_a.equal(grad_b)


BAD_TEACHERS = [
    (dict(kind="top"), "choose 'topk'"),
    (dict(ids=torch.zeros(3, 4, dtype=torch.int64)), r"must be int32 \[N, K\]"),
    (dict(ids=torch.zeros(3, 0, dtype=torch.int32)), "K >= 1"),
    (dict(probs=torch.zeros(3, 5)), "teacher.probs has shape"),
    (dict(log_tail=torch.zeros(3, 1)), "teacher.log_tail has shape"),
    (dict(entropy=torch.zeros(2)), "teacher.entropy has shape"),
    (dict(argmax=torch.zeros(3)), "teacher.argmax is torch.float32"),
    (dict(entropy_t=torch.zeros(3, dtype=torch.int64)), "teacher.entropy_t is torch.int64"),
]


@pytest.mark.parametrize("fields, message", BAD_TEACHERS)
def test_bad_teachers_are_refused(fields, message):
    case, _ = make_sparse(3, 40, 4)
    with pytest.raises(ValueError, match=message):
        sparse_distill_loss(*replaced(case, **fields))


def test_what_a_sparse_teacher_cannot_do_is_refused():
    case, dense = make_sparse(3, 40, 4, kind="sampled")
    for settings in (dict(divergence="reverse_kl"), dict(divergence="jsd", beta=0.5)):
        with pytest.raises(ValueError, match="use divergence='forward_kl'"):
            sparse_distill_loss(*case, **settings)
    sparse_distill_loss(*case, divergence="jsd", beta=0.0)  # is forward_kl
    with pytest.raises(ValueError, match="must be a SparseTeacher, got Tensor: for logits use distill_loss"):
        sparse_distill_loss(dense.student, dense.teacher, *case[2:])
    with pytest.raises(ValueError, match="3 rows, the student 2"):
        sparse_distill_loss(case.student[:2], case.teacher, case.labels[:2], RowWeights())
    with pytest.raises(ValueError, match="must lie between 1 and the narrower width, 40"):
        sparse_distill_loss(*case, vocab_size=41)
