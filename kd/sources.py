"""Where the records of each stage of a run come from: its files, or the demo corpus."""

from __future__ import annotations

from typing import NamedTuple

from kd.config_schema import RunConfig, Stage
from kd.data.batches import DemoSource, FileSource, Source


class Sources(NamedTuple):
    """The records of a run."""

    stages: tuple[Source, ...]


def run_sources(config: RunConfig) -> Sources:
    """Checks every line of every stage's files once. For rank 0 of a job: kd.student.on_rank_0 hands the result to the others.

    Raises:
        DataError: a file is missing, or a line of it is no record.
    """
    return Sources(tuple(stage_source(config, index) for index in range(len(config.data.stages))))


def stage_source(config: RunConfig, index: int) -> Source:
    """The records of one stage alone; each stage draws its own demo corpus. Raises DataError as `run_sources`."""
    stage = config.data.stages[index]
    if stage.train is not None:
        return FileSource(stage.train)
    corpus = config.data.demo
    return DemoSource(corpus.num_records, corpus.seed * 1000 + index, stage.mix)


def described(stage: Stage) -> str:
    """What a stage trains on, in words."""
    return ", ".join(stage.train) if stage.train else f"demo corpus, {dict(stage.mix)}"
