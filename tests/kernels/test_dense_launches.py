"""The launches with several programs a row, and the choice between launches.

The interpreter runs the streamed launch as it is: its programs wait only for turns taken before their own, so one
program after another is a valid order, and an order that was not would hang here. The cooperative launch is run with
one part a row, where its exchange is trivial: what it computes is tested, how it waits is for
tests/gpu/test_cooperative_gpu.py.
"""

import pytest
import torch
import triton
import triton.language as tl

from helpers.kernel_cases import DIVERGENCES, ENTROPY, assert_parity, make_case, options_for
from kernels import RowWeights, distill_loss
from kernels.divergences import kind_of
from kernels.fused import cooperative, dense, launches
from kernels.fused.divergence_tiles import FORWARD_KL
from kernels.fused.parts import merge_parts, publish
from kernels.fused.sweeps import measure, padding_of, row_divergence, widened
from kernels.fused.tiles import (
    MOMENT,
    NUM_STATS,
    U_COLUMN,
    U_SUM,
    Z_CHOICE,
    Z_COLUMN,
    Z_LABEL,
    Z_SUM,
    Z_TOP,
    tile_columns,
    whole_part,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these run in the interpreter; GPUs have tests/gpu")

H100 = launches.Device("sm_90", 132, 50 << 20)
each_launch = pytest.mark.parametrize("launch", ["streamed", "cooperative"])


@pytest.fixture
def tiles(monkeypatch, request):
    """Many parts a row for the streamed launch, one for the cooperative."""
    launch = request.getfixturevalue("launch")
    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 64 if launch == "streamed" else 1024)
    monkeypatch.setattr(launches, "STREAMED_PART_BYTES", 1)
    return launch


def run(case, launch, grad=True, **settings):
    grad = torch.empty_like(case.student) if grad is True else grad
    output = dense.dense_rows(*case, options_for(case, **settings), grad, launch=launch)
    return output._replace(loss=output.loss.sum()), grad


@each_launch
@pytest.mark.parametrize("entropy", [None, ENTROPY], ids=["constant", "entropy"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.7])
def test_parity(temperature, entropy, launch, tiles):
    case = make_case(5, 300)
    settings = dict(temperature=temperature, entropy=entropy)
    assert_parity(case, *run(case, launch, **settings), **settings)


@each_launch
def test_equals_the_row_launch(launch, tiles):
    """Widths that end inside a group, inside a tile and inside a part; terms on and off; over the logits themselves."""
    for width, vocab in ((304, 299), (304, 256), (40, 33), (300, 300)):
        case = make_case(4, width, vocab=vocab)
        case.student[:, vocab:], case.teacher[:, vocab:] = 50.0, 60.0
        kd, truth, span, hard = case.weights
        alone = (
            (RowWeights(kd=kd), RowWeights(hard=hard), RowWeights(truth=truth), RowWeights()) if vocab == 299 else ()
        )
        for weights in (case.weights, *alone):
            one = case._replace(weights=weights)
            expected, expected_grad = run(one, "row", temperature=2.0, vocab_size=vocab)
            output, grad = run(one, launch, temperature=2.0, vocab_size=vocab)
            torch.testing.assert_close(grad, expected_grad)
            for name, row in expected._asdict().items():
                torch.testing.assert_close(getattr(output, name), row)
            over = one._replace(student=one.student.clone())
            run(over, launch, grad=over.student, temperature=2.0, vocab_size=vocab)
            assert over.student.equal(grad)


