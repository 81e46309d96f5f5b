"""Entries to judge by: the functions that were offered, and the values that are allowed for each wanted call.

An entry of BFCL's own has both (`function` and `ground_truth`). One is made of any other record: the values of its
calls are the allowed ones. An argument that is not required and has a default in the tool's schema may be left out
where the record gives the default, or be the default where the record leaves it out: both mean the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kd.records.record import Record
from kd.toolcalls.json_values import same_json

Category = Literal["simple", "multiple", "parallel", "irrelevance", "relevance"]
Language = Literal["python", "java", "javascript"]


@dataclass(frozen=True)
class Entry:
    """Entry to judge by.

    Attributes:
        functions: {"name", "parameters": {"properties", "required"}}, types by BFCL's names or JSON Schema's.
        allowed: for each wanted call {name: {argument: [values]}}; "" among them: it may be left out.
    """

    functions: list[dict[str, Any]]
    allowed: list[dict[str, dict[str, list[Any]]]]
    category: Category = "multiple"
    language: Language = "python"


def make_entry(tools: list[dict[str, Any]], calls: list[dict[str, Any]]) -> Entry:
    """Make the entry of a record's turn: its tools in the chat format, and its calls ({"name", "arguments"})."""
    functions = [tool["function"] for tool in tools]
    parameters = {function["name"]: function.get("parameters") for function in functions}
    allowed = [{call["name"]: _allow_arguments(call["arguments"], parameters.get(call["name"]))} for call in calls]
    category: Category = "parallel" if len(calls) > 1 else "multiple" if calls else "irrelevance"
    return Entry(functions, allowed, category)


def find_entry(record: Record, calls: list[dict[str, Any]]) -> Entry:
    """Find the entry of a record's turn that calls `calls`: BFCL's own where the record has it, else a made one."""
    kept = record.meta.get("bfcl")
    if calls and isinstance(kept, dict) and _is_truth(kept.get("functions"), kept.get("ground_truth"), len(calls)):
        return read_entry(record.id, kept["functions"], kept["ground_truth"])
    return make_entry(record.tools, calls)


def read_entry(test_id: str, functions: list[dict[str, Any]], truth: list[dict[str, Any]] | None) -> Entry:
    """Read an entry of BFCL's single-turn categories, whose id says which: `live_parallel_3-0-0`."""
    name = test_id.rsplit("_", 1)[0]
    language: Language = "javascript" if "javascript" in name else "java" if "java" in name else "python"
    category: Category = (
        "irrelevance"
        if "irrelevance" in name
        else "relevance"
        if "relevance" in name
        else "parallel"
        if "parallel" in name
        else "multiple"
        if "multiple" in name
        else "simple"
    )
    return Entry(functions, truth or [], category, language)


def _is_truth(functions: Any, truth: Any, num_calls: int) -> bool:
    """Check that a record's `meta` has what BFCL's files have, for as many calls: anyone may write into it."""
    if not isinstance(functions, list) or not isinstance(truth, list) or len(truth) != num_calls:
        return False
    names = {one["name"] for one in functions if isinstance(one, dict) and isinstance(one.get("name"), str)}
    return len(names) == len(functions) and all(
        isinstance(one, dict)
        and len(one) == 1
        and one.keys() <= names
        and all(isinstance(a, dict) and all(isinstance(v, list) for v in a.values()) for a in one.values())
        for one in truth
    )


def _allow_arguments(arguments: dict[str, Any], schema: Any) -> dict[str, list[Any]]:
    schema = schema if isinstance(schema, dict) else {}
    properties = schema.get("properties") if isinstance(schema.get("properties"), dict) else {}
    required = schema.get("required") if isinstance(schema.get("required"), list) else []
    defaults = {
        name: declared["default"]
        for name, declared in properties.items()
        if name not in required and isinstance(declared, dict) and declared.get("default") is not None
    }
    allowed = {
        name: [
            _allow(value, properties.get(name)),
            *([""] if name in defaults and same_json(value, defaults[name]) else []),
        ]
        for name, value in arguments.items()
    }
    return allowed | {
        name: ["", _allow(value, properties[name])] for name, value in defaults.items() if name not in arguments
    }


def read_type(declared: Any) -> str | None:
    """Return the declared type: of several the first that is not null; None where there is none."""
    kind = declared.get("type") if isinstance(declared, dict) else None
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), None)
    return kind if isinstance(kind, str) else None


def _allow(value: Any, declared: Any) -> Any:
    """Write a value as BFCL's files do: each value of an object is a list of those allowed.

    A value of another type than declared is compared as it is, and so is an object within one.
    """
    kind = read_type(declared)
    if isinstance(value, dict) and kind in (None, "object"):
        return {key: [inner] for key, inner in value.items()}
    if isinstance(value, list) and value and kind in (None, "array") and isinstance(declared, dict):
        items = declared.get("items")
        if all(isinstance(item, dict) for item in value) and read_type(items) in (None, "object"):
            return [_allow(item, items) for item in value]
    return value
