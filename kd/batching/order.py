"""Order of records: by epoch, from the seed, the same on every rank.

A sequence of a micro-batch holds one record, or several packed together, and is given as their positions in the source.
An epoch comes in groups of sequences; a group is what one optimizer step is best made of.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable, Iterator, Sequence

Indices = list[int]

WINDOW_STEPS = 16  # padded: steps sorted together by length
WINDOW_SEQUENCES = 256  # packed: sequences filled together


def padded_epoch(source, seed: int, epoch: int, batch: int) -> Iterator[list[Indices]]:
    """Yield groups of `batch` records, one a sequence, of like length, so that little is padding; one group may be
    short.

    Records are shuffled, then windows of them are sorted by length and cut into groups, which are shuffled.
    """
    rng, order = _shuffled(len(source), seed, epoch)
    for start in range(0, len(order), batch * WINDOW_STEPS):
        window = order[start : start + batch * WINDOW_STEPS]
        hints = {i: source.size_hint(i) for i in window}
        window.sort(key=lambda i: (hints[i], i))
        groups = [window[at : at + batch] for at in range(0, len(window), batch)]
        rng.shuffle(groups)
        yield from ([[i] for i in group] for group in groups)


def packed_epoch(lengths: Sequence[int], seed: int, epoch: int, max_length: int) -> Iterator[list[Indices]]:
    """Yield groups of a single sequence of records of at most max_length tokens together; no batch size is in it.

    Records are shuffled, then windows of them, of WINDOW_SEQUENCES sequences' tokens, are packed and their sequences
    shuffled.
    """
    rng, order = _shuffled(len(lengths), seed, epoch)
    window, tokens = [], 0
    for i in order:
        window.append(i)
        tokens += lengths[i]
        if tokens >= WINDOW_SEQUENCES * max_length or i == order[-1]:
            sequences = best_fit(window, lengths, max_length)
            rng.shuffle(sequences)
            yield from ([sequence] for sequence in sequences)
            window, tokens = [], 0


def best_fit(indices: Iterable[int], lengths: Sequence[int], max_length: int) -> list[Indices]:
    """Pack records into sequences of at most max_length tokens: the longest first, each into the fullest that has room
    for it.
    """
    sequences: list[Indices] = []
    free: list[tuple[int, int]] = []  # ascending: room left, number of the sequence
    for i in sorted(indices, key=lambda i: -lengths[i]):
        assert lengths[i] <= max_length, (i, lengths[i])
        at = bisect.bisect_left(free, (lengths[i], 0))
        if at == len(free):
            free.append((max_length, len(sequences)))
            sequences.append([])
        room, number = free.pop(at)
        sequences[number].append(i)
        bisect.insort(free, (room - lengths[i], number))
    return sequences


def _shuffled(num_records: int, seed: int, epoch: int) -> tuple[random.Random, list[int]]:
    rng, order = random.Random(f"{seed}:epoch:{epoch}"), list(range(num_records))
    rng.shuffle(order)
    return rng, order


def cut_into_steps(
    groups: Iterable[list[Indices]], size: int, whole_group: int, num_done: int
) -> Iterator[tuple[int, list[Indices]]]:
    """Yield (records taken by then, sequences of the step) of one epoch: `size` sequences a step, fewer where a group
    has fewer than `whole_group` and at the epoch's end. Those among the first `num_done` records are skipped.

    With size = whole_group a step is a group. The order of records is the same for every size.
    """
    taken, step = 0, []
    for group in groups:
        for sequence in group:
            taken += len(sequence)
            if taken > num_done:
                step.append(sequence)
            if len(step) == size:
                yield taken, step
                step = []
        if step and len(group) < whole_group:
            yield taken, step
            step = []
    if step:
        yield taken, step
