"""By how much the probabilities of a cache's rows differ from those computed again: against whole rows of the
vocabulary.
"""

import torch

from kd.teacher.capture.verify import probability_gaps
from kernels import SparseTeacher


def teacher(ids, probs):
    nothing = torch.zeros(len(ids))
    return SparseTeacher(ids, probs, nothing, nothing, nothing, ids[:, 0], "sampled")


def test_gaps_are_those_of_whole_rows():
    """Rows with other tokens, as many or not, in another order, and padding (-1, of probability 0)."""
    torch.manual_seed(0)
    ids = [torch.stack([torch.randperm(40)[:k] for _ in range(200)]).int() for k in (5, 8)]
    probs = [torch.rand(of.shape) for of in ids]
    ids[1][:, 6:], probs[1][:, 6:] = -1, 0.0
    whole = [torch.zeros(200, 40).scatter_add_(1, i.clamp(min=0).long(), p) for i, p in zip(ids, probs)]
    torch.testing.assert_close(probability_gaps(*map(teacher, ids, probs)), (whole[0] - whole[1]).abs().amax(1))


def test_equal_rows_differ_by_nothing_whatever_their_order():
    ids, probs = torch.tensor([[7, 3, 150_000, -1]], dtype=torch.int32), torch.tensor([[0.1, 0.7, 0.2, 0.0]])
    turned = torch.tensor([2, 0, 1, 3])
    assert probability_gaps(teacher(ids, probs), teacher(ids[:, turned], probs[:, turned])) == 0
    assert probability_gaps(teacher(ids, probs), teacher(ids[:, :2], probs[:, :2])) == torch.tensor(0.2)
