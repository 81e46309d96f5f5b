"""Rows whose elements lie past 2^31: student, teacher and gradient, read and written where they are."""

import numpy
import pytest
import torch

from helpers import sparse_cases
from helpers.kernel_cases import make_case, options_for
from kernels.fused import dense, sparse

STRIDE = (
    2**30 + 64
)  # the third row starts past 2^31 elements, of which a 32-bit product of row and stride knows nothing


@pytest.fixture
def far_apart(monkeypatch):
    """[3, 200] views of one buffer, STRIDE elements a row, in memory that the system gives only where it is touched."""
    copy = torch.UntypedStorage.copy_

    def copy_unless_itself(self, source, *args):
        return self if source.data_ptr() == self.data_ptr() else copy(self, source, *args)

    # The interpreter ends with a copy of each argument's memory, here onto itself: it would touch all of it.
    monkeypatch.setattr(torch.UntypedStorage, "copy_", copy_unless_itself)
    buffer = torch.from_numpy(numpy.empty(2 * STRIDE + 1000, dtype=numpy.float16))

    def view(place):
        return buffer.as_strided((3, 200), (STRIDE, 1), 256 * place)

    return view


@pytest.mark.skipif(torch.cuda.is_available(), reason="for the interpreter; GPUs have tests/gpu")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("launch", ["row", "streamed", "cooperative", "sparse"])
def test_past_two_to_the_31(launch, far_apart):
    case = make_case(3, 200, dtype=torch.float16)
    student, teacher, grad = (far_apart(place) for place in range(3))
    expected_grad = torch.empty_like(case.student)
    if launch == "sparse":
        case = case._replace(teacher=sparse_cases.topk_of(case.teacher, 12))
        options = sparse_cases.options_for(case)
        expected = sparse.sparse_rows(*case, options, expected_grad)
        far = case._replace(student=student.copy_(case.student))
        output = sparse.sparse_rows(*far, options, grad)
    else:
        options = options_for(case)
        expected = dense.dense_rows(*case, options, expected_grad, launch=launch)
        far = case._replace(student=student.copy_(case.student), teacher=teacher.copy_(case.teacher))
        output = dense.dense_rows(*far, options, grad, launch=launch)
    assert (
        output.loss.equal(expected.loss) and output.divergence.equal(expected.divergence) and grad.equal(expected_grad)
    )
    inplace = (sparse.sparse_rows if launch == "sparse" else dense.dense_rows)(*far, options, far.student)
    assert inplace.loss.equal(expected.loss) and far.student.equal(expected_grad)
