"""Sampler: gives the student's answers to prompts. The process stage asks one and does not know its kind.

local  a whole copy of the student on each rank, and this project's own batched decoding
vllm   a server that is given the weights once a round (kd/rollouts/vllm_sampler.py)

To add one: write a class with the methods of Sampler and a function that takes an OpenSampler and returns it, and
register the function in kd.config.registries.ROLLOUT_ENGINES; `rollouts.engine: its name` in the YAML then opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kd.config.registries import ROLLOUT_ENGINES
from kd.config.schema import Rollouts
from kd.models.whole_copy import WholeCopy
from kd.rendering.stops import join_stop_ids
from kd.rollouts.decode import Limits, Sampled, Sampling, generate_samples


class Sampler(Protocol):
    """Answers of the student as it was when it was last refreshed."""

    def refresh(self) -> None:
        """Take the student's weights as they are now; all ranks together."""
        ...

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Sampled]:
        """Answer one batch of prompts (token ids); on this rank alone, at any time and any number of times.

        An answer depends on its prompt, its seed and the weights; its last id is a stop id unless it was cut.
        """
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


class OpenSampler(NamedTuple):
    """Request for a sampler: what a stage knows that one may need."""

    rollouts: Rollouts
    model: Any  # the student, under the engine
    copy: WholeCopy
    tokenizer: Any
    stop_ids: list[int]
    export: Callable[[Path], None]  # writes the student's weights as a folder that loads; all ranks together
    rank: int


def open_sampler(request: OpenSampler) -> Sampler:
    """Open the sampler that rollouts.engine names; all ranks together."""
    return ROLLOUT_ENGINES[request.rollouts.engine](request)


def find_stop_ids(model, tokenizer) -> list[int]:
    """Find the ids at which the student's answers end."""
    named = (getattr(getattr(model, part, None), "eos_token_id", None) for part in ("generation_config", "config"))
    return join_stop_ids(tokenizer, *named)


class LocalSampler:
    """Sampler over a whole copy of the student in this process; see Sampler."""

    def __init__(self, request: OpenSampler):
        rollouts = request.rollouts
        self._copy, self._model = request.copy, None
        self._sampling = Sampling(rollouts.temperature, rollouts.top_p)
        self._limits = Limits(request.stop_ids, rollouts.max_new_tokens, rollouts.batch_size, len(request.tokenizer))

    def refresh(self) -> None:
        self._model = self._copy.refresh()

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Sampled]:
        assert self._model is not None, "refresh() comes before the first sample()"
        return generate_samples(self._model, prompts, seeds, self._sampling, self._limits)

    def close(self) -> None:
        self._model = None


def open_local(request: OpenSampler) -> LocalSampler:
    """Open a LocalSampler."""
    return LocalSampler(request)
