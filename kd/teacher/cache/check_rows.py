"""Teacher's rows on their way into a cache: cut by record, and checked."""

from __future__ import annotations

import torch
from torch import Tensor

from kd.teacher.cache.spec import CacheSpec
from kernels import TeacherSamples, TeacherTopK
from kernels.contract import NO_TOKEN

_MOST_ENTROPY = 15.999  # nats, what 16 bits hold


def slice_rows(rows: TeacherSamples | TeacherTopK, start: int, stop: int) -> TeacherSamples | TeacherTopK:
    """Cut rows [start, stop) out of every field, on the CPU."""
    by_temperature = {"log_probs_t", "log_tail", "entropy_t"}
    if isinstance(rows, TeacherSamples):
        by_temperature |= {"ids", "counts"}
    cut = {
        name: (value[:, start:stop] if name in by_temperature else value[start:stop]).cpu()
        for name, value in rows._asdict().items()
        if isinstance(value, Tensor)
    }
    return rows._replace(**cut)


def check_rows(spec: CacheSpec, rows: TeacherSamples | TeacherTopK) -> str | None:
    """Find out why these rows cannot be stored under the spec: another kind or shape, a number that no teacher gives.

    Returns:
        The first problem in words, or None.
    """
    wanted = TeacherSamples if spec.kind == "sampled" else TeacherTopK
    if not isinstance(rows, wanted):
        return f"a {spec.kind} cache takes {wanted.__name__}, not {type(rows).__name__}"
    if rows.temperatures != spec.temperatures:
        return f"its rows are at temperatures {rows.temperatures}, those of the cache at {spec.temperatures}"
    problem = _check_shapes(spec, rows) or _check_entropies(spec, rows)
    if problem is not None:
        return problem
    return _check_samples(spec, rows) if isinstance(rows, TeacherSamples) else _check_top_k(spec, rows)


def _check_shapes(spec: CacheSpec, rows: TeacherSamples | TeacherTopK) -> str | None:
    n, m = len(rows.argmax), len(spec.temperatures)
    shapes = {"entropy": (n,), "entropy_t": (m, n), "argmax": (n,)}
    if isinstance(rows, TeacherSamples):
        if rows.num_draws != spec.num_draws:
            return f"its rows have {rows.num_draws} draws, those of the cache {spec.num_draws}"
        shapes |= {"ids": (m, n, spec.draws + 1), "counts": (m, n, spec.draws + 1)}
    else:
        shapes |= {"ids": (n, spec.top_k), "log_probs": (n, spec.top_k), "log_tail": (m, n)}
    for name, shape in shapes.items():
        if getattr(rows, name).shape != shape:
            return f"{name} is {list(getattr(rows, name).shape)}, not {list(shape)}"
    return None


def _check_entropies(spec: CacheSpec, rows: TeacherSamples | TeacherTopK) -> str | None:
    both = torch.cat([rows.entropy[None], rows.entropy_t])
    if not spec.has_entropy:
        return (
            None if both.isnan().all() else "its rows have entropies, and the cache is of an endpoint, which tells none"
        )
    if not ((both >= -1e-3) & (both <= _MOST_ENTROPY)).all():
        return (
            "an entropy is negative, too large or not finite: look for NaN in the teacher's weights, or give it a "
            "wider dtype"
        )
    return None


def _check_samples(spec: CacheSpec, rows: TeacherSamples) -> str | None:
    ids, counts, used = rows.ids, rows.counts, rows.ids != NO_TOKEN
    if (used & ((ids < 0) | (ids >= spec.vocab_size))).any():
        return f"a drawn token is not below vocab_size, {spec.vocab_size}"
    if (counts < 0).any() or (counts[~used] != 0).any() or (counts.sum(-1) != spec.num_draws).any():
        return f"counts are not those of {spec.num_draws} draws"
    if (ids[:, :, 0] != rows.argmax).any():
        return "the first token is not the argmax"
    later = used[:, :, 1:]
    if (later & (counts[:, :, 1:] == 0)).any():
        return "a token after the first has a count of 0"
    if (later[:, :, 1:] & ~later[:, :, :-1]).any() or (later[:, :, 1:] & (ids[:, :, 2:] <= ids[:, :, 1:-1])).any():
        return "tokens after the first are not in ascending order without a gap"
    if (later & (ids[:, :, 1:] == ids[:, :, :1])).any():
        return "the argmax is there twice"
    return None


def _check_top_k(spec: CacheSpec, rows: TeacherTopK) -> str | None:
    ids, log_probs, log_tail = rows.ids, rows.log_probs, rows.log_tail
    if ((ids < 0) | (ids >= spec.vocab_size)).any():
        return f"a kept token is not below vocab_size, {spec.vocab_size}"
    ordered = ids.sort(-1).values
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        return "a token is there twice"
    if (ids[:, 0] != rows.argmax).any():
        return "the first token is not the argmax"
    if not (log_probs <= 1e-3).all() or log_probs[:, 0].isinf().any() or not (log_tail <= 1e-3).all():
        return "a log-probability is above 0 or NaN: look for NaN in the teacher's weights, or give it a wider dtype"
    return None
