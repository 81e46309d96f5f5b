"""Page of configuration keys, made from kd/config/sections/ while mkdocs builds docs/configuration.md.

mkdocs calls `on_page_markdown` (hooks in mkdocs.yml), which puts the keys in place of MARKER.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # mkdocs loads this file by its path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kd.config.fields import Choice
from kd.config.schema import RunConfig

MARKER = "<!-- keys -->"
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's Markdown with MARKER replaced by all keys."""
    return markdown.replace(MARKER, "\n".join(describe_section(RunConfig, ""))) if MARKER in markdown else markdown


def describe_section(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the Markdown lines of a section's keys, and after them those of the sections inside it."""
    inner = []
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        below = sections_in(field.annotation)
        if below and not prefix:  # a top section is a heading with its keys under it
            yield from describe_heading(key, field, below[0], depth=2)
            yield from describe_section(below[0], f"{key}.")
            continue
        yield from (f"#### `{key}` {{ #{key.replace('.*', '')} }}", "", describe_type(field), "")
        yield from (field.description or "", "")
        inner += [(key + (".*" if is_list(field.annotation) else ""), field, one) for one in below]
    for key, field, one in inner:
        yield from describe_heading(key, field, one, depth=3)
        yield from describe_section(one, f"{key}.")


def describe_heading(key: str, field: FieldInfo, section: type[BaseModel], depth: int) -> Iterator[str]:
    """Yield the heading of a section, and the docstring of its class or else of its key."""
    yield from (f"{'#' * depth} {key}", "")
    own = section.__dict__.get("__doc__")
    yield from (own or field.description or "", "")


def describe_type(field: FieldInfo) -> str:
    """Return type, range and default in one line."""
    if field.is_required():
        default = "**required**"
    elif field.default is None:
        default = "optional"
    else:
        default = "" if isinstance(field.default, BaseModel) else f"default `{yaml_text(field.default)}`"
    return " · ".join(filter(None, (type_text(field.annotation, field.metadata), default)))


def type_text(annotation: Any, metadata: typing.Iterable[Any] = ()) -> str:
    """Return a type in words, with the range that its metadata gives."""
    for one in metadata:
        if isinstance(one, Choice):
            return "one of " + ", ".join(f"`{name}`" for name in one.names())
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0], arguments[1].metadata if isinstance(arguments[1], FieldInfo) else arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(one, metadata) for one in arguments if one is not type(None))
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list; each item {type_text(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}; each item {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return PLAIN[annotation] + range_text(metadata)


def range_text(metadata: typing.Iterable[Any]) -> str:
    """Return the bounds in words: ", above 0, at most 100"."""
    bounds = [
        f", {words} {number_text(getattr(one, bound))}"
        for one in metadata
        for bound, words in BOUNDS.items()
        if getattr(one, bound, None) is not None
    ]
    return "".join(bounds)


def number_text(value: float) -> str:
    """Write a bound: 1048576 as 1,048,576, and 1e9 as it is."""
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else f"{value:g}"


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """List the sections that a type holds, itself or inside lists, mappings and alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for one in typing.get_args(annotation) for section in sections_in(one)]


def is_list(annotation: Any) -> bool:
    return any(typing.get_origin(one) is tuple for one in (annotation, *typing.get_args(annotation)))


def yaml_text(value: Any) -> str:
    """Return a default as it is written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    if isinstance(value, int):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
