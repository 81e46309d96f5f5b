"""Sources of a run: the records of each stage, from its files or the demo corpus."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from kd.config.derived import quarantine_file, run_folder
from kd.config.schema import Data, Run, Stage, TrainFiles
from kd.records.checks import DataError
from kd.records.files import DataFiles
from kd.records.quarantine import Quarantine
from kd.sources.demo.source import DemoSource
from kd.sources.file_index import RecordIndex, make_spool
from kd.sources.source import Source


class Sources(NamedTuple):
    """The records of a run. Stages that name the same files share one index."""

    stages: tuple[Source, ...]
    num_refused: int  # lines, of all files
    quarantine: Path | None  # the file they are in, where there are any
    notes: Counter[str] = Counter()  # records of all files by name of kd.records.conversation.NOTES, each file once


def run_sources(data: Data, run: Run) -> Sources:
    """Check every line of every stage's files once. Refused lines are in data.quarantine, and records that are no line
    of a plain file in .records-*.jsonl of the run's folder, until the process that called this ends.

    For rank 0 of a job (kd.distributed.collectives.on_rank_0 hands the result to the others, which read the same
    files): ranks that each did this would write one quarantine together.

    Raises:
        DataError: a file is missing, has no record, or more lines are refused than data.max_bad_fraction allows.
    """
    return sources_beside(data, run_folder(run), quarantine_file(data, run))


def sources_beside(data: Data, folder: Path, kept: Path | None) -> Sources:
    """Check as `run_sources` does, for another program than the run's: records in files of `folder` that no one else
    has, refused lines in `kept` or nowhere.
    """
    quarantine = Quarantine(kept, data.max_bad_fraction)
    found: dict[tuple[TrainFiles, ...], Source] = {}
    notes: dict[str, Counter[str]] = {}
    for stage in data.stages:
        if stage.train is not None and stage.train not in found:
            index = _index(data, stage.train, quarantine, make_spool(folder))
            found[stage.train] = index
            notes |= index.notes
    quarantine.check()
    stages = (
        found[stage.train] if stage.train is not None else stage_source(data, index)
        for index, stage in enumerate(data.stages)
    )
    return Sources(tuple(stages), quarantine.num_bad, kept, sum(notes.values(), Counter()))


def sources_to_look_at(data: Data) -> list[Source]:
    """Open the records of every stage, each as `stage_source`."""
    return [stage_source(data, index) for index in range(len(data.stages))]


def stage_source(data: Data, index: int) -> Source:
    """Open the records of one stage alone. Refused lines are kept nowhere.

    Each stage draws its own demo corpus, but one with rollouts has that of the first stage of the same mix: it asks
    records that were trained.

    Raises:
        DataError: as `run_sources`, of this stage's files.
    """
    stage = data.stages[index]
    if stage.train is None:
        if data.demo is None or stage.mix is None:
            raise DataError(f"data.stages.{index}: neither train nor a mix of data.demo: give one of the two")
        if stage.rollouts is not None:
            index = next(at for at, other in enumerate(data.stages) if other.mix == stage.mix)
        return DemoSource(data.demo.num_records, data.demo.seed * 1000 + index, stage.mix)
    quarantine = Quarantine(None, data.max_bad_fraction)
    source = _index(data, stage.train, quarantine)
    quarantine.check()
    return source


def _index(data: Data, train: tuple[TrainFiles, ...], quarantine: Quarantine, spool: Path | None = None) -> RecordIndex:
    files = [DataFiles(source.files, source.weight, source.format, data.rewrite_calls) for source in train]
    return RecordIndex(files, quarantine, spool=spool)


def describe(stage: Stage) -> str:
    """Say in words what a stage trains on."""
    return ", ".join(source.files for source in stage.train) if stage.train else f"demo corpus, {dict(stage.mix or {})}"
