"""Keys that have a new name: a file or an override with the old one keeps working for one release, and is told so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from kd.config.problems import Report, dotted, undotted
from kd.config.yaml import Path

RENAMED = {"teacher.signal": "teacher.targets", "loss.weights.kl": "loss.weights.kd"}
"""Old dotted key -> new one, of the same section."""

_TWICE = "the old name of {}, which is given too: remove one of the two"
_PATHS = {undotted(old): undotted(new) for old, new in RENAMED.items()}


def check_overrides(overrides: Iterable[str], report: Report) -> None:
    """Report each key that overrides set by both of its names."""
    given = {override.partition("=")[0].strip() for override in overrides}
    for old in RENAMED.keys() & given:
        if RENAMED[old] in given:
            report.add_override(old, _TWICE.format(RENAMED[old]))


def rename_key(path: Path) -> Path:
    """Return the path of an override's key under its new name, and tell the user where that is another."""
    for old, new in _PATHS.items():
        if path[: len(old)] == old:
            _say(f"--set {dotted(old)}", old, new)
            return (*new, *path[len(old) :])
    return path


def rename_keys(data: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return `data` with old keys under their new names, which `report` then finds at the old ones' lines.

    A key that is given by both names is a problem, reported at the old one; the new one's value is kept.
    """
    for old, new in _PATHS.items():
        section: Any = data
        for part in old[:-1]:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or old[-1] not in section:
            continue
        if new[-1] in section:
            report.add(old, _TWICE.format(dotted(new)))
        else:
            _say(report.locate(old), old, new)
            report.move(old, new)
        data = _put(data, old[:-1], _rename(section, str(old[-1]), str(new[-1])))
    return data


def _rename(section: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Copy `section` with the value of `old` at `new`, in its place, unless `new` is there."""
    if new in section:
        return {key: value for key, value in section.items() if key != old}
    return {new if key == old else key: value for key, value in section.items()}


def _put(data: Any, path: Path, section: dict[str, Any]) -> Any:
    return {**data, path[0]: _put(data[path[0]], path[1:], section)} if path else section


def _say(where: str, old: Path, new: Path) -> None:
    """Print one line on stderr, on rank 0 alone: every rank reads the configuration."""
    if os.environ.get("RANK", "0") == "0":
        print(
            f"{where}: {dotted(old)} is now {dotted(new)}; this release reads both, the next one will not",
            file=sys.stderr,
        )
