"""Tools on offer, and the check of a call against its tool's JSON Schema.

`ToolRegistry` holds tools in the chat format {"type": "function", "function": {"name", "description", "parameters"}}
and validates calls with jsonschema (draft 2020-12). Calls are read out of a text by kd/toolcalls/reader.py.

Closed by default. Most published schemas list `properties` and forget `additionalProperties`; read by the letter, every
misspelt optional argument would then be valid. Here an object schema that lists `properties`, says nothing of
`additionalProperties`, and has no keyword that could add properties from elsewhere (allOf, $ref, patternProperties,
...) takes the listed ones only, at the top and inside properties and items; subschemas elsewhere ($defs, allOf, ...)
are left as written. To allow more, write `additionalProperties: true`. A tool whose `parameters` are absent or {} takes
no arguments.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import regex
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from kd.toolcalls.default_tools import DEFAULT_TOOLS
from kd.toolcalls.json_values import MAX_DEPTH, show_json

_SUFFIXES = (".json", ".yaml", ".yml")
_PATTERN_SECONDS = 0.5  # of the processor's time for one search; a sound pattern takes microseconds
_MOST_BYTES = 16 << 20  # of a file of tools
_MOST_VALUES = 1_000_000  # in such a file
_MOST_UNKNOWN = 20  # arguments that are named, each with the nearest that is known
_OPENING_KEYWORDS = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
    "dependentSchemas",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "$ref",
    "$dynamicRef",
}


class ToolRegistry:
    """Tools that a call may name.

    Raises:
        ValueError: a tool without a name, a broken schema, or two unlike tools of one name.
    """

    def __init__(self, tools: Iterable[dict]):
        self._tools: dict[str, dict] = {}
        for tool in tools:
            tool = _chat_form(tool)
            name = tool["function"]["name"]
            if self._tools.setdefault(name, tool) != tool:
                raise ValueError(f"tool {name!r} is defined twice, differently: keep one definition")
            _validator(name, _canonical(tool["function"].get("parameters")), True)

    @classmethod
    def default(cls) -> ToolRegistry:
        """Offer web.search, web.open, read_file, repo.read, file.write and code.execute."""
        return cls(DEFAULT_TOOLS)

    @classmethod
    def load(cls, path: str | Path) -> ToolRegistry:
        """Read a JSON or YAML file (a tool, a list of tools, or {"tools": [...]}), or every such file of a folder.

        Raises:
            ValueError: no such file or folder, no tools in it, or a file that cannot be read; the message names it.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder of tools")
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: no tool files here; put one tool or a list of tools in each .json or .yaml file")
        return cls(tool for file in files for tool in _read_tools(file))

    @property
    def names(self) -> list[str]:
        """Names of the tools, in the order given."""
        return list(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[dict]:
        return iter(self._tools.values())

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def validate_call(self, name: str, arguments: object, *, closed: bool = True) -> list[str]:
        """List the problems of calling `name` with `arguments`, a dict of JSON values; empty when it is valid.

        Each problem names the argument by its path (`filter.tags[2]`) and what would be right. As in JSON Schema, true
        is not an integer and 2.0 is one. A schema that cannot be applied to these arguments (a $ref that leaves it, or
        never ends) is a problem too: no generated text raises.

        closed: False reads the schema by the letter.
        """
        if name not in self._tools:
            offered = ", ".join(self.names) or "none"
            return [f"unknown tool {name!r}{_nearest(name, self.names)} (offered: {offered})"]
        if not isinstance(arguments, dict):
            return [f"{name}: arguments must be a JSON object, not {show_json(arguments)}"]
        try:
            errors = sorted(
                self._find_errors(name, arguments, closed),
                key=lambda error: [str(part) for part in error.absolute_path],
            )
        except ValueError as error:
            return [str(error)]
        return list(dict.fromkeys(f"{name}: {problem}" for error in errors for problem in _explain(error)))

    def drop_nulls(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Leave out of the arguments the nulls that the tool's schema, closed, forbids where they stand.

        A null for an argument that is required stays, and so does one in the arguments of a tool that is not here: the
        first is for `validate_call` to name, of the second nothing is known.

        Raises:
            ValueError: as `validate_call`.
        """
        if name not in self._tools:
            return arguments
        forbidden: set[tuple] = set()
        for error in self._find_errors(name, arguments, True):
            path, instance = tuple(error.absolute_path), error.instance
            if error.validator == "additionalProperties" and isinstance(instance, dict):
                schema = cast(dict, error.schema)
                patterns = [re.compile(pattern) for pattern in schema.get("patternProperties", {})]
                forbidden |= {
                    (*path, key)
                    for key, value in instance.items()
                    if value is None
                    and key not in schema.get("properties", {})
                    and not any(pattern.search(key) for pattern in patterns)
                }
            elif instance is None and path and isinstance(path[-1], str):
                forbidden.add(path)
        if not forbidden:
            return arguments
        kept = _leave_out(arguments, forbidden)
        missing = {
            (*error.absolute_path, key)
            for error in self._find_errors(name, kept, True)
            if error.validator == "required" and isinstance(error.instance, dict)
            for key in cast(list, error.validator_value)
            if key not in error.instance
        }
        return _leave_out(arguments, forbidden - missing) if missing else kept

    def _find_errors(self, name: str, arguments: dict[str, Any], closed: bool) -> list[ValidationError]:
        validator = _validator(name, _canonical(self._tools[name]["function"].get("parameters")), closed)
        try:
            return list(validator.iter_errors(arguments))
        except Unresolvable as error:
            raise ValueError(
                f"tool {name!r}: its schema refers to {error.ref!r}, which is not in it; put it under $defs"
            ) from error
        except Exception as error:  # of jsonschema's keywords and of what they call, which have no common base
            raise ValueError(
                f"tool {name!r}: these arguments cannot be checked by its schema ({type(error).__name__}: {error})"
            ) from error


def _read_tools(file: Path) -> list[dict]:
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file}: no file of tools, or more than {_MOST_BYTES >> 20} MiB: give JSON or YAML of tools")
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        _check_values(content)
        json.dumps(content, ensure_ascii=False, allow_nan=False, default=str).encode()
    except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:  # NaN and half a surrogate pair too
        raise ValueError(f"{file}: cannot be read as {file.suffix[1:]}: {error}") from error
    if isinstance(content, dict) and "tools" in content:
        content = content["tools"]
    tools = content if isinstance(content, list) else [content]
    try:
        made = [_chat_form(tool) for tool in tools]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for tool in made:
        if not isinstance(tool["function"].get("description", ""), str | None):
            raise ValueError(f"{file}: tool {tool['function']['name']!r}: its description is no text: write one")
    return made


def _check_values(content: object) -> None:
    """Check that a file's values are not too many, nor nest too deep, once its aliases are written out."""
    left, waiting = _MOST_VALUES, [(content, 0)]
    while waiting:
        (value, depth), left = waiting.pop(), left - 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"more than {_MOST_VALUES:,} values or {MAX_DEPTH} levels: cut it, or its aliases")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += ((one, depth + 1) for one in inner)


def _chat_form(tool: object) -> dict:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f'a tool needs a "name", got {show_json(tool)}: write {{"name", "description", "parameters"}}')
    return {"type": "function", "function": function}


