"""Where the records of each stage of a run come from: its files, or the demo corpus."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kd.config.derived import quarantine_file, run_folder
from kd.config.schema import RunConfig, Stage
from kd.records.files import DataFiles
from kd.records.quarantine import Quarantine
from kd.sources.demo.source import DemoSource
from kd.sources.file_index import RecordIndex
from kd.sources.source import Source


class Sources(NamedTuple):
    """The records of a run. Stages that name the same files share one index."""

    stages: tuple[Source, ...]
    num_refused: int  # lines, of all files
    quarantine: Path | None  # the file they are in, where there are any


def run_sources(config: RunConfig) -> Sources:
    """Checks every line of every stage's files once. Refused lines are in data.quarantine, and records that are no line
    of a plain file in records-*.jsonl of the run's folder, until the process that called this ends.

    For rank 0 of a job (kd.distributed.collectives.on_rank_0 hands the result to the others, which read the same
    files): ranks that each did this would write one quarantine together.

    Raises:
        DataError: a file is missing, has no record, or more lines are refused than data.max_bad_fraction allows.
    """
    folder = run_folder(config)
    return _sources(config, folder, quarantine_file(config), lambda index: folder / f"records-{index}.jsonl")


def sources_beside(config: RunConfig, folder: Path, kept: Path | None) -> Sources:
    """As `run_sources` for another program than the run's, which may be at work: records in files of `folder` that no
    one else has, refused lines in `kept` or nowhere."""

    def own(index: int) -> Path:
        handle, path = tempfile.mkstemp(prefix=".records-", suffix=".jsonl", dir=folder)
        os.close(handle)
        return Path(path)

    return _sources(config, folder, kept, own)


def _sources(config: RunConfig, folder: Path, kept: Path | None, spool: Callable[[int], Path]) -> Sources:
    quarantine = Quarantine(kept, config.data.max_bad_fraction)
    found: dict[tuple, Source] = {}
    for index, stage in enumerate(config.data.stages):
        if stage.train is not None and stage.train not in found:
            folder.mkdir(parents=True, exist_ok=True)
            found[stage.train] = _index(config, stage, quarantine, spool(index))
    quarantine.check()
    stages = (
        found[stage.train] if stage.train is not None else stage_source(config, index)
        for index, stage in enumerate(config.data.stages)
    )
    return Sources(tuple(stages), quarantine.num_bad, kept)


def sources_to_look_at(config: RunConfig) -> list[Source]:
    """Of every stage, as `stage_source`."""
    return [stage_source(config, index) for index in range(len(config.data.stages))]


def stage_source(config: RunConfig, index: int) -> Source:
    """The records of one stage alone; each stage draws its own demo corpus. Refused lines are kept nowhere.

    Raises:
        DataError: as `run_sources`, of this stage's files.
    """
    stage = config.data.stages[index]
    if stage.train is None:
        corpus = config.data.demo
        return DemoSource(corpus.num_records, corpus.seed * 1000 + index, stage.mix)
    quarantine = Quarantine(None, config.data.max_bad_fraction)
    source = _index(config, stage, quarantine)
    quarantine.check()
    return source


def _index(config: RunConfig, stage: Stage, quarantine: Quarantine, spool: Path | None = None) -> RecordIndex:
    files = [DataFiles(source.files, source.weight, source.format) for source in stage.train]
    return RecordIndex(files, quarantine, spool=spool)


def described(stage: Stage) -> str:
    """What a stage trains on, in words."""
    return ", ".join(source.files for source in stage.train) if stage.train else f"demo corpus, {dict(stage.mix)}"
