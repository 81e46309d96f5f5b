"""Files of records: several, globs, weighted; each line becomes a record or its refusal.

    for item in read_all(expand(["train/*.jsonl.gz", "extra.parquet"])):      every line, as a record or its refusal
    RecordIndex([DataFiles("train/*.jsonl.gz"), DataFiles("extra.parquet", weight=0.5)])        records by position

A BFCL question file needs the truth of its `possible_answer` file. It is looked for among the files given, then as
possible_answer/<same name> beside the question file; its lines are kept in memory, for the two need not be in one
order.
"""

from __future__ import annotations

import glob
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from kd.atomic_files import replacing
from kd.config.sections.data import RewriteCalls
from kd.config.sections.hub_address import SCHEME
from kd.records.calls import judge_calls
from kd.records.checks import DataError, decode_json
from kd.records.columns import drop_null_columns
from kd.records.hub import local_file
from kd.records.lines import HEADER, Line, check_file, is_header, read_lines
from kd.records.quarantine import Item
from kd.records.record import Record, read_decoded

_TRUTH = ("ground_truth", "possible_answer", "possible_answers")


class DataFiles(NamedTuple):
    """A file or a glob of records.

    Args:
        weight: how often each record is read, 2 twice and 0.5 every other one.
        format: a name in kd.config.registries.FORMATS; by default found from the fields.
        rewrite_calls: make `tool_calls` of calls that are written as text; "never": not even of Hermes' own.
    """

    pattern: str
    weight: float = 1.0
    format: str | None = None
    rewrite_calls: RewriteCalls = False


def expand(patterns: Iterable[str | Path]) -> list[Path]:
    """List the files of paths and globs, each once, a glob's in order of name.

    Raises:
        DataError: a path or a glob that is no file.
    """
    files: dict[Path, None] = {}
    for pattern in map(str, patterns):
        is_glob = glob.has_magic(pattern) and not pattern.startswith(SCHEME) and not Path(pattern).is_file()
        found = sorted(map(Path, glob.glob(pattern, recursive=True))) if is_glob else [local_file(pattern)]
        regular = [path for path in found if path.is_file()]
        if not regular:
            check_file(found[0] if found else Path(pattern))
        files |= dict.fromkeys(regular)
    return list(files)


def num_copies(weight: float, item: Item) -> int:
    """Count how often a record of this weight is read: its whole part, and once more for a fraction of the records.

    They are drawn by their bytes and line: the same ones for every seed of a run and wherever the file is, so that one
    cache serves them all.
    """
    if not 0 <= weight < 1e6:
        raise DataError(f"{item.file}: weight {weight}: from 0 to a million is needed")
    drawn = zlib.crc32(item.raw, zlib.crc32(str(item.line).encode())) / 2**32  # not hash(): that is salted
    return int(weight) + (drawn < weight % 1)


def read_all(
    files: Iterable[str | Path], format: str | None = None, *, rewrite_calls: RewriteCalls = False
) -> Iterator[Item]:
    """Yield every line of these files; files that hold BFCL's truth give none of their own, and serve the others."""
    paths = list(map(Path, files))
    holding_truth = [file for file in paths if holds_truth(file)] if format in (None, "bfcl") else []
    for file in paths:
        if file not in holding_truth:
            yield from read_each(file, format, holding_truth, rewrite_calls=rewrite_calls)


def read_each(
    path: str | Path, format: str | None = None, truths: Iterable[Path] = (), *, rewrite_calls: RewriteCalls = False
) -> Iterator[Item]:
    """Yield every line of one file as an Item; a first line with `__header__` is skipped.

    Verify, training and evaluation read here alone: every check of a record that needs no tokenizer is made here.

    Raises:
        DataError: the file is missing, or a package it needs is.
    """
    path, truth, first = local_file(path), None, True
    for line in read_lines(path):
        where, data, name, offset = f"{path}:{line.number}", None, None, line.offset
        try:
            data = drop_null_columns(_decode(line, where))
            name = data.get("id") if isinstance(data, dict) else None
            if first and is_header(data):
                continue
            if (
                isinstance(data, dict)
                and "question" in data
                and not any(key in data for key in _TRUTH)
                and format in (None, "bfcl")
            ):
                truth = _truths(path, truths) if truth is None else truth
                data, offset = {**data, **truth.get(name, {})} if isinstance(name, (str, int)) else data, None
            (record, notes), error = read_decoded(data, where, format, rewrite_calls=rewrite_calls), None
            if (refusal := judge_calls(record.messages, record.tools, where).refusal) is not None:
                raise refusal
        except DataError as caught:
            record, notes, error = None, (), caught.with_traceback(None)
        finally:
            first = False
        yield Item(
            str(path),
            line.number,
            record,
            error,
            line.raw,
            str(name)[:200] if isinstance(name, (str, int)) else None,
            offset,
            notes,
        )


def _decode(line: Line, where: str) -> Any:
    if line.fault:
        raise DataError(f"{where}: {line.fault}")
    return decode_json(line.raw, where)


def holds_truth(path: Path) -> bool:
    """Tell whether a file's first line is BFCL's truth and no question."""
    for line in read_lines(path):
        try:
            data = _decode(line, str(path))
        except DataError:
            return False
        return (
            isinstance(data, dict)
            and "question" not in data
            and "messages" not in data
            and any(key in data for key in _TRUTH)
        )
    return False


def _truths(path: Path, given: Iterable[Path]) -> dict[str | int, dict]:
    """Read id -> {"ground_truth": ...}, of the given file with this one's name if there is one, else of all."""
    given = list(given)
    files = [file for file in given if file.name == path.name] or given
    beside = path.parent / "possible_answer" / path.name
    files = files or ([beside] if beside.is_file() else [])
    found: dict[str | int, dict] = {}
    for file in files:
        for line in read_lines(file):
            data = _decode(line, f"{file}:{line.number}")
            if isinstance(data, dict) and isinstance(data.get("id"), (str, int)):
                found[data["id"]] = {key: data[key] for key in _TRUTH if key in data}
    return found


def read_records(
    path: str | Path, format: str | None = None, *, rewrite_calls: RewriteCalls = False
) -> Iterator[Record]:
    """Stream the records of one file of any kind, one in memory at a time.

    Raises:
        DataError: the file is missing or empty, or something in it is no record; the message names file and line.
    """
    seen = False
    for item in read_each(path, format, rewrite_calls=rewrite_calls):
        seen = True
        if item.record is None:
            raise item.error or DataError(f"{item.file}:{item.line}: no record")
        yield item.record
    if not seen:
        raise DataError(f"{path}: holds no record: give another file")


def write_records(path: str | Path, records: Iterable[Record], header: dict[str, Any] | None = None) -> int:
    """Write records as JSONL, whole or not at all, and return their number.

    header: of a first line, by which the file is known again; no reader takes it for a record.
    """
    count = 0
    with replacing(Path(path)) as out:
        if header is not None:
            out.write((json.dumps({HEADER: header}, ensure_ascii=False) + "\n").encode())
        for record in records:
            count += 1
            out.write((json.dumps(asdict(record), ensure_ascii=False) + "\n").encode())
    return count