@each_launch
def test_without_teacher(launch, tiles):
    case = make_case(3, 200)
    case = case._replace(teacher=None, weights=RowWeights(truth=case.weights.truth))
    options, grads = options_for(make_case(3, 200)), [torch.full_like(case.student, float("nan")) for _ in range(2)]
    expected, output = (dense.dense_rows(*case, options, grad, launch=f) for grad, f in zip(grads, ("row", launch)))
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.nll, expected.nll)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("launch", ["row", "streamed", "cooperative"])
def test_excluded_tokens(launch, tiles):
    """-inf on either side leaves the online sums; what is computed instead is what the reference says."""
    case = make_case(5, 300)
    case.teacher[0, 5] = case.teacher[1, :250] = case.teacher[2, 1:] = -float("inf")
    case.student[1, 3] = case.student[3, 17] = -float("inf")
    case.teacher[3, 17] = -1e4  # the teacher's probability is 0 as well: nothing is lost
    case.student[4, 40] = -float("inf")  # the teacher likes it: the divergence is infinite
    kd = RowWeights(kd=torch.ones(5))
    output, grad = run(case._replace(weights=kd), launch, temperature=2.0)
    expected = distill_loss(*case._replace(weights=kd), temperature=2.0, impl="reference")
    torch.testing.assert_close(output.divergence, expected.divergence)
    torch.testing.assert_close(output.teacher_entropy, expected.teacher_entropy)
    assert output.divergence[4] == float("inf") and output.divergence[:4].isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("launch", ["row", "streamed", "cooperative"])
