"""Values that fit a JSON Schema, drawn with a generator: arguments of composed prompts, and simulated results."""

from __future__ import annotations

import math
import random
import re
import string
from typing import Any
from urllib.parse import unquote

from kd.errors import SpanwiseError
from kd.toolcalls.registry import ToolRegistry, search_pattern

_TRIES = 20
_MOST_DEPTH = 8
_MOST_VALUES = 4_000  # of one draw
_MOST_LETTERS = 100_000  # of one text
_FAR = 1000
_WORDS = {
    "city place location town destination origin": (
        "Oslo", "Lima", "Kyoto", "Nairobi", "Porto", "Quito", "Graz", "Hanoi", "Tampere", "Leeds", "Bergen", "Accra",
        "Turin", "Perth", "Malmö", "Zürich", "São Paulo", "Vancouver", "Cork", "Gdańsk",
    ),
    "country": ("Norway", "Peru", "Japan", "Kenya", "Portugal", "Ecuador", "Austria", "Vietnam", "Finland", "Ghana"),
    "name person author user customer contact recipient": (
        "Ada Moreau", "Ben Okafor", "Chika Sato", "Dora Lind", "Emil Novak", "Farah Aziz", "Goran Petrov", "Hana Kim",
    ),
    "title subject topic query question q text message content note description body keyword": (
        "tide tables", "rail strikes", "solar panels", "a birthday list", "wool prices", "volcanic soil", "night buses",
        "the quarterly budget", "bread without yeast", "harbour fees", "left-handed scissors", "bird migration",
    ),
    "currency": ("EUR", "USD", "NOK", "JPY", "GBP", "CHF"),
    "language lang": ("en", "de", "fr", "es", "pt", "ja"),
    "path file filename": ("notes/plan.md", "src/main.py", "data/prices.csv", "docs/intro.md", "log/today.txt"),
    "symbol ticker": ("ACME", "NORD", "KELP", "VOLT", "PINE", "OPAL"),
}  # fmt: skip
_BY_WORD = {name: values for names, values in _WORDS.items() for name in names.split()}
_PLAIN = ("amber", "birch", "cedar", "dune", "ember", "fjord", "gravel", "harbour", "indigo", "juniper", "kelp")


class SchemaError(SpanwiseError, ValueError):
    """Schema that no value was found for; the message names the tool."""


def draw_arguments(tool: dict[str, Any], generator: random.Random, *, optional: float = 0.5) -> dict[str, Any]:
    """Draw arguments that the tool's schema takes, closed; required ones, and each other one with this probability.

    Raises:
        SchemaError: twenty draws had a problem; the message has the last.
    """
    function = tool["function"]
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    registry, problems = ToolRegistry([tool]), ["no value could be made"]
    for _ in range(_TRIES):
        try:
            value = draw(schema, generator, optional=optional)
        except ValueError as error:
            problems = [str(error)]
            continue
        problems = registry.validate_call(function["name"], value)
        if not problems:
            return value
    raise SchemaError(f"tool {function['name']!r}: {problems[0]}: give the argument `examples` in its schema")


def draw(schema: Any, generator: random.Random, *, optional: float = 0.5) -> Any:
    """Draw a value of a schema; not all keywords are known, so check it.

    Raises:
        ValueError: it is no JSON Schema, refers to what is not there, nests past all depth, wants more than is drawn,
            or has a pattern that no word fits.
    """
    try:
        return _Drawing(schema, generator, optional).draw(schema)
    except ValueError:
        raise
    except Exception as error:  # its keywords may hold anything
        raise ValueError(f"its schema cannot be read ({type(error).__name__}: {error})") from error


