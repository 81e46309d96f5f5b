"""teacher_topk and teacher_sample against fp64 over the whole vocabulary, and against what sampling promises."""

import math

import pytest
import torch

from helpers.sparse_cases import topk_of
from kernels import (
    Head,
    RowWeights,
    SparseTeacher,
    distill_loss,
    sparse_distill_loss,
    sparse_teacher,
    teacher_sample,
    teacher_topk,
    topk,
)

N, H, V = 7, 12, 90
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


def make_teacher(dtype=torch.float32, spread=1.0, width=V):
    return torch.randn(N, H).to(dtype), Head(
        (spread * torch.randn(width, H)).to(dtype), torch.randn(width).to(dtype), scale=0.7
    )


def logits_of(hidden, head, dtype=torch.float64):
    return (hidden.to(dtype) @ head.weight.to(dtype).T + head.bias.to(dtype)) * head.scale


@pytest.mark.parametrize("k", [1, 8, V])
@pytest.mark.parametrize("chunk_rows", [1, 3, None])
def test_topk_in_every_chunking(k, chunk_rows):
    hidden, head = make_teacher()
    signal = teacher_topk(hidden, head, k, TEMPERATURES, chunk_rows=chunk_rows)
    logits = logits_of(hidden, head)
    assert signal.ids.dtype == torch.int32 and signal.argmax.equal(logits.argmax(-1).int())
    assert signal.ids.equal(logits.topk(k).indices.int())
    torch.testing.assert_close(
        signal.log_probs.double(), torch.log_softmax(logits, -1).topk(k).values, rtol=0, atol=1e-5
    )
    for index, temperature in enumerate(TEMPERATURES):
        expected = topk_of(logits, k, temperature, torch.float64)
        found = sparse_teacher(signal, temperature)
        assert found.kind == "topk" and found.ids.equal(expected.ids) and found.argmax.equal(expected.argmax)
        for name in ("probs", "log_tail", "entropy", "entropy_t"):
            ours, theirs = getattr(found, name).double(), getattr(expected, name)
            torch.testing.assert_close(
                ours,
                theirs,
                rtol=2e-5,
                atol=2e-5,
                msg=lambda m: f"{name} at {temperature}: {m}",  # noqa: B023
            )
        torch.testing.assert_close(signal.log_probs_t[index].exp(), found.probs)
        # What a cache keeps is enough: log-probabilities at T = 1 and the tail's mass at T.
        powers = signal.log_probs.double().div(temperature).softmax(-1)
        kept = -torch.expm1(signal.log_tail[index].double())[:, None]
        torch.testing.assert_close(powers * kept, found.probs.double(), rtol=1e-4, atol=1e-7)


def test_tails_near_nothing_and_near_everything():
    """e^-60 of a tail, and all but 1e-6 of one: neither is lost to the other's rounding."""
    weight = torch.zeros(V, 1)
    weight[0] = 60.0
    sure = teacher_topk(torch.ones(1, 1), Head(weight), 1)
    torch.testing.assert_close(sure.log_tail[0], torch.tensor([math.log(V - 1) - 60.0]), rtol=1e-6, atol=0)
    weight[0], weight[1:] = 0.0, 9.3
    unsure = teacher_topk(torch.ones(1, 1), Head(torch.cat([weight, weight[1:]])), 2 * V - 2)
    kept = torch.log_softmax(torch.cat([weight, weight[1:]]).double().T, -1)[0, 0].exp()
    torch.testing.assert_close(unsure.log_tail.exp().double(), kept[None, None], rtol=1e-5, atol=0)
    flat = teacher_topk(torch.ones(1, 1), Head(torch.zeros(1_000_000, 1)), 1)
    torch.testing.assert_close(
        flat.log_tail[0].double(), torch.tensor([math.log1p(-1e-6)], dtype=torch.float64), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    hidden, head = make_teacher(dtype)
    signal = teacher_topk(hidden, head, 8, (2.0,))
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias).mul_(head.scale).double()
    expected = topk_of(logits, 8, 2.0, torch.float64)
    assert signal.log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(sparse_teacher(signal, 2.0).probs.double(), expected.probs, rtol=1e-5, atol=1e-6)
    assert signal.argmax.equal(logits.argmax(-1).int())


