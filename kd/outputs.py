"""Outputs: every place that a program will write, checked before it begins.

The program replaces what it made and can recognise, and nothing else; what it reads it never writes.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kd.atomic_files import clear_parts, describe_failure, is_full
from kd.errors import SpanwiseError
from kd.paths import identify

_MOST_BYTES = 1 << 26  # of a first line, or a JSON file, that is looked at


class OutputError(SpanwiseError, ValueError):
    """Place that cannot be written, or that holds what is not the program's; nothing was begun."""


class Output(NamedTuple):
    """File that will be written.

    Args:
        name: option or key that gives the place.
        what: what the program writes there, in words.
        is_ours: tells whether a file that is there, and not empty, was written by the program.
    """

    name: str
    path: Path
    what: str
    is_ours: Callable[[Path], bool] = lambda path: False


def check_outputs(outputs: Iterable[Output], inputs: Iterable[tuple[str, Path]] = ()) -> None:
    """Check the places of `outputs`, and make their folders.

    Args:
        inputs: option or key, and file or folder, of all that will be read.

    Raises:
        OutputError: one is an input, lies in a folder that cannot be written, is given twice, or holds a folder, a
            pipe or a file that the program did not write.
    """
    outputs = list(outputs)
    try:
        _check_places(outputs, inputs)
    except OSError as error:
        raise OutputError(describe_failure(error)) from error


def _check_places(outputs: list[Output], inputs: Iterable[tuple[str, Path]]) -> None:
    taken = {identify(path): f"is what {name} reads" for name, path in inputs}
    for output in outputs:
        place = identify(output.path)
        if place in taken:
            raise OutputError(f"{output.name}: {output.path} {taken[place]}: name another file")
        taken[place] = f"is what {output.name} writes"
        if output.path.is_dir():
            raise OutputError(
                f"{output.name}: {output.path} is a folder: move it away, or name a file, in it or elsewhere"
            )
        if is_pipe(output.path):
            raise OutputError(
                f"{output.name}: {output.path} is no file but a pipe or a socket, which would be waited for: move it "
                "away, or name another place"
            )
        if output.path.is_file() and output.path.stat().st_size and not output.is_ours(output.path):
            raise OutputError(
                f"{output.name}: {output.path} is there already and is not known as {output.what}: move it away, or "
                "name another place"
            )
    for output in outputs:
        if not output.path.exists() or output.path.is_file():
            check_writable(output.name, output.path.parent)
            clear_parts(output.path)


def is_pipe(path: str | os.PathLike) -> bool:
    """Tell whether a path is a pipe or a socket of the disk; /dev/stdout and `>(command)` are open already."""
    try:
        mode = os.lstat(os.path.realpath(path)).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def check_writable(name: str, folder: Path) -> None:
    """Make a folder where it is not there, and write a byte into it. `name` is the option or key that gives it.

    Raises:
        OutputError: it is a file, cannot be made, takes no file, or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\n")
    except OSError as error:
        nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
        error.filename = None  # that of the probe says nothing
        if is_full(error):
            raise OutputError(f"{name}: {describe_failure(error, folder)}, or name another place") from None
        reason = error.strerror if nearest.is_dir() else f"{nearest} is a file"
        raise OutputError(f"{name}: {folder} is no folder that can be written: {reason}; name another place") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object that a file's first line is, or else the whole file; {} where neither is one."""
    if is_pipe(path):
        return {}
    try:
        with path.open("rb") as file:
            line = file.readline(_MOST_BYTES)
            try:
                found = json.loads(line)
            except ValueError:
                found = json.loads(line + file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
