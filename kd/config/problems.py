"""Configuration errors: file line, key, problem, fix, nearest key."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from kd.config.schema import RunConfig
from kd.config.yaml import Path, glued_key
from kd.errors import SpanwiseError

MOST_LISTED = 50  # problems of one configuration that are listed; more of them are counted
_LAST = 10**9  # overrides are listed after the lines of the file
_NOT_IN_KEYS = re.compile(r"[=:{}\[\]\s]")


class ConfigError(SpanwiseError, ValueError):
    """A configuration that cannot be run; the message has a line for each problem."""


class Report:
    """Problems of one configuration, with the place of each key: a line of the file, or an override.

    model: that the whole configuration is of.
    """

    def __init__(self, file: str, model: type[BaseModel] = RunConfig):
        self.file, self.model = file, model
        self.positions: dict[Path, int] = {}  # lines of keys in the file
        self.overridden: set[Path] = set()  # keys set on the command line
        self._bad: set[Path] = set()
        self._problems: list[tuple[int, str]] = []
        self._num_omitted = 0

    def add(self, path: Path, message: str, line: int | None = None) -> None:
        """Add a fault of one key."""
        self._bad.add(path)
        order, where = self._where(path) if line is None else (line, f"{self.file}:{line}")
        self._problems.append((order, f"{where}: {dotted(path)}: {message}"))

    def add_override(self, override: str, message: str) -> None:
        """Add a `--set` that is not even a key and a value, or has no place."""
        self._problems.append((_LAST, f"--set {key_of(override)}: {message}"))

    def add_conflict(self, keys: tuple[str, ...], message: str) -> None:
        """Add a contradiction between keys; it is kept back when one of them is faulty itself, for it may be a
        consequence.
        """
        paths = [undotted(key) for key in keys]
        if not any(_related(path, bad) for path in paths for bad in self._bad):
            order, where = self._where(paths[0])
            self._problems.append((order, f"{where}: {keys[0]}: {message}"))

    def omit(self, count: int) -> None:
        """Count problems that are not listed."""
        self._num_omitted += max(count, 0)

    def locate(self, path: Path) -> str:
        """Return where a key was written, as "file:line" or "--set key"."""
        return self._where(path)[1]

    def move(self, old: Path, new: Path) -> None:
        """Look for a key, and all inside it, where its other name was written."""

        def moved(path: Path) -> Path:
            return (*new, *path[len(old) :]) if path[: len(old)] == old else path

        self.positions = {moved(path): line for path, line in self.positions.items()}
        self.overridden = set(map(moved, self.overridden))

    def is_bad(self, path: Path) -> bool:
        """Tell whether the key has a fault of its own."""
        return path in self._bad

    def raise_if_any(self) -> None:
        """Raise ConfigError with every problem, in the order of the file; do nothing where there is none."""
        if self._problems:
            ordered = sorted(self._problems, key=lambda problem: problem[0])
            lines = list(dict.fromkeys(text for _, text in ordered))
            total = len(lines) + self._num_omitted
            if total > len(lines[:MOST_LISTED]):
                lines = [*lines[:MOST_LISTED], f"and {total - len(lines[:MOST_LISTED]):,} more"]
            count = "1 problem" if total == 1 else f"{total:,} problems"
            raise ConfigError(f"{self.file}: {count}\n" + "\n".join(f"  {line}" for line in lines))

    def _where(self, path: Path) -> tuple[int, str]:
        """Find the key, or the nearest section around it that was written down.

        Of an override only its key is shown: what it was set to may hold a secret anywhere, under a name that does not
        exist, or beside the key that is faulty.
        """
        for size in range(len(path), -1, -1):
            if path[:size] in self.overridden:
                return _LAST, f"--set {dotted(path[:size])}"
            if size and path[:size] not in self.positions:  # a section that an override alone has begun
                begun = [key for key in self.overridden if key[:size] == path[:size]]
                if begun:
                    return _LAST, f"--set {dotted(min(begun, key=str))}"
            if path[:size] in self.positions:
                return self.positions[path[:size]], f"{self.file}:{self.positions[path[:size]]}"
        return 1, f"{self.file}:1"


def dotted(path: Path) -> str:
    """Write a path as a dotted key: ("data", "stages", 0) as data.stages.0."""
    return ".".join(str(part) for part in path)


def undotted(key: str) -> Path:
    """Read a dotted key as a path; a number is an index."""
    return tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in key.split("."))


def key_of(override: str) -> str:
    """Return the part of a `--set` that may be printed: all before the first sign that no key has. The rest may be a
    secret.
    """
    return _NOT_IN_KEYS.split(override.strip(), maxsplit=1)[0][:200]


def explain(error: dict[str, Any], model: type[BaseModel] = RunConfig) -> str:
    """Say one error of pydantic (an item of ValidationError.errors()) in words that a user can act on.

    model: of the whole configuration.
    """
    kind, path, value, context = error["type"], error["loc"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        if (glued := glued_key(str(path[-1]))) is not None:
            return f"unknown key: write a space after the colon of `{glued}:`"
        return f"unknown key; {_nearest(path, model)}"
    about = _description(path, model)
    if _hidden(path, model):
        value = _NotShown()
    if kind == "missing":
        example = _example(path, model)
        return "required" + (f", for example {path[-1]}: {example}" if example else "") + about
    if kind in _GLUED_MEANT and isinstance(value, str) and (glued := glued_key(value)) is not None:
        return f"expected {_EXPECTED[kind]}, got {_show(value)}: write a space after the colon of `{glued}:`"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {_show(value)}" + (
            ": put it in quotes" if kind == "string_type" and _quotable(value) else about
        )
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return f"must be {word} {_number(context[name])}, got {_show(value)}{about}"
    if kind == "unusable_text":
        return f"{error['msg']}{about}"
    if kind == "string_unicode":
        return f"holds half of a surrogate pair, which is no character: remove it{about}"
    if kind == "literal_error":
        choices = context["expected"]
        close = difflib.get_close_matches(
            str(value), [choice.strip("' ") for choice in choices.replace(" or ", ",").split(",")], n=1
        )
        return f"must be one of {choices}, got {_show(value)}" + (f"; did you mean {close[0]!r}?" if close else about)
    if kind in ("too_short", "string_too_short"):
        return (
            f"must not be empty{about}"
            if context.get("min_length") == 1
            else f"expected {context['min_length']} values, got {context.get('actual_length', 0)}{about}"
        )
    if kind == "too_long":
        return f"expected {context['max_length']} values, got {context['actual_length']}{about}"
    if kind == "string_pattern_mismatch":
        return f"{_show(value)} is not allowed{about}"
    return f"{error['msg']}, got {_show(value)}{about}"


def all_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that exists; `*` stands for an index of a list or a name of the user's choice."""
    for name, field in model.model_fields.items():
        key, inner = f"{prefix}{name}", _plain(field.annotation)
        while typing.get_origin(inner) in (tuple, dict) and _section(_item(inner)) is not None:
            key, inner = f"{key}.*", _plain(_item(inner))
        section = _section(inner)
        yield from [key] if section is None else all_keys(section, f"{key}.")


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a section (key: value lines)",
}
_GLUED_MEANT = ("model_type", "dict_type")
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _nearest(path: Path, model: type[BaseModel]) -> str:
    """Guess the key meant: one of the same section, else one with such a name elsewhere, else list what exists here."""
    parent, key = path[:-1], str(path[-1])
    section = _section(_annotation(parent, model))
    fields = list(section.model_fields) if section else []
    if close := difflib.get_close_matches(key, fields, n=1):
        return f"did you mean {dotted((*parent, close[0]))}?"
    ends = {full.rsplit(".", 1)[-1]: full for full in reversed(list(all_keys(model)))}
    if close := difflib.get_close_matches(key, ends, n=1, cutoff=0.75):
        return f"did you mean {ends[close[0]]}?"
    return f"the keys here are {', '.join(fields)}"