def test_ties_and_padding():
    """Ties go to the lowest id, the argmax is kept though more than k tokens share the max, padding is not seen."""
    weight = torch.zeros(40, 1)
    weight[[5, 9, 20]] = 3.0
    weight[30:] = 50.0
    hidden = torch.ones(2, 1)
    three = teacher_topk(hidden, Head(weight), 4, vocab_size=30)
    assert three.ids[0, :3].tolist() == [5, 9, 20] and three.argmax.tolist() == [5, 5]
    for k in (1, 2, 3):
        signal = teacher_topk(hidden, Head(weight), k, vocab_size=30)
        assert signal.ids[0, 0] == 5 and len(set(signal.ids[0].tolist())) == k
        expected = torch.log_softmax(weight[:30, 0], 0)[5]
        torch.testing.assert_close(signal.log_probs, expected.expand(2, k))
    torch.testing.assert_close(three.entropy, torch.special.entr(torch.softmax(weight[:30, 0], 0)).sum().expand(2))
    flat = teacher_topk(hidden, Head(torch.zeros(40, 1)), 3)
    assert (flat.ids[:, 0] == 0).all() and all(len(set(row)) == 3 for row in flat.ids.tolist())


def test_masked_tokens_are_empty_slots():
    head = Head(torch.zeros(20, 1), torch.full((20,), -float("inf")).index_fill(0, torch.tensor([4, 7]), 0.0))
    teacher = sparse_teacher(teacher_topk(torch.ones(1, 1), head, 5), 1.0)
    assert teacher.probs[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0]) and teacher.log_tail.tolist() == [
        -float("inf")
    ]
    assert teacher.entropy.item() == pytest.approx(math.log(2))
    samples = teacher_sample(torch.ones(1, 1), head, 9, (1.0,), torch.tensor([3]))
    assert set(samples.ids.flatten().tolist()) == {4, 7, -1}