class _Drawing:
    """One draw of a schema, whose references are looked up in `root`."""

    def __init__(self, root: Any, generator: random.Random, optional: float):
        self._root, self._generator, self._optional = root, generator, optional
        self._num_left = _MOST_VALUES

    def draw(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        """Draw a value; `name` is that of its property."""
        generator = self._generator
        self._num_left -= 1
        if self._num_left < 0:
            raise ValueError(f"its schema asks for more than {_MOST_VALUES:,} values")
        if schema is False:
            raise ValueError("its schema is false, which nothing fits")
        if not isinstance(schema, dict):
            return generator.choice(_PLAIN)
        if depth > _MOST_DEPTH:
            raise ValueError("the schema nests into itself")
        if "$ref" in schema:
            return self.draw(_follow(schema["$ref"], self._root), name, depth + 1)
        if "const" in schema:
            return schema["const"]
        for key in ("enum", "examples"):
            if isinstance(schema.get(key), list) and schema[key]:
                return generator.choice(schema[key])
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                rest = {one: value for one, value in schema.items() if one != key}
                chosen = generator.choice([one for one in schema[key] if one is not False] or [False])
                return self.draw({**rest, **chosen} if isinstance(chosen, dict) else rest or chosen, name, depth + 1)
        if isinstance(schema.get("allOf"), list):
            return self.draw(self._merge(schema), name, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = generator.choice([one for one in kind if one != "null"] or ["null"])
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
        if kind == "object":
            required = schema.get("required", [])
            return {
                key: self.draw(inner, key, depth + 1)
                for key, inner in schema.get("properties", {}).items()
                if key in required or generator.random() < self._optional
            }
        if kind == "array":
            return self._draw_array(schema, name, depth)
        if kind in ("integer", "number"):
            return _draw_number(schema, generator, whole=kind == "integer")
        return {"boolean": lambda: generator.random() < 0.5, "null": lambda: None}.get(
            kind, lambda: _draw_text(schema, generator, name)
        )()

    def _merge(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Merge the parts of allOf into the schema beside it."""
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            if part is True:
                continue
            part = _follow(part["$ref"], self._root) if "$ref" in part else part
            properties = {**merged.get("properties", {}), **part.get("properties", {})}
            required = [*merged.get("required", []), *part.get("required", [])]
            merged = {**merged, **part, "properties": properties, "required": required}
        return merged

    def _draw_array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        least = int(schema.get("minItems", 1))
        if least > self._num_left:
            raise ValueError(f"its minItems is {least:g}, and at most {_MOST_VALUES:,} values are drawn")
        count = self._generator.randint(least, max(least, min(int(schema.get("maxItems", least + 2)), least + 2)))
        made: list[Any] = []
        for _ in range(count * 4):
            if len(made) == count:
                break
            value = self.draw(schema.get("items", {}), name.rstrip("s"), depth + 1)
            if not schema.get("uniqueItems") or value not in made:
                made.append(value)
        return made


def _follow(reference: Any, root: Any) -> Any:
    target = root
    for part in str(reference).removeprefix("#").split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")  # RFC 6901, as the fragment of an address
        if isinstance(target, list):
            target = target[int(part)] if part.isdecimal() and int(part) < len(target) else None
        else:
            target = target.get(part) if isinstance(target, dict) else None
    if re.match(r"#(/|\Z)", str(reference)) is None or target is None:
        raise ValueError(f"its schema refers to {reference!r}, which is not in it")
    return target


def _draw_number(schema: dict[str, Any], generator: random.Random, *, whole: bool) -> float:
    step = schema.get("multipleOf", 1 if whole else 0.5)
    low, high = schema.get("minimum"), schema.get("maximum")
    if (above := schema.get("exclusiveMinimum")) is not None:
        low = above + step if low is None else max(low, above + step)
    if (below := schema.get("exclusiveMaximum")) is not None:
        high = below - step if high is None else min(high, below - step)
    if low is None:
        low = 1 if high is None or high >= 1 else high - _FAR
    high = low + _FAR if high is None else min(high, low + _FAR)
    first, last = math.ceil(low / step), math.floor(high / step)
    if last < first:
        return low
    number = generator.randint(first, last) * step
    return int(number) if whole else number


def _draw_text(schema: dict[str, Any], generator: random.Random, name: str) -> str:
    formats = {
        "date": lambda: f"2026-{generator.randint(1, 12):02}-{generator.randint(1, 28):02}",
        "time": lambda: f"{generator.randint(0, 23):02}:{generator.randint(0, 59):02}:00Z",
        "uuid": lambda: f"{generator.getrandbits(128):032x}",
        "email": lambda: f"{generator.choice(_PLAIN)}{generator.randint(1, 99)}@example.org",
        "uri": lambda: f"https://example.org/{generator.choice(_PLAIN)}/{generator.randint(1, 999)}",
    }
    formats["date-time"] = lambda: f"{formats['date']()}T{formats['time']()}"
    parts = [part for part in re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) if part]
    known = next((_BY_WORD[part] for part in reversed(parts) if part in _BY_WORD), None)
    words = known or _PLAIN
    number = generator.randint(1, 999)
    makers = [
        formats.get(schema.get("format", "")),
        formats["date"] if any(part in ("date", "day") for part in parts) else None,
        formats["uri"] if any(part in ("url", "uri", "link") for part in parts) else None,
        formats["email"] if "email" in parts else None,
        lambda: generator.choice(words) if known else f"{generator.choice(words)} {number}",
        lambda: f"{generator.choice(_PLAIN)}-{number}",
        lambda: f"https://example.org/{generator.choice(_PLAIN)}",
        lambda: "".join(generator.choices(string.ascii_uppercase, k=3)) + f"-{number}",
        lambda: "".join(generator.choices(string.ascii_uppercase, k=generator.randint(1, 6))),
        lambda: "".join(generator.choices(string.ascii_lowercase, k=generator.randint(1, 8))),
        lambda: "".join(generator.choices(string.digits, k=generator.randint(1, 8))),
    ]
    least, most = int(schema.get("minLength", 0)), int(schema.get("maxLength", _MOST_LETTERS))
    pattern = schema.get("pattern")
    if least > _MOST_LETTERS:
        raise ValueError(f"argument {name!r}: its minLength is {least:g}, and texts are drawn up to {_MOST_LETTERS:,}")
    for make in filter(None, makers):
        text = make()
        if len(text) < least:
            text = (text + " ") * (least // (len(text) + 1) + 1)
        text = text[:most].strip() or text[:most]
        if least <= len(text) <= most and (pattern is None or search_pattern(pattern, text)):
            return text
    raise ValueError(f"argument {name!r}: no word was found that fits {pattern!r}")
