"""The launches in which programs wait for one another, on a real GPU: what the interpreter cannot model.

When this file passes on an architecture, and benchmarks/gpu_suite.py finds the launch faster there, the architecture
may enter kernels/fused/launches.py PROVEN. A hang is a failure: gpu_suite.py ends the process when its share of the
time is over.
"""

import pytest
import torch

from helpers.kernel_cases import ENTROPY, assert_parity, make_case, options_for, poison_new_memory
from kernels import RowWeights
from kernels.fused import cooperative, dense, launches

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None,
    reason="needs a CUDA GPU: the split launches' only home",
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [1000, 32000, 65536, 128256, 151936, 262144]
each_launch = pytest.mark.parametrize("launch", ["streamed", "cooperative"])


@pytest.fixture(autouse=True)
def no_fallback(recwarn, monkeypatch):
    """A refused launch would test the row launch instead, and pass."""
    torch.manual_seed(1234)
    poison_new_memory(monkeypatch)
    cooperative.refusals.clear()
    yield
    assert not [w for w in recwarn if "does not fit" in str(w.message)]
    torch.cuda.empty_cache()


def run(case, launch, grad=None, **settings):
    grad = torch.full_like(case.student, float("nan")) if grad is None else grad
    output = dense.dense_rows(*case, options_for(case, **settings), grad, launch=launch)
    return output._replace(loss=output.loss.sum()), grad


@each_launch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_parity(width, dtype, launch):
    case = make_case(12, width, dtype=dtype, device="cuda")
    settings = dict(temperature=2.0, entropy=ENTROPY)
    assert_parity(case, *run(case, launch, **settings), **settings)


@each_launch
@pytest.mark.parametrize("temperature", [1.0, 3.7])
def test_padded_vocabulary(temperature, launch):
    """A tokenizer of 151669 in logits of 151936 columns: the last part, group and columns are all partly filled."""
    case = make_case(9, 151936, vocab=151669, dtype=torch.bfloat16, device="cuda")
    case.student[:, 151669:], case.teacher[:, 151669:] = 50.0, 60.0
    settings = dict(temperature=temperature, vocab_size=151669)
    output, grad = run(case, launch, **settings)
    assert_parity(case, output, grad, **settings)
    assert (grad[:, 151669:] == 0).all()


@each_launch
def test_excluded_tokens_and_bad_labels(launch):
    case = make_case(6, 65536, device="cuda")
    case.teacher[0, 5] = case.teacher[1, 1:] = case.student[2, 60000] = -float("inf")
    case.teacher[2, 60000] = -1e4
    case.teacher[1, 0] = 9.0  # the teacher's choice, and whole parts of nothing behind it
    case.labels[3], case.labels[4] = 65536, -100
    case.weights.truth[3], case.weights.truth[4], case.weights.span[4] = 1.0, 0.0, 0.0
    expected, expected_grad = run(case, "row")
    output, grad = run(case, launch)
    torch.testing.assert_close(grad, expected_grad, equal_nan=True, rtol=1e-5, atol=1e-7)
    for name, row in expected._asdict().items():
        torch.testing.assert_close(
            getattr(output, name),
            row,
            equal_nan=True,
            rtol=1e-5,
            atol=1e-6,
            msg=lambda m: f"{name}: {m}",  # noqa: B023
        )
    assert grad[3].isnan().all() and not grad[[0, 1, 2, 4, 5]].isnan().any()


@each_launch
@pytest.mark.parametrize("inplace", [False, True])
def test_the_same_bits_every_time(inplace, launch):
    """More rows than fit at once, many times: a part read before it is published, or after it is overwritten, moves
    bits.
    """
    case = make_case(700, 65536 + 128, dtype=torch.bfloat16, device="cuda")
    expected, expected_grad = run(case, launch, temperature=2.0)
    for _ in range(20):
        student = case.student.clone() if inplace else case.student
        output, grad = run(case._replace(student=student), launch, grad=student if inplace else None, temperature=2.0)
        assert grad.equal(expected_grad)
        for row, other in zip(output[1:-1], expected[1:-1]):
            assert row.equal(other)


@each_launch
def test_two_streams_and_a_busy_device(launch):
    """Launches on two streams, beside products that hold most SMs, neither meet nor wait for each other for ever."""
    cases = [make_case(200, 65536, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    expected = [run(case, launch)[1] for case in cases]
    streams = [torch.cuda.Stream() for _ in range(3)]
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        with torch.cuda.stream(streams[2]):
            a @ a
        for case, stream in zip(cases, streams):
            with torch.cuda.stream(stream):
                found.append(run(case, launch)[1])
    torch.cuda.synchronize()
    for index, grad in enumerate(found):
        assert grad.equal(expected[index % 2])


def test_streamed_needs_no_second_program(monkeypatch):
    """One program alone does all turns in order: nobody ever waits for a program that is not resident."""
    case = make_case(40, 65536, dtype=torch.bfloat16, device="cuda")
    expected, expected_grad = run(case, "streamed")
    layout = launches.streamed_launch

    def alone(*arguments):
        return layout(*arguments)._replace(programs=1)

    monkeypatch.setattr(launches, "streamed_launch", alone)
    output, grad = run(case, "streamed")
    assert grad.equal(expected_grad) and output.divergence.equal(expected.divergence)


def test_a_grid_that_is_too_large_is_refused_not_hung(monkeypatch):
    case = make_case(4000, 65536, dtype=torch.bfloat16, device="cuda")
    monkeypatch.setattr(cooperative, "resident_programs", lambda *arguments: 100_000)
    with pytest.warns(UserWarning, match="does not fit"):
        output, grad = run(case, "cooperative")
    assert grad.equal(run(case, "row")[1])


@each_launch
def test_the_host_never_waits(launch):
    case = make_case(64, 65536, dtype=torch.bfloat16, device="cuda")
    run(case, launch)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, launch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_launch
def test_without_a_teacher(launch):
    case = make_case(64, 151936, dtype=torch.bfloat16, device="cuda")
    case = case._replace(weights=RowWeights(truth=case.weights.truth))
    options = options_for(case)
    grads = [torch.full_like(case.student, float("nan")) for _ in range(2)]
    outputs = [
        dense.dense_rows(case.student, None, *case[2:], options, g, launch=f) for g, f in zip(grads, ("row", launch))
    ]
    torch.testing.assert_close(outputs[1].nll, outputs[0].nll)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-2, atol=1e-8)
