"""The teacher's side of a SparseTeacher: its best tokens, or draws, from hidden states and head.

A chunk of rows at a time, as in kernels/linear.py: logits of all rows never exist together. The result for a row does
not depend on the chunk that it was in. The cache writer stores it, and `sparse_teacher` makes a SparseTeacher from it.

Draws are by systematic resampling (Kitagawa 1996, "Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State
Space Models", appendix): one uniform number U a row and temperature, and the draws are the tokens at (U + i) /
num_draws of the distribution function, i = 0 .. num_draws - 1. Every token's count has the expectation num_draws * p
and differs from it by less than 1, which independent draws do not. U is a hash of the row's seed and the temperature,
so draws are the same whatever the batch, the device and the other temperatures asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.checks import resolve_vocab_size
from kernels.contract import NO_TOKEN, Head, SparseTeacher
from kernels.head import check_head, head_logits, resolve_chunk_rows, wide


class TeacherTopK(NamedTuple):
    """The K best tokens of N rows, and all else at M temperatures. Floats are fp32 (fp64 from an fp64 head), in nats.

    Entropies are of the whole distribution. A token's log-probability is -inf where the teacher excludes it.
    """

    ids: Tensor  # [N, K] int32, best first, ties by lowest id; ids[:, 0] is the argmax
    log_probs: Tensor  # [N, K] at T = 1
    log_probs_t: Tensor  # [M, N, K] of the same tokens
    log_tail: Tensor  # [M, N] of the mass on all other tokens; -inf where there are none
    entropy: Tensor  # [N] at T = 1
    entropy_t: Tensor  # [M, N]
    argmax: Tensor  # [N] int32
    temperatures: tuple[float, ...]


class TeacherSamples(NamedTuple):
    """num_draws draws for each of N rows at each of M temperatures, as distinct tokens with counts. Floats as above."""

    ids: Tensor  # [M, N, num_draws + 1] int32: the argmax, other drawn tokens by ascending id, then -1
    counts: Tensor  # [M, N, num_draws + 1] int32, sum num_draws; 0 for an argmax not drawn, and after the last token
    entropy: Tensor  # [N] at T = 1
    entropy_t: Tensor  # [M, N]
    argmax: Tensor  # [N] int32
    temperatures: tuple[float, ...]
    num_draws: int


def teacher_topk(
    hidden: Tensor,
    head: Head,
    k: int,
    temperatures: Sequence[float] = (1.0,),
    *,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
) -> TeacherTopK:
    """Find the k best tokens of softmax(head(hidden)) and their probabilities at each temperature. No gradient.

    Args:
        hidden: [N, H] in the dtype of head.weight.
        k: 1 to vocab_size. Which of several tokens with the same logit at the k-th place are kept is torch.topk's
            choice; that the argmax (of several, the lowest id) is kept is not.
        temperatures: distinct numbers above 0.
        vocab_size: columns that count; None for all of the head's.
        chunk_rows: rows whose logits exist at once, as in linear_distill_loss.

    Raises:
        ValueError: shapes and dtypes that do not fit, k or a temperature out of range.
    """
    vocab = _check(hidden, head, temperatures, vocab_size)
    if not 1 <= k <= vocab:
        raise ValueError(f"k is {k}; it must lie between 1 and vocab_size, {vocab}")
    plain, tempered = [], []
    for _, logits in _chunks(hidden, head, vocab, chunk_rows):
        best = logits.argmax(-1)
        ids = logits.topk(k, sorted=False).indices.sort(-1).values
        ids = ids.gather(1, logits.gather(1, ids).sort(dim=-1, descending=True, stable=True).indices)
        ids[:, 0] = best  # already so, unless more than k tokens share the max
        at_one = torch.log_softmax(logits, -1)
        plain.append((ids.int(), at_one.gather(1, ids), _entropy(at_one), best.int()))
        at = [_topk_at(logits, ids, at_one if t == 1.0 else None, t) for t in temperatures]
        tempered.append([torch.stack(field) for field in zip(*at)])
    ids, log_probs, entropy, best = _join(plain, 0)
    log_probs_t, log_tail, entropy_t = _join(tempered, 1)
    return TeacherTopK(ids, log_probs, log_probs_t, log_tail, entropy, entropy_t, best, tuple(map(float, temperatures)))


def teacher_sample(
    hidden: Tensor,
    head: Head,
    num_draws: int,
    temperatures: Sequence[float],
    seeds: Tensor,
    *,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
) -> TeacherSamples:
    """Draw num_draws tokens from softmax(head(hidden) / T) at each temperature, as counts. No gradient.

    Args:
        hidden: [N, H] in the dtype of head.weight.
        num_draws: 1 or more; the expectation of counts / num_draws is p_T, exactly.
        temperatures, vocab_size, chunk_rows: as in teacher_topk.
        seeds: [N] int64, one a row, each its own (a hash of the record and the position, say).

    Raises:
        ValueError: shapes and dtypes that do not fit, num_draws or a temperature out of range.
    """
    vocab = _check(hidden, head, temperatures, vocab_size)
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; it must be at least 1")
    if seeds.shape != (len(hidden),) or seeds.dtype != torch.int64 or seeds.device != hidden.device:
        raise ValueError(
            f"seeds must be int64 [{len(hidden)}] on {hidden.device}, got {seeds.dtype} {list(seeds.shape)} on "
            f"{seeds.device}"
        )
    plain, tempered = [], []
    for part, logits in _chunks(hidden, head, vocab, chunk_rows):
        best = logits.argmax(-1)
        plain.append((_entropy(torch.log_softmax(logits, -1)), best.int()))
        at = []
        for temperature in temperatures:
            log_probs = torch.log_softmax(logits / temperature, -1)
            drawn = _systematic(log_probs, num_draws, _uniform(seeds[part], temperature))
            at.append((*_count(drawn, best), _entropy(log_probs)))
        tempered.append([torch.stack(field) for field in zip(*at)])
    entropy, best = _join(plain, 0)
    ids, counts, entropy_t = _join(tempered, 1)
    return TeacherSamples(ids, counts, entropy, entropy_t, best, tuple(map(float, temperatures)), num_draws)


def sparse_teacher(targets: TeacherTopK | TeacherSamples, temperature: float) -> SparseTeacher:
    """Make the losses' SparseTeacher, at one of the temperatures of `targets`. Raises ValueError at any other."""
    if float(temperature) not in targets.temperatures:
        raise ValueError(
            f"the teacher's targets are at temperatures {targets.temperatures}, not at {temperature}: add it to "
            "the temperatures that teacher_topk or teacher_sample is called with"
        )
    at = targets.temperatures.index(float(temperature))
    rest = targets.entropy, targets.entropy_t[at], targets.argmax
    if isinstance(targets, TeacherTopK):
        return SparseTeacher(targets.ids, targets.log_probs_t[at].exp(), targets.log_tail[at], *rest, "topk")
    no_tail = torch.full_like(targets.entropy, -float("inf"))
    probs = targets.counts[at].to(targets.entropy.dtype) / targets.num_draws
    return SparseTeacher(targets.ids[at], probs, no_tail, *rest, "sampled")


