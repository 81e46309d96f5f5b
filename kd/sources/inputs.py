"""Inputs of a run: the files and folders that its configuration names, and splits that share them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kd.config.schema import Data, Student, Teacher, Tokenizer
from kd.config.sections.hub_address import SCHEME, parse_address
from kd.paths import identify
from kd.records.checks import DataError
from kd.records.files import expand
from kd.records.hub import copy_of, local_file


def list_data_files(data: Data) -> Iterator[tuple[str, Path]]:
    """Yield key and path of every file of records.

    Raises:
        DataError: a file of a stage is missing.
    """
    for index, stage in enumerate(data.stages):
        for at, source in enumerate(stage.train or ()):
            yield from ((f"data.stages.{index}.train.{at}", file) for file in expand([source.files]))
    for key, splits in (("evaluation", data.evaluation), ("validation", data.validation)):
        yield from ((f"data.{key}.{name}", local_file(file)) for name, file in splits.items() if file != "demo")


def name_absent(data: Data) -> str | None:
    """Return the address of a stage's data set that has no copy on this machine yet, or None."""
    addresses = (source.files for stage in data.stages for source in stage.train or ())
    return next((one for one in addresses if one.startswith(SCHEME) and not copy_of(parse_address(one)).exists()), None)


def list_models(tokenizer: Tokenizer, student: Student, teacher: Teacher | None) -> list[tuple[str, Path]]:
    """List key and path of the models and the tokenizer that are folders here; a hub id is none."""
    named = {"tokenizer.path": tokenizer.path, "student.path": student.path, "teacher.path": teacher and teacher.path}
    return [(key, Path(path)) for key, path in named.items() if path is not None and Path(path).exists()]


def find_shared(data: Data) -> list[str]:
    """Say of each held-out split whose file is trained on too, that its figures tell nothing of unseen records.

    Raises:
        DataError: two splits are one file, or a file of a stage is missing.
    """
    files = list(list_data_files(data))
    trained = {identify(path): path for key, path in files if key.startswith("data.stages.")}
    held_out: dict[tuple, str] = {}
    notes = []
    for key, path in files:
        if key.startswith("data.stages."):
            continue
        other = held_out.setdefault(identify(path), key)
        if other != key:
            raise DataError(
                f"{key}: {path} is the file of {other} too: a split is measured once; remove one of the two"
            )
        if identify(path) in trained:
            notes.append(f"{key} is trained on too ({path}): its figures say nothing of records that were not seen")
    return notes
