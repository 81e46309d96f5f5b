"""Reading of a DeepSpeed JSON: its settings, the line of each key, and what is no JSON object in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from kd.config import yaml as config_yaml
from kd.config.yaml import Path as KeyPath

_MOST_CHARACTERS = 250_000


class Settings(NamedTuple):
    """Content of a DeepSpeed JSON."""

    file: str
    data: dict[str, Any]
    lines: dict[KeyPath, int]  # of keys; empty where only json can read the file

    def locate(self, path: KeyPath) -> str:
        """Return "file:line" of a key, or of the nearest object around it that has a line."""
        known = (self.lines.get(path[:size]) for size in range(len(path), 0, -1))
        line = next(filter(None, known), None)
        return self.file if line is None else f"{self.file}:{line}"


def read_ds_config(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON as it is. Raises OSError and ValueError."""
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))


def read_settings(file: str) -> Settings | list[str]:
    """Read a DeepSpeed JSON with its lines, or return what is wrong with it: each fault with file, line and remedy."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            text = stream.read(_MOST_CHARACTERS + 1)
        if len(text) > _MOST_CHARACTERS:
            return [f"{file}: more than {_MOST_CHARACTERS:,} characters: give settings, as ds_configs/zero3.json"]
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return [f"{file}:{error.lineno}: not valid JSON: {error.msg}: mend it, or use ds_configs/zero3.json"]
    except RecursionError:
        return [f"{file}: nested too deeply to be settings: use ds_configs/zero3.json"]
    except (OSError, ValueError) as error:  # a UnicodeDecodeError, or a number of thousands of digits
        return [f"{file}: cannot be read ({error}): mend it, or use ds_configs/zero3.json"]
    if not isinstance(data, dict):
        return [f"{file}: expected an object with an object zero_optimization in it, as in ds_configs/zero3.json"]
    try:
        parsed = config_yaml.parse(text.replace("\t", " "))  # JSON is YAML, which has the lines
    except config_yaml.YamlError:
        return Settings(file, data, {})
    twice = [f"{file}:{at.line}: {at.path[-1]}: {at.message}" for at in parsed.problems if "twice" in at.message]
    return twice or Settings(file, data, parsed.lines)
