"""Places of the keys that a message names: errors found after a configuration was read tell its lines too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from kd.config import yaml as config_yaml
from kd.config.overrides import get
from kd.config.problems import Report, dotted, is_key, undotted
from kd.config.sections.generation import GenerationConfig

_KEY = re.compile(r"(?<![\w./-])[a-z]+(?:\.[\w-]+)+")
_MOST_PLACES = 6


def add_places(message: str, config: str | os.PathLike, overrides: Iterable[str] = ()) -> str:
    """Return `message` with the place of each key that it names and the user has written.

    Args:
        config: path of the run's YAML.
        overrides: the values of --set; a key that one sets is there, and not in the file.

    Returns:
        "file:line: " before a message that begins with its key, or with what the key gives. A line
        "  file:line: key" after it for each other one.
    """
    file = os.fspath(config)
    if message.startswith(file):
        return message
    report = Report(file)
    if not os.path.isfile(file):
        return message  # a pipe was read when the run began
    try:
        with open(file, encoding="utf-8-sig") as stream:
            parsed = config_yaml.parse(stream.read())
    except (OSError, ValueError):
        return message  # it was read when the run began, and is gone
    report.positions = parsed.lines
    set_to = {undotted(key.strip()): value.strip() for key, _, value in (one.partition("=") for one in overrides)}
    report.overridden = set(set_to)
    values = {path: text for path in parsed.lines if isinstance(text := get(parsed.data, path), str)} | set_to
    named = next((path for path, text in values.items() if text and message.startswith(f"{text}: ")), None)
    if named is not None:  # the message begins with what a key gives: a folder, a hub id
        return f"{report.locate(named)}: {dotted(named)}: {message}"
    places = {key: place for key in _KEY.findall(message) if (place := _find(report, key))}
    first = next((key for key in places if message.startswith(f"{key}:")), None)
    head = f"{places.pop(first)}: {message}" if first is not None else message
    return "\n".join([head, *(f"  {place}: {key}" for key, place in list(places.items())[:_MOST_PLACES])])


def _find(report: Report, key: str) -> str | None:
    path = undotted(key)
    if not is_key(path) and not is_key(path, GenerationConfig):
        return None
    written = path in report.positions or any(path[: len(one)] == one for one in report.overridden)
    return report.locate(path) if written else None