def test_the_loss_of_the_signal_is_the_loss_of_the_teacher():
    hidden, head = make_teacher()
    logits = logits_of(hidden, head, torch.float32)
    student, labels = torch.randn(N, V), torch.randint(0, V, (N,))
    weights = RowWeights(*torch.rand(4, N))
    teacher = sparse_teacher(teacher_topk(hidden, head, V, (2.0,)), 2.0)
    settings = dict(temperature=2.0, impl="reference")
    ours, dense = (
        call(student, signal, labels, weights, **settings)
        for call, signal in ((sparse_distill_loss, teacher), (distill_loss, logits))
    )
    for name, row in dense._asdict().items():
        torch.testing.assert_close(getattr(ours, name), row, rtol=2e-5, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("num_draws", [1, 50])
def test_samples_are_counts_of_distinct_tokens(num_draws):
    hidden, head = make_teacher(spread=0.5)
    signal = teacher_sample(hidden, head, num_draws, TEMPERATURES, torch.arange(N), chunk_rows=3)
    assert signal.ids.shape == signal.counts.shape == (4, N, num_draws + 1)
    logits = logits_of(hidden, head)
    for index, temperature in enumerate(TEMPERATURES):
        p = torch.softmax(logits / temperature, -1)
        for row in range(N):
            ids, counts = signal.ids[index, row], signal.counts[index, row]
            used = ids != -1
            tokens = ids[used].tolist()
            assert (
                len(set(tokens)) == len(tokens)
                and tokens[0] == logits[row].argmax()
                and sorted(tokens[1:]) == tokens[1:]
            )
            assert counts.sum() == num_draws and (counts[~used] == 0).all() and (counts[1:][used[1:]] > 0).all()
            # Systematic resampling: no count is a whole draw away from its expectation.
            whole = torch.zeros(V, dtype=torch.float64).index_add_(0, ids[used].long(), counts[used].double())
            assert ((whole - num_draws * p[row]).abs() < 1 + 1e-4).all()
        teacher = sparse_teacher(signal, temperature)
        assert teacher.kind == "sampled"
        torch.testing.assert_close(teacher.probs.sum(-1), torch.ones(N))
        torch.testing.assert_close(teacher.entropy_t.double(), torch.special.entr(p).sum(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            teacher.entropy.double(), torch.special.entr(torch.softmax(logits, -1)).sum(-1), rtol=1e-5, atol=1e-5
        )


def test_draws_depend_on_seed_and_temperature_alone():
    hidden, head = make_teacher()
    seeds = torch.randint(-(2**63), 2**63 - 1, (N,))
    whole = teacher_sample(hidden, head, 12, TEMPERATURES, seeds)
    order = torch.randperm(N)
    other = teacher_sample(hidden[order], head, 12, (4.0, 2.0), seeds[order], chunk_rows=2)
    assert other.ids[1].equal(whole.ids[2, order]) and other.counts[0].equal(whole.counts[3, order])
    assert not teacher_sample(hidden, head, 12, (2.0,), seeds + 1).counts.equal(whole.counts[2:3])
    # The hash is splitmix64 and the uniform its top 53 bits: held to a value so that caches stay reproducible.
    assert topk._mix(torch.tensor([0])).item() & (2**64 - 1) == 0xE220A8397B1DCDAF
    uniform = topk._uniform(torch.arange(20000), 1.0)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    assert abs((uniform[1:] * uniform[:-1]).mean() - 0.25) < 0.01


def test_the_largest_uniform_number_is_below_one(monkeypatch):
    """In fp32 it would be 1, and the draw the last token, whatever its probability."""
    monkeypatch.setattr(topk, "_mix", lambda x: torch.full_like(x, -1))
    assert topk._uniform(torch.arange(1), 1.0).item() == 1 - 2.0**-53
    masked = Head(torch.zeros(20, 1), torch.full((20,), -float("inf")).index_fill(0, torch.tensor([4, 7]), 0.0))
    samples = teacher_sample(torch.ones(1, 1), masked, 9, (1.0,), torch.arange(1))
    assert set(samples.ids.flatten().tolist()) == {4, 7, -1}


def test_draws_are_unbiased_and_so_is_their_gradient():
    """Each count's mean over seeds is num_draws * p within 5 standard errors; then the loss's gradient is the dense
    one.
    """
    repeats = 4000
    hidden, head = make_teacher(spread=0.6, width=25)
    signal = teacher_sample(hidden[:1].expand(repeats, -1), head, 6, (2.0,), torch.arange(repeats))
    logits = logits_of(hidden[:1], head, torch.float32)
    p = torch.softmax(logits / 2, -1)[0]
    used = signal.ids[0] != -1
    counts = torch.zeros(repeats, 26).scatter_add_(
        1, torch.where(used, signal.ids[0], 25).long(), signal.counts[0].float()
    )
    error = (counts[:, :25].mean(0) - 6 * p).abs()
    assert (error <= 5 * counts[:, :25].std(0) / repeats**0.5 + 1e-5).all()
    student = torch.randn(1, 25)
    kd, labels = RowWeights(kd=torch.full((repeats,), 1 / repeats)), torch.zeros(repeats, dtype=torch.int64)
    many = student.expand(repeats, -1).clone().requires_grad_()
    teacher = sparse_teacher(signal, 2.0)
    sparse_distill_loss(many, teacher, labels, kd, temperature=2.0, impl="reference").loss.backward()
    one = student.clone().requires_grad_()
    dense = distill_loss(one, logits, labels[:1], RowWeights(kd=torch.ones(1)), temperature=2.0, impl="reference")
    dense.loss.backward()
    spread = many.grad.std(0) * repeats**0.5
    assert ((many.grad.sum(0) - one.grad[0]).abs() <= 5 * spread + 1e-5).all()
    assert one.grad.abs().max() > 20 * spread.max()


def test_logits_exist_a_chunk_at_a_time_and_without_a_graph(monkeypatch):
    seen, whole = [], topk.head_logits
    monkeypatch.setattr(topk, "head_logits", lambda x, head: seen.append(len(x)) or whole(x, head))
    hidden, head = make_teacher()
    signal = teacher_topk(hidden.requires_grad_(), head, 3, chunk_rows=3)
    teacher_sample(hidden, head, 3, (1.0,), torch.arange(N), chunk_rows=5)
    assert seen == [3, 3, 1, 5, 2] and not signal.log_probs.requires_grad


def test_no_rows():
    hidden, head = make_teacher()
    signal = teacher_topk(hidden[:0], head, 3, (1.0, 2.0))
    assert signal.ids.shape == (0, 3) and signal.log_probs_t.shape == (2, 0, 3) and signal.entropy_t.shape == (2, 0)
    samples = teacher_sample(hidden[:0], head, 4, (1.0, 2.0), torch.zeros(0, dtype=torch.int64))
    assert samples.ids.shape == (2, 0, 5) and isinstance(sparse_teacher(samples, 2.0), SparseTeacher)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, h: teacher_topk(x, h, 0), "k is 0; it must lie between 1 and vocab_size, 90"),
        (lambda x, h: teacher_topk(x, h, 31, vocab_size=30), "vocab_size, 30"),
        (lambda x, h: teacher_topk(x, h, 3, ()), "one or more distinct numbers"),
        (lambda x, h: teacher_topk(x, h, 3, (1.0, 1.0)), "one or more distinct numbers"),
        (lambda x, h: teacher_topk(x, h, 3, (1.0, 0.0)), "one or more distinct numbers"),
        (lambda x, h: teacher_topk(x.double(), h, 3), "cast them to one floating-point dtype"),
        (lambda x, h: teacher_topk(x, h, 3, chunk_rows=0), "chunk_rows is 0"),
        (lambda x, h: teacher_sample(x, h, 0, (1.0,), torch.arange(N)), "num_draws is 0"),
        (lambda x, h: teacher_sample(x, h, 3, (1.0,), torch.arange(N).int()), "seeds must be int64"),
        (lambda x, h: sparse_teacher(teacher_topk(x, h, 3, (1.0, 2.0)), 3.0), "not at 3.0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(*make_teacher())
