"""The gradient of a cache of draws is an unbiased estimate of the dense teacher's: a statistical test, and its power.

One row of one teacher is drawn for 20,000 seeds, written to a cache and read back; the mean of the 20,000 gradients of
the student's logits must lie within 5 standard errors of the dense gradient, coordinate by coordinate (by chance alone
30 coordinates fail once in
60,000 runs). Its power: a bias of 5 % of the gradient's largest component in any coordinate is seen with a probability
of at least .999, since 5 % is at least 5 + 3.1 standard errors; held below for the seeds that were drawn, and shown on
a biased teacher.
"""

from __future__ import annotations

import math

import pytest
import torch

from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheSpec, Entry
from kd.teacher.cache.writer import CacheWriter
from kernels import Head, RowWeights, distill_loss, sparse_distill_loss, sparse_teacher, teacher_sample, teacher_topk

REPEATS, VOCAB, NUM_DRAWS, TEMPERATURE = 20_000, 30, 8, 2.0
KEY, DIGEST = bytes(16), bytes(8)


@pytest.fixture(scope="module")
def row():
    """A teacher's hidden state [1, H] and head, the student's logits [1, V], and the dense gradient of its divergence
    [V].
    """
    make = torch.Generator().manual_seed(5)
    hidden, head = torch.randn(1, 8, generator=make), Head(1.5 * torch.randn(VOCAB, 8, generator=make) / 8**0.5)
    student = torch.randn(1, VOCAB, generator=make, requires_grad=True)
    ones = RowWeights(kd=torch.ones(1))
    distill_loss(
        student,
        hidden @ head.weight.T,
        torch.zeros(1, dtype=torch.int64),
        ones,
        temperature=TEMPERATURE,
        impl="reference",
    ).loss.backward()
    return hidden, head, student.detach(), student.grad[0].clone()


def gradients(student, teacher) -> torch.Tensor:
    """[REPEATS, V], one of each row of `teacher`."""
    many = student.expand(REPEATS, -1).clone().requires_grad_()
    labels, ones = torch.zeros(REPEATS, dtype=torch.int64), RowWeights(kd=torch.ones(REPEATS))
    sparse_distill_loss(many, teacher, labels, ones, temperature=TEMPERATURE, impl="reference").loss.backward()
    return many.grad


def standard_error(found: torch.Tensor) -> torch.Tensor:
    return found.std(0) / REPEATS**0.5


def test_the_mean_gradient_is_the_dense_one(row, tmp_path):
    hidden, head, student, dense = row
    signal = teacher_sample(hidden.expand(REPEATS, -1), head, NUM_DRAWS, (TEMPERATURE,), torch.arange(REPEATS))
    writer = CacheWriter(
        tmp_path, CacheSpec("sampled", VOCAB, (TEMPERATURE,), NUM_DRAWS, None, "16bit"), {"teacher": "t"}
    )
    writer.write_shard(0, [Entry(KEY, DIGEST, signal)])
    writer.finish(1)
    found = gradients(student, CacheReader(tmp_path).read([KEY], [DIGEST], [REPEATS], TEMPERATURE))
    error = standard_error(found)
    assert (0.05 * dense.abs().max() >= (5 + 3.1) * error).all()  # the power
    assert ((found.mean(0) - dense).abs() <= 5 * error + 1e-6).all()
    assert found.std(0).max() > 0.1 * dense.abs().max()  # single rows are far from it: what is tested is their mean


def test_a_renormalised_top_is_seen_to_be_biased(row):
    hidden, head, student, dense = row
    teacher = sparse_teacher(teacher_topk(hidden.expand(REPEATS, -1), head, NUM_DRAWS, (TEMPERATURE,)), TEMPERATURE)
    teacher = teacher._replace(
        probs=teacher.probs / teacher.probs.sum(-1, keepdim=True), log_tail=torch.full((REPEATS,), -math.inf)
    )
    bias = (gradients(student, teacher).mean(0) - dense).abs().max()
    assert bias > 0.05 * dense.abs().max()  # of a size that the test above sees
