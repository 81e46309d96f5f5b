"""Values that a columnar table (Arrow, pandas) writes otherwise than they were given.

Nulls: a struct column has in each row a null for every key that some other row has. Whole fractions: a column with one
fraction, or one gap, makes 3.0 of 3. In arguments an integer is one again where the schema takes no other number.

Nulls reach JSON lines too, once such a table is exported. In declarations of tools a null says nothing, for JSON Schema
has no keyword with a null but these: `default` and `const`, kept where the rest of their schema takes null, and items
of a list. An object that holds nulls alone is a null. In arguments the tool's schema decides
(kd.toolcalls.registry.ToolRegistry.drop_nulls).
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable

from kd.toolcalls.syntax.typed import list_types

_VALUES = ("default", "const")
_VALUE_LISTS = ("enum", "examples")
_TYPES = ("type", "anyOf", "oneOf", "nullable")  # keywords that say a value's type
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def is_filler(value: Any) -> bool:
    """Tell whether a value is null, or an object of nothing but nulls, unless it says only `default` or `const`."""
    filled = isinstance(value, dict) and bool(value.keys() - set(_VALUES))
    return value is None or filled and all(map(is_filler, value.values()))


def holds_null(value: Any) -> bool:
    """Tell whether there is a null anywhere in a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(holds_null, inner))


def holds_whole_fraction(value: Any) -> bool:
    """Tell whether there is a fraction without a remainder anywhere in a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, float) and value.is_integer() or any(map(holds_whole_fraction, inner))


def restore_integers(value: Any, schema: Any) -> Any:
    """Make integers of the whole fractions in a value that its JSON Schema wants as such, in properties and items."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, float) and value.is_integer():
        types = list_types({key: schema[key] for key in _TYPES if key in schema})
        return int(value) if "integer" in types and "number" not in types else value
    if isinstance(value, dict):
        properties = schema.get("properties")
        of = properties if isinstance(properties, dict) else {}
        return {key: restore_integers(inner, of.get(key)) for key, inner in value.items()}
    return [restore_integers(inner, schema.get("items")) for inner in value] if isinstance(value, list) else value


def drop_null_columns(data: Any) -> Any:
    """Leave out the null fields of a record, by which its format would be found."""
    return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def drop_null_keys(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out a schema's fillers at this level alone, but for `default` and `const`."""
    return {key: value for key, value in schema.items() if key in _VALUES or not is_filler(value)}


def clean_declaration(tool: dict[str, Any]) -> dict[str, Any]:
    """Leave the fillers out of a tool's declaration; one that holds none is returned as it is."""
    if not holds_null(tool):
        return tool
    kept = {key: inner for key, inner in tool.items() if not is_filler(inner)}
    function = {key: inner for key, inner in tool["function"].items() if not is_filler(inner)}
    return kept | {
        "function": function | {"parameters": clean_schema(p)} if (p := function.get("parameters")) else function
    }


def clean_schema(schema: Any) -> Any:
    """Leave the fillers out of a JSON Schema; what holds none is returned as it is."""
    return _clean(schema) if holds_null(schema) else schema


def _clean(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    rest: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, dict):
            rest[key] = {name: _clean(inner) for name, inner in value.items() if not is_filler(inner)}
        elif key in _VALUES or key in _VALUE_LISTS and value is not None:
            rest[key] = value
        elif not is_filler(value):
            rest[key] = [_clean(inner) for inner in value] if isinstance(value, list) else _clean(value)
    nulls = [key for key in _VALUES if key in rest and rest[key] is None]
    if nulls and not _takes_null({key: value for key, value in rest.items() if key not in nulls}):
        rest = {key: value for key, value in rest.items() if key not in nulls}
    return rest


def _takes_null(schema: dict) -> bool:
    try:
        return Draft202012Validator(schema).is_valid(None)
    except (SchemaError, Unresolvable, TypeError, ValueError, AttributeError, RecursionError):
        return True  # not for this file to say
