"""Parameter declarations that are not JSON Schema, converted to it.

    xLAM, APIGen  {"city": {"type": "str, optional", "description": ..., "default": ...}}: Python's type names
    BFCL          {"type": "dict", "properties": {"x": {"type": "float"}, "at": {"type": "tuple", ...}}}: JSON Schema's
                  shape with Python's, Java's and JavaScript's type names

A type that JSON Schema has no word for (any, Callable, a class) becomes no type: any value is then valid.
"""

from __future__ import annotations

import ast
from typing import Any

from kd.records.columns import drop_null_keys, is_filler

_JSON_TYPES = {
    "array": "array list tuple set frozenset sequence iterable iterator arraylist queue stack deque ndarray vector",
    "object": "object dict mapping map hashmap hashtable json defaultdict ordereddict",
    "integer": "integer int long short byte bigint uint",
    "number": "number float double decimal complex",
    "string": "string str char text bytes date datetime time uuid url",
    "boolean": "boolean bool",
    "null": "null none nonetype",
}
_TYPES = {word: kind for kind, words in _JSON_TYPES.items() for word in words.split()}
_MAX_LEVELS = 16  # of a Python type


def from_bfcl(schema: Any) -> Any:
    """Convert a BFCL schema to JSON Schema's type names.

    Keys that JSON Schema has no word for (`optional`) are kept, as annotations.
    """
    if not isinstance(schema, dict):
        return schema
    out = drop_null_keys(schema)
    if "type" in out:
        kinds = out["type"] if isinstance(out["type"], list) else [out["type"]]
        known = [_TYPES.get(kind.lower()) if isinstance(kind, str) else None for kind in kinds]
        out["type"] = known if len(known) > 1 else known[0]
        if None in known:
            del out["type"]
    for key in ("properties", "$defs", "definitions"):
        if isinstance(out.get(key), dict):
            out[key] = {name: from_bfcl(inner) for name, inner in out[key].items()}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = from_bfcl(out[key])
    choices = out.get("enum")
    if (
        out.get("type") == "array"
        and isinstance(choices, list)
        and not any(isinstance(choice, list) for choice in choices)
    ):
        out["items"] = {
            **(out["items"] if isinstance(out.get("items"), dict) else {}),
            "enum": out.pop("enum"),
        }  # the choices are its items'
    if not isinstance(out.get("required", []), list):
        del out["required"]  # the older form: a flag on the property
    return out


def from_xlam(parameters: Any) -> dict:
    """Convert xLAM's parameters to a JSON Schema.

    An argument is required unless its type says optional or it has a default.
    """
    if not isinstance(parameters, dict):
        return {"type": "object", "properties": {}}
    if parameters.get("type") in ("object", "dict") and isinstance(parameters.get("properties"), dict):
        return from_bfcl(parameters)  # later releases write JSON Schema
    properties, required = {}, []
    for name, declared in parameters.items():
        if is_filler(declared):
            continue
        declared = declared if isinstance(declared, dict) else {"type": declared}
        text = str(declared["type"]) if isinstance(declared.get("type"), str) else ""
        kind, _, rest = text.partition(", optional") if ", optional" in text else text.partition(" (optional")
        optional = (
            len(kind) < len(text) or kind.replace(" ", "").startswith("Optional[") or declared.get("required") is False
        )
        keep = {
            key: value for key, value in declared.items() if key not in ("type", "required") and value not in (None, "")
        }
        properties[name] = {**from_python_type(kind), **keep}
        if not optional and "default" not in declared:
            required.append(name)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def from_python_type(text: str) -> dict:
    """Convert a type as Python writes it to a JSON Schema: "List[Tuple[int, str]]", "str | None"."""
    try:
        return _schema(ast.parse(text.strip(), mode="eval").body, _MAX_LEVELS) if len(text) < 1000 else {}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _schema(node: ast.AST, levels: int) -> dict:
    if levels == 0:
        return {}
    if isinstance(node, ast.Constant):
        return (
            {"type": "null"}
            if node.value is None
            else _schema(ast.Name(node.value), levels - 1)
            if isinstance(node.value, str)
            else {}
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _either([_schema(node.left, levels - 1), _schema(node.right, levels - 1)])
    if not isinstance(node, ast.Subscript):
        kind = _TYPES.get(_name(node))
        return {"type": kind} if kind else {}
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    outer = _name(node.value)
    if outer == "literal":
        return {"enum": [item.value for item in inside if isinstance(item, ast.Constant)]}
    if outer == "optional":
        return _either([*(_schema(item, levels - 1) for item in inside), {"type": "null"}])
    if outer == "union":
        return _either([_schema(item, levels - 1) for item in inside])
    kind = _TYPES.get(outer)
    schemas = [_schema(item, levels - 1) for item in inside if not _is_ellipsis(item)]
    if kind == "array" and schemas:
        same = all(schema == schemas[0] for schema in schemas)
        return {"type": "array", **({"items": schemas[0]} if same and schemas[0] else {})}
    if kind == "object" and len(schemas) == 2 and schemas[1]:
        return {"type": "object", "additionalProperties": schemas[1]}
    return {"type": kind} if kind else {}


def _either(schemas: list[dict]) -> dict:
    if {} in schemas:
        return {}
    unlike = [schema for index, schema in enumerate(schemas) if schema not in schemas[:index]]
    return unlike[0] if len(unlike) == 1 else {"anyOf": unlike}


def _name(node: ast.AST) -> str:
    return (node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "").lower()


def _is_ellipsis(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