def _leave_out(value: Any, paths: set[tuple], path: tuple = ()) -> Any:
    if isinstance(value, dict):
        at = {key: (*path, key) for key in value}
        return {key: _leave_out(inner, paths, at[key]) for key, inner in value.items() if at[key] not in paths}
    if isinstance(value, list):
        return [_leave_out(inner, paths, (*path, index)) for index, inner in enumerate(value)]
    return value


def _canonical(parameters: object) -> str:
    try:
        return json.dumps(parameters or {"type": "object", "properties": {}}, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"tool parameters must be plain JSON values: {error}; quote dates and keys in YAML") from error


@lru_cache(maxsize=4096)  # an evaluation builds a registry a record out of a few hundred schemas
def _validator(name: str, schema_json: str, closed: bool) -> Any:
    schema = json.loads(schema_json)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise ValueError(f"tool {name!r}: its parameters are not a JSON Schema: at {where}: {error.message}") from error
    if closed:
        _close(schema)
    return _Validator(schema, registry=Registry())  # an empty registry: a $ref never reaches the network


def _check_multiple(validator: Any, factor: float, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    """Check multipleOf as jsonschema does, and exactly where the quotient is past every float."""
    try:
        yield from list(Draft202012Validator.VALIDATORS["multipleOf"](validator, factor, instance, schema))
    except (OverflowError, ValueError):
        given, step = _exact(instance), _exact(factor)
        if given is None or step is None or given % step:
            yield ValidationError(f"{show_json(instance)} is not a multiple of {factor}")


def _exact(number: float) -> Fraction | None:
    """Return a number as it is written, or None for infinity and NaN."""
    if isinstance(number, int):
        return Fraction(number)
    return Fraction(repr(number)) if math.isfinite(number) else None


def search_pattern(pattern: str, text: str) -> bool:
    """Search as jsonschema does, but for a limited time: what a pattern may cost grows exponentially with the text.

    Raises:
        ValueError: it takes longer, or is no pattern.
    """
    try:
        return regex.search(pattern, text, regex.VERSION0, timeout=_PATTERN_SECONDS) is not None
    except TimeoutError:
        raise ValueError(
            f"the pattern {_cut(pattern)!r} takes more than {_PATTERN_SECONDS} s on {show_json(text)}; write it "
            "without a repetition inside a repetition"
        ) from None
    except regex.error as error:
        raise ValueError(f"the pattern {_cut(pattern)!r} cannot be read ({error})") from None


def _check_pattern(validator: Any, pattern: str, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not search_pattern(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_named(validator: Any, patterns: dict, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    for pattern, inner in patterns.items() if isinstance(instance, dict) else ():
        for name, value in instance.items():
            if search_pattern(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _check_additional(validator: Any, rule: Any, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    """Check additionalProperties as jsonschema does, on the properties that patternProperties does not name."""
    patterns = schema.get("patternProperties", {})
    if patterns and isinstance(instance, dict):
        instance = {
            name: value for name, value in instance.items() if not any(search_pattern(one, name) for one in patterns)
        }
        schema = {key: value for key, value in schema.items() if key != "patternProperties"}
    yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, rule, instance, schema)


_Validator = extend(
    Draft202012Validator,
    {
        "multipleOf": _check_multiple,
        "pattern": _check_pattern,
        "patternProperties": _check_named,
        "additionalProperties": _check_additional,
    },
)


def _close(schema: object) -> None:
    if not isinstance(schema, dict):
        return
    if "properties" in schema and not _OPENING_KEYWORDS & schema.keys():
        schema["additionalProperties"] = False
    for child in schema.get("properties", {}).values():
        _close(child)
    _close(schema.get("items"))


def _explain(error: ValidationError) -> list[str]:
    """List the problems of one error of jsonschema's, as a person would say them."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    prefix = f"{path}." if path else ""
    rule: Any = error.validator_value
    given: Any = error.instance
    if error.validator == "additionalProperties" and rule is False:
        schema: Any = error.schema
        known = list(schema.get("properties", {}))
        extra = [key for key in given if key not in known]
        return [
            f"unknown argument {prefix + key!r}{_nearest(key, known)} (known: {', '.join(known) or 'none'})"
            for key in extra[:_MOST_UNKNOWN]
        ]
    if error.validator == "required":
        # jsonschema repeats this error for each missing name and tells them apart only in its message: name all, merge
        # later
        return [f"argument {prefix + key!r} is missing" for key in rule if key not in given]
    subject = f"argument {path!r}" if path else "the arguments"
    if error.validator == "type":
        kinds = rule if isinstance(rule, list) else [rule]
        return [f"{subject} must be {' or '.join(kinds)}, not {show_json(given)}"]
    if error.validator == "enum":
        allowed = ", ".join(json.dumps(value) for value in rule)
        strings = [value for value in rule if isinstance(value, str)]
        return [f"{subject} must be one of {allowed}, not {show_json(given)}{_nearest(given, strings)}"]
    if error.context:
        return [f"{subject} fits none of its alternatives; nearest: {_cut(best_match(error.context).message)}"]
    return [f"{subject}: {_cut(error.message)}"]


def _cut(message: str) -> str:
    """Shorten a message of jsonschema's, which quotes the whole value, to a length that a person reads."""
    return message if len(message) <= 200 else f"{message[:100]} ... {message[-90:]}"


def _nearest(word: object, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1) if isinstance(word, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""
