"""Peak memory of the linear form against eager PyTorch, each in a process of its own: a maximum is never given back."""

import subprocess
import sys

import pytest

# Prints the growth of the process's peak resident memory, in MiB, over that with all inputs in place.
CODE = """
import resource, sys
import torch
import torch.nn.functional as F
from kernels import DenseTeacher, Head, RowWeights, SparseTeacher, linear_distill_loss

form, num_rows, width, vocab, chunk_rows = sys.argv[1], *map(int, sys.argv[2:])
torch.manual_seed(0)
torch.set_num_threads(1)
hidden = torch.randn(num_rows, width, requires_grad=True)
weight = torch.randn(vocab, width).mul_(0.05).requires_grad_()  # in place: nothing freed for the forms to take
their_hidden, their_weight = torch.randn(num_rows, 64), torch.randn(vocab, 64).mul_(0.1)
labels = torch.randint(0, vocab, (num_rows,))
one = torch.full((num_rows,), 1 / num_rows)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def eager():
    z, u = hidden @ weight.T, their_hidden @ their_weight.T
    kd = F.kl_div(F.log_softmax(z / 2, -1), F.log_softmax(u / 2, -1), log_target=True, reduction="sum") * 4 / num_rows
    return kd + F.cross_entropy(z, labels)

teacher = DenseTeacher(their_hidden, Head(their_weight))
if form == "sparse":
    rows = torch.zeros(num_rows)
    ids = torch.arange(12, dtype=torch.int32).expand(num_rows, 12)
    teacher = SparseTeacher(ids, torch.full((num_rows, 12), 1 / 24), rows - 0.6931, rows, rows, ids[:, 0], "topk")
before = peak()
if form == "eager":
    eager().backward()
else:
    weights = RowWeights(kd=one, truth=one)
    settings = dict(temperature=2.0, chunk_rows=chunk_rows or None)
    linear_distill_loss(hidden, Head(weight), teacher, labels, weights, **settings).loss.backward()
print(peak() - before)
"""


def extra_memory(form, *sizes):
    command = [sys.executable, "-c", CODE, form, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def compare(*sizes):  # rows, hidden width, vocabulary, chunk_rows (0: the default)
    forms = {form: extra_memory(form, *sizes) for form in ("eager", "dense", "sparse")}
    print({form: f"{size:.0f} MiB" for form, size in forms.items()})
    assert forms["dense"] <= forms["eager"] / 8 and forms["sparse"] <= forms["dense"], forms


def test_an_eighth_of_eager():
    """Sizes at which the eager form takes a GiB, in a few seconds; chunks are as small a part of them as of real
    ones.
    """
    compare(2048, 32, 16000, 64)


@pytest.mark.slow
def test_an_eighth_of_eager_at_a_real_vocabulary():
    compare(2048, 512, 151936, 0)
