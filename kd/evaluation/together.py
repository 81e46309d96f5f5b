"""Evaluation by all ranks of a job: each answers its share of the cases, rank 0 judges the whole and writes.

A local model is whole on every rank: generation on partitioned weights hangs where ranks need different numbers of
tokens. Without a process group this process is the only rank.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist

from kd.distributed.collectives import on_every_rank, on_rank_0
from kd.evaluation.answerers.answer import Answerer, Progress
from kd.evaluation.cases import Case
from kd.evaluation.evaluate import ONE, Samples, evaluate_cases, merge, name_outcome
from kd.evaluation.files import CASES, EVALUATION, write_cases, write_evaluation

Metrics = dict[str, dict[str, dict[str, Any]]]  # model -> split -> metrics
_Outcomes = dict[str, dict[str, list[dict[str, Any]]]]


class Further(Protocol):
    """What is asked beside the turns of a split: whole conversations, or BFCL."""

    def __call__(self, answerer: Answerer, *, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Ask this rank's share; returns outcomes as `kd.evaluation.evaluate.evaluate_cases` does."""
        ...


class Entrant(NamedTuple):
    """Model or endpoint that is evaluated.

    Attributes:
        name: in evaluation.json.
        open: makes it ready to answer; called on every rank, when it is its turn.
        cases: this rank's share of each split, rendered for it.
        further: what is asked beside them, by split.
    """

    name: str
    open: Callable[[], Answerer]
    cases: dict[str, list[Case]]
    further: Mapping[str, Further] = {}


def find_place() -> tuple[int, int]:
    """Return (rank, world size) of this process; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def ask_together(
    answerer: Answerer, mine: Sequence[Case], samples: Samples = ONE, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Have every rank answer its share, `mine`; rank 0 returns all outcomes in order, the others none.

    Raises:
        SpanwiseError: on every rank, where one could not answer.
    """
    return _gather(lambda: evaluate_cases(answerer, mine, samples, progress=progress))


def _gather(ask: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Have every rank ask; rank 0 returns all outcomes in order, the others none."""
    rank, world = find_place()
    outcomes = on_every_rank(ask)
    if world > 1:
        parts: list[Any] = [None] * world
        dist.gather_object(outcomes, parts if rank == 0 else None)
        outcomes = [outcome for part in parts for outcome in part] if rank == 0 else []
    return sorted(outcomes, key=name_outcome)


def evaluate_together(
    entrants: Sequence[Entrant],
    out: Path,
    samples: Samples = ONE,
    *,
    say: Callable[[str], None],
    show: Callable[[str], Progress] | None = None,
) -> Metrics:
    """Evaluate each entrant on the cases of each split, and write evaluation.json and cases.jsonl into `out`.

    All ranks call it together; rank 0 writes, and all return the metrics. Answers are written once an entrant has given
    all of its own, before anything is computed of them.

    Args:
        say: told of each split that is done.
        show: (entrant and split in words) -> progress of this rank's share.

    Raises:
        SpanwiseError: on every rank: an entrant cannot be opened or asked, or a file not be written.
    """
    outcomes: _Outcomes = {}
    for entrant in entrants:
        answerer = on_every_rank(entrant.open)
        for split in dict.fromkeys((*entrant.cases, *entrant.further)):
            found = []
            if split in entrant.cases:
                progress = show(f"{entrant.name} on {split}") if show else None
                found = ask_together(answerer, entrant.cases[split], samples, progress=progress)
            if further := entrant.further.get(split):
                progress = show(f"{entrant.name} on {split}, further") if show else None
                found += _gather(partial(further, answerer, progress=progress))
            outcomes.setdefault(entrant.name, {})[split] = found
            num_turns, num_records = (len({one[key] for one in found}) for key in ("case", "record"))
            say(f"evaluated {entrant.name} on {split}: {num_turns} turns of {num_records} records")
        del answerer
        gc.collect()
        on_rank_0(lambda: write_cases(out / CASES, outcomes))
    return on_rank_0(lambda: _measure(outcomes, out))


def _measure(outcomes: _Outcomes, out: Path) -> Metrics:
    metrics = {
        model: {split: merge(cases).metrics for split, cases in splits.items()} for model, splits in outcomes.items()
    }
    write_evaluation(out / EVALUATION, metrics)
    return metrics
