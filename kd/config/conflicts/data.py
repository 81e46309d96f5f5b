"""Contradictions in the stages, the demo corpus and the held-out splits."""

from __future__ import annotations

from collections.abc import Iterator

from kd.config.problems import Conflict
from kd.config.schema import RunConfig
from kd.config.sections.data import DEMO_HELD_OUT, DEMO_VALIDATION

_MOST_DEMO_RECORDS = 100_000


def data_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield contradictions of stages, demo corpus and held-out splits."""
    stages, names = config.data.stages, set()
    for i, stage in enumerate(stages):
        key, last = f"data.stages.{i}", i == len(stages) - 1
        if stage.name in names:
            yield Conflict((f"{key}.name",), f"another stage is called {stage.name!r} already: give it its own name")
        names.add(stage.name)
        if (stage.train is None) == (stage.mix is None):
            yield Conflict(
                (key, f"{key}.train", f"{key}.mix"), "give one of train (files) and mix (demo records), not both"
            )
        if stage.mix is not None and config.data.demo is None:
            yield Conflict(
                (f"{key}.mix", "data.demo"),
                "needs the demo corpus: add `demo: {num_records: ...}` under data, or use train",
            )
        if stage.mix is not None and sum(stage.mix.values()) <= 0:
            yield Conflict((f"{key}.mix",), "all weights are 0: give at least one kind a weight above 0")
        yield from _until(config, i, last)
        longest = config.student.max_position_embeddings
        if longest is not None and stage.max_length > longest:
            yield Conflict(
                (f"{key}.max_length", "student.max_position_embeddings"),
                f"{stage.max_length} tokens are more than student.max_position_embeddings ({longest}): lower the one "
                "or raise the other",
            )
    named = (("evaluation", config.data.evaluation), ("validation", config.data.validation))
    demo_splits = [(key, name) for key, splits in named for name, source in splits.items() if source == "demo"]
    if config.data.demo is None:
        for key, name in demo_splits:
            yield Conflict(
                (f"data.{key}.{name}", "data.demo"),
                "needs the demo corpus: add `demo: {num_records: ...}` under data, or give a file",
            )
    elif not demo_splits and all(stage.mix is None for stage in stages):
        yield Conflict(
            ("data.demo", "data.stages", "data.evaluation"),
            "nothing uses the demo corpus: remove it, or give a stage a mix",
        )
    yield from _demo_splits(config, demo_splits)


def _demo_splits(config: RunConfig, names: list[tuple[str, str]]) -> Iterator[Conflict]:
    for key, name in names:
        kind, there = ("held-out", DEMO_HELD_OUT) if key == "evaluation" else ("validation", DEMO_VALIDATION)
        if name not in there:
            yield Conflict(
                (f"data.{key}.{name}",),
                f"the demo corpus has no {kind} split of this name: use {' or '.join(there)}, or give a file",
            )
    if names and config.evaluation.num_records > _MOST_DEMO_RECORDS:
        yield Conflict(
            ("evaluation.num_records", "data.evaluation"),
            f"{config.evaluation.num_records:,} demo records would be made for each split: lower it to "
            f"{_MOST_DEMO_RECORDS:,} or less",
        )


def _until(config: RunConfig, index: int, last: bool) -> Iterator[Conflict]:
    key, until = f"data.stages.{index}.until", config.data.stages[index].until
    if until is None:
        if not last:
            yield Conflict(
                (key,), "required in every stage but the last: {steps: ...}, or {loss_below: ..., max_steps: ...}"
            )
        return
    if last:
        yield Conflict((key,), "the last stage lasts to training.steps: remove `until`, or add a stage")
    if (until.steps is None) == (until.loss_below is None):
        yield Conflict((key, f"{key}.steps", f"{key}.loss_below"), "give one of steps and loss_below, not both")
    elif (until.loss_below is None) != (until.max_steps is None):
        yield Conflict(
            (f"{key}.max_steps", f"{key}.loss_below", f"{key}.steps"),
            "goes with loss_below, and loss_below with it: give both, or steps alone",
        )
    before = sum(
        (u.steps or u.max_steps or 0) for u in (s.until for s in config.data.stages[: index + 1]) if u is not None
    )
    if not last and before >= config.training.steps:
        yield Conflict(
            (key, f"{key}.steps", f"{key}.max_steps", "training.steps"),
            f"stages up to here take {before} steps and training.steps is {config.training.steps}: later stages would "
            "never run",
        )