def _description(path: Path, model: type[BaseModel]) -> str:
    field = field_at(path, model)
    return f". {' '.join(field.description.split())}" if field is not None and field.description else ""


def _example(path: Path, model: type[BaseModel]) -> str:
    field = field_at(path, model)
    example = field.examples[0] if field is not None and field.examples else None
    return "" if example is None or isinstance(example, (dict, tuple)) else str(example)


def field_at(path: Path, model: type[BaseModel] = RunConfig):
    """Return the declaration of the key at `path`, or of the list or mapping that the value stands in."""
    while path and _section(_annotation(path[:-1], model)) is None:
        path = path[:-1]
    section = _section(_annotation(path[:-1], model)) if path else None
    return section.model_fields.get(str(path[-1])) if section else None


def is_key(path: Path, model: type[BaseModel] = RunConfig) -> bool:
    """Tell whether the schema has a key, or a section, at `path`."""
    return len(path) > 0 and _annotation(path, model) is not None


class _NotShown:
    """Stand-in for a value that may be a secret written in the wrong place."""

    def __str__(self) -> str:
        return "a value that is not shown here"


def _hidden(path: Path, model: type[BaseModel]) -> bool:
    """Tell whether the key, or one of the section that should stand there, is declared with repr=False: an error must
    not repeat its value.
    """
    field, section = field_at(path, model), _section(_annotation(path, model))
    return field is not None and not field.repr or section is not None and _holds_hidden(section)


def _holds_hidden(section: type[BaseModel]) -> bool:
    inner = (_section(field.annotation) for field in section.model_fields.values())
    return any(not field.repr for field in section.model_fields.values()) or any(
        map(_holds_hidden, filter(None, inner))
    )


def _annotation(path: Path, model: type[BaseModel]) -> Any:
    """Find the type of the value at `path`; None where no such place is declared."""
    current: Any = model
    for part in path:
        current, section = _plain(current), _section(current)
        if section is not None:
            current = section.model_fields[part].annotation if part in section.model_fields else None
        else:
            current = _item(current)
    return current


def _plain(annotation: Any) -> Any:
    """Strip Annotated and `| None`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return _plain(next(arg for arg in typing.get_args(annotation) if arg is not type(None)))
    return annotation


def _section(annotation: Any) -> type[BaseModel] | None:
    plain = _plain(annotation)
    return plain if isinstance(plain, type) and issubclass(plain, BaseModel) else None


def _item(annotation: Any) -> Any:
    arguments = typing.get_args(_plain(annotation))
    return None if not arguments else arguments[1] if typing.get_origin(_plain(annotation)) is dict else arguments[0]


def _related(a: Path, b: Path) -> bool:
    """Tell whether one is the other, or stands inside it."""
    size = min(len(a), len(b))
    return a[:size] == b[:size]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else f"{value:g}"


def _quotable(value: Any) -> bool:
    return isinstance(value, (int, float))


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return (f"the text {text}" if isinstance(value, str) else text)[:80]


class Conflict(NamedTuple):
    """Contradiction between dotted keys, the one to change first.

    It is not reported when one of them is already wrong by itself.
    """

    keys: tuple[str, ...]
    message: str
