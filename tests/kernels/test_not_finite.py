"""A NaN goes in, a NaN comes out: in the row's reports and gradient, where the finite gate sees it, and in no other
row.
"""

import pytest
import torch

from helpers.kernel_cases import DIVERGENCES, ENTROPY, make_case, options_for, run_ours
from helpers.sparse_cases import make_sparse
from helpers.sparse_cases import run_ours as run_sparse
from kernels import RowWeights
from kernels.fused import dense, launches

pytestmark = pytest.mark.usefixtures("narrow_tiles", "narrow_slots")
NAN = float("nan")
both = pytest.mark.parametrize("impl", ["reference", "triton"])
each_divergence = pytest.mark.parametrize("divergence, beta", DIVERGENCES)
BAD = [False, True, True, False, True]


def assert_bad_rows(output, grad, *rows):
    assert output.loss.isnan()
    assert grad.isnan().all(1).tolist() == grad.isnan().any(1).tolist() == BAD
    for row in rows:
        assert row.isnan().tolist() == BAD


def spoiled(logits):
    """One NaN among the first columns, one in the last column, nothing but NaN."""
    logits = logits.clone()
    logits[1, 3] = logits[2, -1] = logits[4] = NAN
    return logits


@both
@each_divergence
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_teacher_logits(temperature, divergence, beta, impl):
    case = make_case(5, 199)._replace(weights=RowWeights(kd=torch.ones(5)))
    settings = dict(divergence=divergence, beta=beta, temperature=temperature)
    output, grad = run_ours(case._replace(teacher=spoiled(case.teacher)), impl, **settings)
    assert_bad_rows(output, grad, output.divergence, output.teacher_entropy)


@both
@pytest.mark.parametrize("entropy", [None, ENTROPY])
def test_the_choice_of_a_teacher_of_nan_trains_nobody(entropy, impl):
    case = make_case(5, 199)._replace(weights=RowWeights(hard=torch.ones(5)))
    output, grad = run_ours(case._replace(teacher=spoiled(case.teacher)), impl, entropy=entropy)
    assert_bad_rows(output, grad, output.teacher_entropy)


@pytest.mark.parametrize("launch", ["streamed", "cooperative"])
def test_teacher_logits_where_programs_share_a_row(launch, monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 64 if launch == "streamed" else 1024)
    case = make_case(5, 200)
    case = case._replace(teacher=spoiled(case.teacher), weights=RowWeights(*torch.ones(4, 5)))
    grad = torch.empty_like(case.student)
    output = dense.dense_rows(*case, options_for(case), grad, launch=launch)
    assert_bad_rows(
        output._replace(loss=output.loss.sum()), grad, output.divergence, output.teacher_entropy, output.loss
    )


@both
@each_divergence
def test_student_logits(divergence, beta, impl):
    case = make_case(5, 199)
    for on in ("kd", "truth", "hard"):
        one = case._replace(student=spoiled(case.student), weights=RowWeights(**{on: torch.ones(5)}))
        assert_bad_rows(*run_ours(one, impl, divergence=divergence, beta=beta))


@both
@each_divergence
def test_student_logits_with_a_sparse_teacher(divergence, beta, impl):
    case, _ = make_sparse(5, 199, 6)
    for on in ("kd", "truth", "hard"):
        one = case._replace(student=spoiled(case.student), weights=RowWeights(**{on: torch.ones(5)}))
        assert_bad_rows(*run_sparse(one, impl, divergence=divergence, beta=beta))


@both
@pytest.mark.parametrize(
    "kind, divergence, beta", [("topk", *d) for d in DIVERGENCES] + [("sampled", "forward_kl", None)]
)
def test_probabilities_of_a_sparse_teacher(kind, divergence, beta, impl):
    case, _ = make_sparse(5, 199, 6, kind=kind)
    probs = case.teacher.probs.clone()
    probs[1, 0] = probs[2, 1] = probs[4] = NAN
    case = case._replace(teacher=case.teacher._replace(probs=probs), weights=RowWeights(kd=torch.ones(5)))
    output, grad = run_sparse(case, impl, divergence=divergence, beta=beta)
    assert_bad_rows(output, grad, output.divergence)
