"""Contradictions in the configuration of a data set that is generated."""

from __future__ import annotations

from collections.abc import Iterator

from kd.config.problems import Conflict
from kd.config.sections.generation import GenerationConfig


def find_generation_conflicts(config: GenerationConfig) -> Iterator[Conflict]:
    """Yield the contradictions between keys."""
    prompts, splits = config.prompts, config.splits
    if prompts.files is None and prompts.tools is None:
        yield Conflict(("prompts.files", "prompts.tools"), "prompts come from files or from tools: give one of them")
    if prompts.files is None and prompts.tools is not None and prompts.num is None:
        yield Conflict(("prompts.num", "prompts.tools"), "composed prompts have no end: say how many are wanted")
    if prompts.files is None and not any(weight for _, weight in prompts.mix):
        yield Conflict(("prompts.mix",), "every weight is 0: give a kind of prompt some")
    if prompts.files is not None and splits.templates:
        yield Conflict(("splits.templates", "prompts.files"), "prompts of files have no templates: remove one")
    spending = config.spending
    if spending.limit is not None and not spending.prompt_price and not spending.completion_price:
        yield Conflict(("spending.limit", "spending.prompt_price"), "without prices nothing is ever spent: give them")
    if config.answers.rewards and not any(config.answers.rewards.values()):
        yield Conflict(("answers.rewards",), "every weight is 0: give a reward some, or leave them out")