def _check(hidden: Tensor, head: Head, temperatures: Sequence[float], vocab_size: int | None) -> int:
    check_head("teacher", hidden, head, len(hidden), hidden.device)
    if (
        len(temperatures) == 0
        or len(set(temperatures)) < len(temperatures)
        or not all(0 < t < math.inf for t in temperatures)
    ):
        raise ValueError(f"temperatures are {list(temperatures)}: one or more distinct numbers above 0 are needed")
    return resolve_vocab_size(vocab_size, len(head.weight), None)


def _chunks(hidden: Tensor, head: Head, vocab: int, chunk_rows: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows and their logits [n, vocab] in at least fp32; without rows, one empty chunk."""
    step = resolve_chunk_rows(chunk_rows, len(head.weight), hidden.dtype, hidden.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, max(len(hidden), 1), step):
            part = slice(start, start + step)
            yield part, head_logits(hidden[part], head)[:, :vocab].to(wide(hidden.dtype))


def _join(chunks: list, rows_dim: int) -> list[Tensor]:
    return [torch.cat(field, rows_dim) for field in zip(*chunks)]


def _entropy(log_probs: Tensor) -> Tensor:
    """Compute [n] nats from [n, V]; a token of probability 0 adds nothing."""
    return torch.special.entr(log_probs.exp()).sum(-1)


def _topk_at(
    logits: Tensor, ids: Tensor, log_probs: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log p_T of the kept tokens [n, K], the log of the others' mass [n], and the entropy [n].

    Overwrites log_probs, if given.
    """
    if log_probs is None:
        log_probs = torch.log_softmax(logits / temperature, -1)
    entropy, kept = _entropy(log_probs), log_probs.gather(1, ids)
    mass = kept.exp().sum(-1)
    others = torch.logsumexp(log_probs.scatter_(1, ids, -float("inf")), -1)
    # A small tail is exact as a sum over its own tokens; a tail near 1, whose logarithm is near 0, as what is missing.
    return kept, torch.where(mass < 0.5, torch.log1p(-mass), others), entropy


def _systematic(log_probs: Tensor, num_draws: int, uniform: Tensor) -> Tensor:
    """Draw [n, num_draws] tokens, ascending. In fp64: in fp32 the distribution function is off by whole tokens."""
    distribution = log_probs.double().exp_().cumsum(-1)
    distribution /= distribution[:, -1:].clone()
    points = (uniform[:, None] + torch.arange(num_draws, device=uniform.device)) / num_draws
    points.clamp_(max=1 - 2.0**-53)  # rounded up to 1 the last one would be past every token
    # right: the first token whose distribution function is above the point, so never one of probability 0.
    return torch.searchsorted(distribution, points, right=True).clamp_(max=log_probs.shape[1] - 1)


def _count(drawn: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Count ascending draws: ids and counts [n, num_draws + 1] int32, argmax first."""
    is_best = drawn == best[:, None]
    is_new = torch.ones_like(is_best)
    is_new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    slot = torch.where(is_best, 0, (is_new & ~is_best).cumsum(-1))
    ids = torch.full((len(drawn), drawn.shape[1] + 1), NO_TOKEN, dtype=torch.int32, device=drawn.device)
    counts = torch.zeros_like(ids).scatter_add_(1, slot, torch.ones_like(drawn, dtype=torch.int32))
    ids.scatter_(1, slot, drawn.int())
    ids[:, 0] = best
    return ids, counts


def _uniform(seeds: Tensor, temperature: float) -> Tensor:
    """Draw [n] numbers in [0, 1), fp64: the top 53 bits of a hash of seed and temperature."""
    (bits,) = struct.unpack("<q", struct.pack("<d", temperature))
    return _shift_right(_mix(seeds ^ _mix(torch.full_like(seeds, bits))), 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """Mix bits by splitmix64's output function (Steele, Lea, Flood 2014); int64 arithmetic wraps around as its
    unsigned one does.
    """
    x = x + (0x9E3779B97F4A7C15 - (1 << 64))
    x = (x ^ _shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shift_right(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, by: int) -> Tensor:
    """Shift right as an unsigned number: zeros come in from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)
