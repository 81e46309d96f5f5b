"""Overrides: `--set a.b=c` applied to what the file says, each key once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kd.config import yaml as config_yaml
from kd.config.problems import Report, dotted, undotted
from kd.config.renamed import check_overrides, rename_key, rename_keys
from kd.config.yaml import Path

MISSING = object()


def apply_overrides(data: dict, overrides: Iterable[str], report: Report) -> dict:
    """Return `data` with every `a.b=c` applied, c in YAML; what is wrong goes into `report`.

    Lists are reached by index and cannot grow. Two overrides of one key must agree.
    """
    overrides = list(overrides)
    check_overrides(overrides, report)
    earlier: list[tuple[Path, Any]] = []
    for override in overrides:
        data = rename_keys(_apply(data, override, earlier, report), report)
    return data


def _apply(data: dict, override: str, earlier: list[tuple[Path, Any]], report: Report) -> dict:
    key, equals, text = override.partition("=")
    path = undotted(key.strip())
    if not equals or "" in path or ":" in key:
        report.add_override(override, "expected key=value, for example training.steps=100")
        return data
    try:
        parsed = config_yaml.parse(text)
    except config_yaml.YamlError as error:
        report.add_override(override, f"the value is not valid YAML: {error}")
        return data
    path = rename_key(path)
    changed = place(data, path, parsed.data)
    if changed is MISSING:
        report.add_override(
            override,
            f"there is no place {dotted(path)[:200]}: a list has only the indices written in the file, and a value has "
            "no keys",
        )
        return data
    for known, value in earlier:
        if _disagree(known, value, path, parsed.data):
            other = "" if known == path else f", by {dotted(known)} and by {dotted(path)}"
            report.add_override(override, f"--set gives this key two values{other}: keep one of them")
            return data
    earlier.append((path, parsed.data))
    report.positions = {old: line for old, line in report.positions.items() if old[: len(path)] != path}
    report.overridden = {old for old in report.overridden if old[: len(path)] != path} | {path}
    for problem in parsed.problems:
        report.add((*path, *problem.path), problem.message)
    return changed


def _disagree(one: Path, value: Any, other: Path, other_value: Any) -> bool:
    """Tell whether the second of two overrides changes or drops what the first has set.

    It may add to the first, or name one key inside it.
    """
    return one[: len(other)] == other and get(other_value, one[len(other) :]) != value


def get(data: Any, path: Path) -> Any:
    """Return the value at `path`, or MISSING."""
    for part in path:
        if isinstance(data, dict) and str(part) in data:
            data = data[str(part)]
        elif isinstance(data, tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return MISSING
    return data


def place(data: Any, path: Path, value: Any) -> Any:
    """Copy `data` with `value` at `path`; return MISSING where there is no such place."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if data is None or isinstance(data, dict):
        inner = place((data or {}).get(str(head)), rest, value)
        return inner if inner is MISSING else {**(data or {}), str(head): inner}
    if isinstance(data, tuple) and isinstance(head, int) and head < len(data):
        inner = place(data[head], rest, value)
        return inner if inner is MISSING else (*data[:head], inner, *data[head + 1 :])
    return MISSING


def without(data: Any, path: Path) -> Any:
    """Copy `data` without the key at `path`; an item of a list stays."""
    if isinstance(data, tuple):
        return tuple(without(item, path[1:]) if i == path[0] else item for i, item in enumerate(data))
    if not isinstance(data, dict) or path[0] not in data:
        return data
    if len(path) == 1:
        return {key: value for key, value in data.items() if key != path[0]}
    return {**data, path[0]: without(data[path[0]], path[1:])}