def test_the_teachers_choice_in_column_0_and_parts_of_nothing(launch, tiles):
    """A part that is all excluded has no max of its own, and may not stand for column 0."""
    case = make_case(3, 300)
    case.teacher[:, 0] = 50.0
    case.teacher[0, 1:] = -float("inf")
    case.teacher[1, 70:] = torch.finfo(torch.float32).min
    one = RowWeights(hard=torch.ones(3), truth=torch.ones(3))
    output, grad = run(case._replace(weights=one), launch)
    expected = distill_loss(*case._replace(weights=one), impl="reference")
    torch.testing.assert_close(output.hard_nll, expected.hard_nll)
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("launch", ["row", "streamed", "cooperative"])
@pytest.mark.parametrize("value", [-65504.0, -float("inf")], ids=["the least number", "-inf"])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_rows_of_fp16_with_nothing_above_its_least_number(side, value, launch, tiles):
    """Columns past the vocabulary are not a part of them, though fp16 has no number below theirs: as in fp32. No
    finite gradient where there is no distribution."""
    case = make_case(4, 40, vocab=33, dtype=torch.float16)
    getattr(case, side)[:2] = value
    settings = dict(temperature=2.0, vocab_size=33)
    grad = torch.empty(case.student.shape)
    output, _ = run(case, launch, grad=grad, **settings)
    expected, expected_grad = run(
        case._replace(student=case.student.float(), teacher=case.teacher.float()), "row", **settings
    )
    for name, row in expected._asdict().items():
        if name != "hard_nll":  # of a teacher without a choice it is of any token, and the loss is NaN
            torch.testing.assert_close(
                getattr(output, name),
                row,
                equal_nan=True,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda m: f"{name}: {m}",  # noqa: B023
            )
    torch.testing.assert_close(grad, expected_grad, equal_nan=True, rtol=1e-4, atol=1e-6)
    assert grad[2:].isfinite().all() and grad[:2, :33].isnan().all() == (value == -float("inf"))
    reference = distill_loss(
        *case._replace(student=case.student.double(), teacher=case.teacher.double()), **settings, impl="reference"
    )
    torch.testing.assert_close(
        output.teacher_entropy.double(), reference.teacher_entropy.double(), equal_nan=True, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("launch", ["row", "streamed", "cooperative"])
def test_labels_and_ties(launch, tiles):
    case = make_case(5, 300)
    labels = torch.tensor([-100, 300, 3, -1, 299])
    case.student[:, 20] = case.student[:, 290] = case.teacher[:, 20] = case.teacher[:, 70] = 99.0
    case = case._replace(labels=labels, weights=case.weights._replace(truth=torch.tensor([0.0, 1, 1, 0, 1]), span=None))
    output, grad = run(case, launch)
    assert grad.isnan().all(1).tolist() == grad.isnan().any(1).tolist() == [False, True, False, True, False]
    assert output.teacher_hit.all()
    expected, expected_grad = run(case, "row")
    torch.testing.assert_close(grad, expected_grad, equal_nan=True)


@triton.jit
def _exchange_kernel(
    student,
    teacher,
    partials,
    out,
    label,
    vocab,
    inv_t,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_PARTS: tl.constexpr,
):
    """Do what the programs of a cooperative row do, one after another, up to the row's statistics and divergence."""
    offsets = tile_columns(BLOCK, GROUP)
    for part in range(tl.cdiv(vocab, BLOCK)):
        start = part * BLOCK
        stop = tl.minimum(start + BLOCK, vocab)
        keep = start + offsets < stop
        z = widened(tl.load(student + start + offsets, mask=keep, other=padding_of(student)), keep)
        u = widened(tl.load(teacher + start + offsets, mask=keep, other=padding_of(teacher)), keep)
        stats = whole_part(z, u, start, inv_t, 0, True, True, BLOCK, GROUP)
        stats = measure(
            stats, student, teacher, start, stop, label, inv_t, FORWARD_KL, 0, True, True, True, BLOCK, GROUP
        )
        publish(stats, partials + part, NUM_PARTS)
    stats = merge_parts(partials, tl.cdiv(vocab, BLOCK), inv_t, FORWARD_KL, 0, NUM_PARTS)
    divergence, _ = row_divergence(
        student, teacher, stats, vocab, inv_t, 0.0, FORWARD_KL, 0, BLOCK, GROUP, BLOCK, False
    )
    tl.store(out, divergence)
    tl.store(out + 1, tl.log(stats[U_SUM]) - stats[MOMENT] / stats[U_SUM])
    tl.store(out + 2, tl.log(stats[Z_SUM]) - (stats[Z_LABEL] - stats[Z_TOP]))
    tl.store(out + 3, tl.log(stats[Z_SUM]) - (stats[Z_CHOICE] - stats[Z_TOP]))
    tl.store(out + 4, stats[Z_COLUMN].to(tl.float32))
    tl.store(out + 5, stats[U_COLUMN].to(tl.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_several_parts_of_a_cooperative_row(dtype):
    """Also where a part is all -inf, on one side or both: it has no max, and adds nothing to the row."""
    case = make_case(5, 600, dtype=dtype)
    case.teacher[1, 256:512] = case.teacher[2, :256] = case.teacher[3, 512:] = -float("inf")
    case.student[2, :256] = case.student[3, 520:] = case.student[4, 256:512] = -float("inf")
    case = case._replace(weights=RowWeights(kd=torch.ones(5), truth=torch.ones(5), hard=torch.ones(5)))
    labels = case.labels.clamp(min=256, max=511)
    labels[4] = 0
    case = case._replace(labels=labels)
    expected = distill_loss(*case, temperature=2.0, impl="reference")
    assert expected.divergence[:4].isfinite().all() and expected.divergence[4] == float("inf")
    found = torch.empty(5, 6)
    for row in range(5):
        partials = torch.empty(NUM_STATS.value, 4)
        _exchange_kernel[(1,)](
            case.student[row],
            case.teacher[row],
            partials,
            found[row],
            int(labels[row]),
            600,
            0.5,
            BLOCK=256,
            GROUP=8,
            NUM_PARTS=4,
        )
    for column, rows in enumerate((expected.divergence, expected.teacher_entropy, expected.nll, expected.hard_nll)):
        torch.testing.assert_close(found[:, column], rows, rtol=1e-5, atol=1e-5)
    assert found[:, 4].equal(case.student.argmax(-1).float()) and found[:, 5].equal(case.teacher.argmax(-1).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 1 / 3])
def test_gradients_are_scaled_in_their_own_precision(factor, dtype):
    """Rows of a wider buffer, and a bias; what lies beside them stays."""
    by = torch.tensor(factor, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    buffer = torch.randn(5, 5000, dtype=dtype)
    whole, flat = buffer.clone(), torch.randn(70, dtype=dtype)
    expected = buffer.clone()
    expected[::2, :4100] = (expected[::2, :4100].to(by.dtype) * by).to(dtype)
    expected_flat = (flat.to(by.dtype) * by).to(dtype)
    dense.scale_unless_one(whole[::2, :4100], by)
    dense.scale_unless_one(flat, by)
    dense.scale_unless_one(torch.empty(0, 7), by)
    assert whole.equal(expected) and flat.equal(expected_flat)


@pytest.mark.parametrize("divergence, beta", DIVERGENCES[1:])
def test_floor_of_reverse_kl(divergence, beta, monkeypatch):
    """Finite logits so low that the floor under log p bites: the online sum is wrong there, and is not used."""
    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 64)
    case = make_case(3, 200)
    case.teacher[0, 7], case.teacher[1, 150] = -3e4, -1.0001e4
    settings = dict(divergence=divergence, beta=beta)
    assert_parity(case, *run(case, "row", **settings), **settings)


@pytest.mark.parametrize("level", [3e5, 3e6, 1e9])
def test_gradient_far_from_zero(level, monkeypatch):
    """Exponents of one instruction a logit are off by what a row's maximum is rounded, all of a row by as much: that is
    taken out again. Rows too far for that have exponents of two instructions."""
    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 64)
    case = make_case(4, 300)
    step = max(1.0, level * 2.0**-23)  # numbers that fp32 has at that level
    near = (case.student / step).round() * step + level, (case.teacher / step).round() * step - level
    for temperature in (1.0, 2.0, 3.0, 4.0):
        exact = case._replace(student=near[0] - level, teacher=near[1] + level)
        assert (exact.student + level).equal(near[0]) and (exact.teacher - level).equal(near[1])
        _, expected = run(exact, "row", temperature=temperature)
        _, found = run(case._replace(student=near[0], teacher=near[1]), "row", temperature=temperature)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_choice_of_launch(monkeypatch):
    logits = torch.zeros(2, 32)
    monkeypatch.setattr(launches, "device_facts", lambda device: H100)
    wide = torch.empty(1, 151936, dtype=torch.bfloat16)

    def chosen(student, vocab=151936, kind=0, gradient=True, launch=None):
        return launches.choose(student.device, student, student, vocab, kind, gradient, launch).name

    monkeypatch.delenv("SPANWISE_DENSE_LAUNCH", raising=False)
    assert chosen(wide) == "row" and not any(launches.PROVEN.values())  # nothing is proven until a GPU has been asked
    monkeypatch.setattr(launches, "PROVEN", {"streamed": frozenset({"sm_90"}), "cooperative": frozenset()})
    assert chosen(wide) == "streamed" and chosen(wide, kind=1) == "row" and chosen(logits, vocab=32) == "row"
    assert chosen(wide, gradient=False) == "row"  # one sweep is all there is
    monkeypatch.setenv("SPANWISE_DENSE_LAUNCH", "cooperative")
    assert chosen(wide) == "cooperative" and chosen(wide, kind=2) == "row" and chosen(wide, launch="row") == "row"
    monkeypatch.setenv("SPANWISE_DENSE_LAUNCH", "fast")
    with pytest.raises(ValueError, match="SPANWISE_DENSE_LAUNCH is 'fast': choose one of row, streamed, cooperative"):
        chosen(wide)
    for launch, kind, gradient in (("fast", 0, True), ("streamed", 1, True), ("cooperative", 0, False)):
        with pytest.raises(ValueError, match="the gradient of forward_kl or no kd"):
            chosen(wide, kind=kind, gradient=gradient, launch=launch)
    monkeypatch.setattr(launches, "device_facts", lambda device: H100._replace(arch="gfx942"))
    monkeypatch.delenv("SPANWISE_DENSE_LAUNCH")
    assert chosen(wide) == "row"


def test_layouts():
    """Rows in flight fall as rows grow; registers always leave room for the programs that a shape counts on."""
    forward, reverse = (kind_of(name) for name in ("forward_kl", "reverse_kl"))
    narrow, wide = (launches.row_launch(H100, row_bytes, 8, forward) for row_bytes in (4000, 600_000))
    assert (narrow.block, narrow.num_warps, narrow.registers) == (2048, 8, 64)
    assert (wide.block, wide.num_warps, wide.registers) == (8192, 32, 64)
    blackwell = H100._replace(arch="sm_100")
    for device, kind, least in ((H100, reverse, 64), (blackwell, forward, 64), (blackwell, reverse, 80)):
        assert all(launches.row_launch(device, row_bytes, 8, kind).registers >= least for row_bytes in (4000, 600_000))
    assert launches.layout("gfx942", (32, 1, 1), 8) == (8192, 16, None)
    streamed = launches.streamed_launch(H100, 600_000, 151936, 8)
    parts = -(-151936 // (streamed.block * streamed.tiles))
    assert streamed.lag >= 1 and streamed.lag * parts >= streamed.programs  # who comes for a row finds it measured
    assert 2 * streamed.programs * streamed.block * streamed.tiles * 4 < H100.l2_bytes  # between a row's two sweeps
    assert launches.streamed_launch(H100, 0, 8_000_000, 8).tiles * streamed.block * launches.MOST_PARTS >= 8_000_000
    assert launches.programs_held(128, 32, 8, 132) == 264 and launches.programs_held(64, 0, 8, 100) == 400
    assert launches.programs_held(32, 100 << 10, 4, 10) == 10 and launches.programs_held(255, 0, 32, 10) == 0


def test_refusal_falls_back_once_with_a_warning(monkeypatch):
    """A device that cannot hold a row's programs, or refuses the grid, gets one program a row; other errors surface."""
    monkeypatch.setattr(cooperative, "refusals", set())
    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 64)
    case = make_case(3, 200)
    expected, expected_grad = run(case, "row")
    with pytest.warns(UserWarning, match="1 programs are resident on interpreter, a row needs 4") as caught:
        for _ in range(2):
            output, grad = run(case, "cooperative")
            assert output.loss.equal(expected.loss) and grad.equal(expected_grad)
    assert sum("does not fit" in str(warning.message) for warning in caught) == 1

    narrow = make_case(3, 299)  # its last group of columns would reach into the next row
    with pytest.warns(
        UserWarning,
        match="the cooperative dense kernel does not fit .the last 4 columns reach past a row of 299 and 299",
    ):
        output, grad = run(narrow, "cooperative")
    assert grad.equal(run(narrow, "row")[1])

    class Refuses:
        def __init__(self, message):
            self.message = message

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                raise RuntimeError(self.message)

            return launch

    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 256)
    message = "Triton Error [CUDA]: too many blocks in cooperative launch"
    monkeypatch.setattr(cooperative, "cooperative_kernel", Refuses(message))
    with pytest.warns(UserWarning, match="too many blocks"):
        output, grad = run(case, "cooperative")
    assert grad.equal(run(case, "row")[1])
    monkeypatch.setattr(cooperative, "cooperative_kernel", Refuses("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        run(case, "cooperative")


def test_grid_leaves_room_for_nccl(monkeypatch):
    """Programs are what the compiled kernel's registers allow, on the SMs that communication does not need."""

    class Compiled:
        n_regs, metadata = 250, type("Metadata", (), {"shared": 32})

        def _init_handles(self):
            self.loaded = True

    class Kernel:
        compiled = Compiled()

        def warmup(self, *args, grid, **options):
            return self.compiled

    launch = launches.cooperative_launch(H100, 600_000, 151936, 8)
    assert cooperative.resident_programs(Kernel(), (), {}, launch) == 2 * 132 and Kernel.compiled.loaded
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    assert cooperative.resident_programs(Kernel(), (), {}, launch) == 2 * (132 - launches.NCCL_SMS)
