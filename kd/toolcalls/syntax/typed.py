"""Values that a syntax writes without their type: the tool's JSON Schema says it, else the text itself.

A value is a text where its schema allows nothing else. Where it allows other types too, or says nothing, it is the JSON
or Python literal that the text spells, if its type is allowed; else the text.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Any

from kd.toolcalls.syntax.strict_json import JsonProblem, find_excess, read_json

_MAX_LITERAL = 20_000  # characters; Python's parser takes a hundred times the memory
_ANY = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
CONSTANTS = ("True", "False", "None")
NO_VALUE = object()


def list_types(schema: Any) -> frozenset[str]:
    """List the JSON types that a property's schema allows; all of them where it does not say."""
    if not isinstance(schema, Mapping):
        return _ANY
    if "const" in schema or isinstance(schema.get("enum"), list):
        return frozenset().union(*(_types_of(value) for value in schema.get("enum", [schema.get("const")])))
    named = schema.get("type")
    types = frozenset({named} if isinstance(named, str) else filter(_ANY.__contains__, named or ()))
    for key in ("anyOf", "oneOf"):
        for inner in schema.get(key) or ():
            types |= list_types(inner)
    if schema.get("nullable") is True:
        types |= {"null"}
    return types & _ANY or _ANY


def read_typed(text: str, schema: Any, *, plain: bool = True) -> object:
    """Read the value that `text` writes for a property of this schema.

    plain: a text is written as it is, without quotes.
    """
    types = list_types(schema)
    if plain and types == {"string"}:
        return text
    value = read_literal(text.strip())
    if value is NO_VALUE or plain and isinstance(value, str):
        return text if plain else NO_VALUE
    return value if not plain or "string" not in types or _types_of(value) & types else text


def read_literal(text: str) -> object:
    """Read the one value that `text` is, as JSON or as Python prints it; NO_VALUE where it is none.

    Python reads more than it prints: (3), +3, 0x10, 1_000 or 1, 2 are texts.
    """
    try:
        value, end = read_json(text, 0)
        if end == len(text):
            return NO_VALUE if find_excess(value) else value
    except JsonProblem:
        pass
    return read_python(text) if text.startswith(("[", "{", "'", '"')) or text in CONSTANTS else NO_VALUE


def read_python(text: str) -> object:
    """Read the one Python literal that `text` is, as the JSON value that it stands for; NO_VALUE where it is none."""
    if len(text) > _MAX_LITERAL:
        return NO_VALUE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know, which it keeps as they are
            tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            keys = [ast.dump(key) for key in node.keys if key] if isinstance(node, ast.Dict) else []
            if len(set(keys)) < len(keys):
                return NO_VALUE
        value = _as_json(ast.literal_eval(tree))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return NO_VALUE
    return NO_VALUE if find_excess(value) else value


def _as_json(value: object) -> object:
    """Turn tuples into lists, and surrogate pairs that JSON escapes left behind into the characters they are.

    Raises:
        ValueError: JSON has no such value.
    """
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key that is no text")
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    if value is None or isinstance(value, (bool, int)) or isinstance(value, float) and abs(value) < float("inf"):
        return value
    raise ValueError(f"{value!r} is not JSON")


def _types_of(value: object) -> frozenset[str]:
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int):
        return frozenset({"integer", "number"})
    if isinstance(value, float):
        return frozenset({"number", "integer"} if value.is_integer() else {"number"})
    return frozenset({"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"})
