"""Mistakes of a user are refused before anything is computed, and the message says what to do."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch

import kernels
from helpers.kernel_cases import make_case
from kernels import DenseTeacher, EntropyWeighting, Head, RowWeights, distill_loss, linear_distill_loss

SETTINGS = [
    (dict(divergence="kl"), "unknown divergence 'kl': choose one of forward_kl"),
    (dict(divergence="jsd"), "needs beta"),
    (dict(divergence="jsd", beta=1.5), r"must lie in \[0, 1\]"),
    (dict(divergence="jsd", beta=float("nan")), r"must lie in \[0, 1\]"),
    (dict(divergence="reverse_kl", beta=0.5), "beta belongs to divergence='jsd'"),
    (dict(temperature=0), "temperature is 0.0; it must be positive"),
    (dict(temperature=float("nan")), "temperature is nan"),
    (dict(temperature=torch.ones(2)), "temperature must be a number or a 0-d tensor"),
    (dict(grad_scale=-1), "grad_scale is -1.0"),
    (dict(vocab_size=41), "between 1 and the narrower width, 40"),
    (dict(entropy=EntropyWeighting(h_min=3.0, h_max=3.0)), "must be below entropy.h_max"),
    (dict(entropy=EntropyWeighting(kd=0.5)), r"entropy.kd must be a pair"),
    (dict(impl="cuda"), "unknown impl 'cuda'"),
]


@pytest.mark.parametrize("settings, message", SETTINGS)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        distill_loss(*make_case(3, 40), **settings)


def test_shapes():
    case = make_case(3, 40)
    with pytest.raises(ValueError, match="pass vocab_size=len"):
        distill_loss(*case._replace(teacher=torch.randn(3, 44)))
    with pytest.raises(ValueError, match="same supervised rows"):
        distill_loss(*case._replace(teacher=torch.randn(4, 40)))
    with pytest.raises(ValueError, match=r"student_logits must be floating point \[N, V\]"):
        distill_loss(*case._replace(student=torch.randn(1, 3, 40)))
    with pytest.raises(ValueError, match=r"labels must be int64 or int32 of shape \[3\]"):
        distill_loss(*case._replace(labels=case.labels[:2]))
    with pytest.raises(ValueError, match="weights.span has shape"):
        distill_loss(*case._replace(weights=case.weights._replace(span=torch.ones(3, 1))))
    with pytest.raises(ValueError, match="must be a RowWeights"):
        distill_loss(*case._replace(weights=torch.ones(3)))
    for impl in ("reference", "triton"):
        with pytest.raises(ValueError, match="student_logits has columns 2 apart"):
            distill_loss(*case._replace(student=torch.randn(3, 80)[:, ::2]), impl=impl)
        with pytest.raises(ValueError, match="teacher_logits has columns 3 apart"):
            distill_loss(*case._replace(teacher=torch.randn(40, 3).T), impl=impl)
        for shared in (torch.randn(1, 40).expand(3, 40), torch.randn(80).as_strided((3, 40), (8, 1))):
            distill_loss(*case._replace(student=shared), impl=impl)
            with pytest.raises(ValueError, match="rows that share memory"):
                distill_loss(*case._replace(student=shared), impl=impl, inplace=True)
    with pytest.raises(ValueError, match="use impl='reference'"):
        distill_loss(*case._replace(student=case.student.double()), impl="triton")


def test_teacher_terms_need_a_teacher():
    case = make_case(3, 40)._replace(teacher=None)
    with pytest.raises(ValueError, match="weights.kd and weights.hard and entropy need a teacher"):
        distill_loss(*case, entropy=EntropyWeighting())


def test_linear_inputs():
    hidden, weight, labels, weights = torch.randn(3, 8), torch.randn(40, 8), torch.zeros(3).long(), RowWeights()
    teacher = DenseTeacher(torch.randn(3, 5), Head(torch.randn(40, 5)))
    with pytest.raises(ValueError, match="read outside the engine's forward"):
        linear_distill_loss(hidden, Head(torch.empty(0)), teacher, labels, weights)
    with pytest.raises(ValueError, match="cast them to one floating-point dtype"):
        linear_distill_loss(hidden.bfloat16(), Head(weight), teacher, labels, weights)
    with pytest.raises(ValueError, match="teacher: 2 rows"):
        linear_distill_loss(hidden, Head(weight), teacher._replace(hidden=torch.randn(2, 5)), labels, weights)
    with pytest.raises(ValueError, match="softcap is 0.0"):
        linear_distill_loss(hidden, Head(weight, softcap=0.0), teacher, labels, weights)
    with pytest.raises(ValueError, match="chunk_rows is 0"):
        linear_distill_loss(hidden, Head(weight), teacher, labels, weights, chunk_rows=0)
    with pytest.raises(ValueError, match="head.bias has shape"):
        linear_distill_loss(hidden, Head(weight, torch.zeros(1)), teacher, labels, weights)
    with pytest.raises(ValueError, match="must be a DenseTeacher"):
        linear_distill_loss(hidden, Head(weight), hidden, labels, weights)


def test_the_other_package_of_this_name_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.18.2")
    with pytest.raises(ImportError, match="pip uninstall kernels"):
        kernels._refuse_the_other_kernels()


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_imports_only_torch_and_lives_without_triton():
    """The losses know nothing of kd, DeepSpeed or transformers; without triton the reference works and says what is
    off.
    """
    done = in_a_fresh_process(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, kernels\n"
        "assert not {'kd', 'deepspeed', 'transformers'} & set(sys.modules)\n"
        "z = torch.randn(2, 5, requires_grad=True); one = torch.ones(2)\n"
        "args = (z, torch.randn(2, 5), torch.zeros(2).long(), kernels.RowWeights(one, one, one, one))\n"
        "kernels.distill_loss(*args).loss.backward()\n"
        "try: kernels.distill_loss(*args, impl='triton')\n"
        "except ValueError as error: print(error)\n"
    )
    assert "impl='triton' needs triton >= 3.4" in done.stdout, done.stderr


def test_only_a_missing_triton_is_reported_as_one():
    """Our own modules failing to import is another error, and is not to be answered by the reference."""
    done = in_a_fresh_process(
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import sys; sys.modules['kernels.fused.slots'] = None\n"
        "import torch, kernels\n"
        "kernels.distill_loss(torch.randn(2, 5), torch.randn(2, 5), torch.zeros(2).long(), kernels.RowWeights(), "
        "impl='triton')\n"
    )
    assert "import of kernels.fused.slots halted" in done.stderr and "needs triton" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine where triton has no device")
def test_triton_on_a_cpu_is_refused_outside_the_interpreter():
    done = in_a_fresh_process(
        "import os; os.environ.pop('TRITON_INTERPRET', None)\n"
        "import torch, kernels\n"
        "args = (torch.randn(2, 5), torch.randn(2, 5), torch.zeros(2).long(), kernels.RowWeights())\n"
        "kernels.distill_loss(*args)\n"
        "import sys; assert 'kernels.fused.dense' not in sys.modules\n"
        "kernels.distill_loss(*args, impl='triton')\n"
    )
    assert "impl='triton' needs a GPU" in done.stderr, done.stderr
