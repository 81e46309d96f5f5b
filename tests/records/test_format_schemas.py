"""Declarations and truths of other dialects become JSON Schemas and calls: xLAM, Python types, BFCL."""

from __future__ import annotations

import json

import pytest

from helpers.format_cases import FUNCTION, read
from helpers.reading import calls_of
from kd.records.formats.bfcl import from_bfcl_record
from kd.records.formats.schemas import from_bfcl, from_python_type
from kd.toolcalls.registry import ToolRegistry


@pytest.mark.parametrize("as_text", [True, False])
def test_xlam_declarations_become_json_schema(as_text):
    form = json.dumps if as_text else lambda value: value
    tools = [
        {
            "name": "f",
            "description": "",
            "parameters": {
                "n": {"type": "int", "description": "how many"},
                "tags": {"type": "List[str], optional", "default": ""},
                "at": {"type": "Tuple[float, float]"},
                "rate": {"type": "float", "default": 0.5},
                "any": {"type": "Callable[[int], bool]"},
            },
        }
    ]
    record = read(
        {
            "id": 0,
            "query": "q",
            "tools": form(tools),
            "answers": form([{"name": "f", "arguments": {"n": 2, "at": [1, 2.5], "any": "x"}}] * 2),
        }
    )
    assert record.id == "0" and len(calls_of(record)) == 2
    parameters = record.tools[0]["function"]["parameters"]
    assert parameters["required"] == ["n", "at", "any"] and parameters["properties"]["n"] == {
        "type": "integer",
        "description": "how many",
    }
    registry = ToolRegistry(record.tools)
    assert registry.validate_call("f", {"n": 2, "at": [1, 2.5], "any": "x"}) == []
    assert (
        len(registry.validate_call("f", {"n": True, "at": ["x"], "any": 1, "tags": [1], "rate": "x", "more": 1})) == 5
    )


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("int", {"type": "integer"}),
        ("np.ndarray", {"type": "array"}),
        ("Any", {}),
        ("", {}),
        ("List[", {}),
        ("List[Any]", {"type": "array"}),
        (
            "Dict[str, List[bool]]",
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}},
        ),
        ("Optional[str]", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("int | float", {"anyOf": [{"type": "integer"}, {"type": "number"}]}),
        ("Union[int, int]", {"type": "integer"}),
        ("Union[int, Any]", {}),
        ("Literal['a', 2]", {"enum": ["a", 2]}),
        ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
        ("Tuple[int, str]", {"type": "array"}),
        ("List[" * 40 + "int" + "]" * 40, None),
        ("[" * 5000, {}),
    ],
)
def test_python_types(text, schema):
    assert from_python_type(text) == schema or schema is None


def test_bfcl_types():
    made = from_bfcl(
        {
            "type": "dict",
            "required": ["type"],
            "properties": {
                "type": {"type": "String", "optional": True},
                "x": {"type": "float"},
                "at": {"type": "tuple", "items": {"type": "long"}},
                "any": {"type": "any"},
                "kinds": {"type": "array", "items": {"type": "string"}, "enum": ["a", "b"]},
                "map": {"type": "HashMap", "additionalProperties": {"type": "char"}},
            },
        }
    )
    assert made["type"] == "object" and {name: schema.get("type") for name, schema in made["properties"].items()} == {
        "type": "string",
        "x": "number",
        "at": "array",
        "any": None,
        "kinds": "array",
        "map": "object",
    }
    assert made["properties"]["at"]["items"] == {"type": "integer"} and made["properties"]["map"][
        "additionalProperties"
    ] == {"type": "string"}
    assert (
        made["properties"]["kinds"]["items"] == {"type": "string", "enum": ["a", "b"]}
        and "enum" not in made["properties"]["kinds"]
    )


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ({"city": ["Rome", "Roma"]}, {"city": "Rome"}),
        ({"nights": ["two", 2]}, {"nights": 2}),  # the first that the schema accepts
        ({"nights": ["", 2]}, {}),
        ({"nights": [2, ""]}, {"nights": 2}),
        ({"nights": [""]}, {}),  # "": may be left out
        ({"note": [""]}, {"note": ""}),
        ({"note": ["", "x"]}, {"note": "x"}),  # unless it is required
        ({"list": [[1, 2], [2, 1]]}, {"list": [1, 2]}),
        ({"list": [[]]}, {"list": []}),
        ({"who": [{"age": [30, 31], "name": ["", "Al"]}]}, {"who": {"age": 30}}),  # alternatives again, inside
        ({"who": [{"age": [30], "tags": [["a"]]}]}, {"who": {"age": 30, "tags": ["a"]}}),
        ({"who": [{"tags": ["a", "b"]}]}, {"who": {"tags": ["a", "b"]}}),
        ({"rooms": [[{"beds": [2, 3]}, {"beds": [1]}]]}, {"rooms": [{"beds": 2}, {"beds": 1}]}),
        ({"unknown": [1]}, {"unknown": 1}),
        ({}, {}),
    ],
)
def test_bfcl_takes_the_first_alternative_that_fits(expected, arguments):
    made = from_bfcl_record(
        {
            "question": [[{"role": "user", "content": "q"}]],
            "function": [FUNCTION],
            "ground_truth": [{"a.book": expected}] * 2,
        },
        "x",
    )
    assert [call["function"] for call in made["messages"][-1]["tool_calls"]] == [
        {"name": "a.book", "arguments": arguments}
    ] * 2


def test_bfcl_truth_as_python_calls():
    record = read(
        {
            "id": "e",
            "question": "q",
            "function": FUNCTION,
            "ground_truth": ["a.book('Rome', nights=-2, who={'t': (1, None)})"],
        }
    )
    assert calls_of(record) == [
        {"name": "a.book", "arguments": {"city": "Rome", "nights": -2, "who": {"t": [1, None]}}}
    ]
