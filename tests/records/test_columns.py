"""What columnar tables do to values, undone in every kind of file where the schema says so, in prompt and target."""

from __future__ import annotations

import json

import pytest

from helpers.record_cases import items
from kd.records.columns import clean_declaration, restore_integers
from kd.toolcalls.registry import ToolRegistry


def tool(name: str, **properties) -> dict:
    parameters = {"type": "object", "properties": properties, "required": [k for k, v in properties.items() if v]}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


def call(name: str, **arguments) -> dict:
    return {"id": "a", "type": "function", "function": {"name": name, "arguments": arguments}}


TEXT, NUMBER = {"type": "string"}, {"type": "number"}
WEATHER = tool("weather", city=TEXT)
RECORD = {
    "id": "t",
    "tools": [tool("weather", city=TEXT, amount=None), tool("convert", city=None, amount=NUMBER)],
    "messages": [
        {"role": "user", "content": "q", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call("weather", city="Quint", amount=None)]},
    ],
}
CLEAN = {
    "tools": [WEATHER, tool("convert", amount=NUMBER)],
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call("weather", city="Quint")]},
    ],
}
AS_TEXT = json.loads(json.dumps(RECORD))
AS_TEXT["tools"] = json.dumps(AS_TEXT["tools"])
AS_TEXT["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Quint", "amount": null}'
SHAREGPT = {
    "tools": json.dumps(RECORD["tools"]),
    "messages": None,
    "conversations": [
        {"from": "human", "value": "q"},
        {
            "from": "function_call",
            "value": json.dumps({"name": "weather", "arguments": {"city": "Quint", "amount": None}}),
        },
    ],
}


def write(path, record: dict) -> None:
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(record) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps([record], indent=1))
    else:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("datasets")
        table = pa.Table.from_pylist([record])
        if path.suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "arrow"])
@pytest.mark.parametrize("record", [RECORD, AS_TEXT, SHAREGPT], ids=["objects", "text", "sharegpt"])
def test_one_record_is_the_same_in_every_kind_of_file(record, suffix, tmp_path):
    path = tmp_path / f"d.{suffix}"
    write(path, record)
    (item,) = items(path)
    assert item.reason == "" and item.notes == ("nulls",)
    assert item.record.tools == CLEAN["tools"]
    assert [m["content"] for m in item.record.messages] == ["q", ""]
    (made,) = item.record.messages[1]["tool_calls"]
    assert made["function"] == CLEAN["messages"][1]["tool_calls"][0]["function"]


NULLABLE = {"type": ["string", "null"]}
ARGUMENTS = [  # schema of the property `to`, arguments, what is left
    (NULLABLE, {"to": None}, {"to": None}),  # a null that the schema allows
    ({"anyOf": [TEXT, {"type": "null"}]}, {"to": None}, {"to": None}),
    ({}, {"to": None}, {"to": None}),
    (TEXT, {"to": None}, {}),
    ({"enum": ["a", None]}, {"to": None}, {"to": None}),
    ({"enum": ["a"]}, {"to": None}, {}),
    (TEXT, {"to": "a", "other": None}, {"to": "a"}),  # an argument of another tool
    (TEXT, {"other": 1}, {"other": 1}),  # it is no null: for the check of arguments
    ({"type": "object", "properties": {"x": TEXT}}, {"to": {"x": None, "y": None}}, {"to": {}}),
    ({"type": "array", "items": {"type": "object", "properties": {"x": TEXT}}}, {"to": [{"x": None}]}, {"to": [{}]}),
    ({"type": "array", "items": TEXT}, {"to": ["a", None]}, {"to": ["a", None]}),  # items are no keys of a struct
    ({"type": "object", "properties": {}, "additionalProperties": True}, {"to": {"z": None}}, {"to": {"z": None}}),
    (
        {"type": "object", "patternProperties": {"^z": NULLABLE}, "additionalProperties": False},
        {"to": {"z": None, "y": None}},
        {"to": {"z": None}},
    ),
]


@pytest.mark.parametrize(("schema", "arguments", "left"), ARGUMENTS)
def test_the_schema_decides_on_a_null_in_the_arguments(schema, arguments, left):
    declared = tool("f", to=schema)
    declared["function"]["parameters"]["required"] = []
    assert ToolRegistry([declared]).drop_nulls("f", arguments) == left


def test_a_null_for_a_required_argument_stays_to_be_refused(tmp_path):
    record = {
        **CLEAN,
        "messages": [CLEAN["messages"][0], {"role": "assistant", "tool_calls": [call("weather", city=None)]}],
    }
    write(tmp_path / "d.jsonl", record)
    (item,) = items(tmp_path / "d.jsonl")
    assert item.record is None and "messages[1]: weather: argument 'city' must be string, not null" in item.reason


def test_nulls_of_a_declaration_say_nothing_but_for_these():
    kept = {
        "type": "object",
        "properties": {
            "a": {"type": ["string", "null"], "default": None},
            "b": {"enum": ["x", None], "default": "x"},
            "c": {"const": None},
            "default": {"type": "string"},
        },
        "required": ["a"],
    }
    filled = json.loads(json.dumps(kept))
    filled |= {"enum": None, "$defs": {"d": None}, "items": None}
    filled["properties"] |= {"e": None, "f": {"type": None, "enum": None}}
    filled["properties"]["default"] |= {"default": None, "const": None, "description": None, "items": {"type": None}}
    declared = {"type": "function", "function": {"name": "f", "strict": None, "parameters": filled}}
    clean = clean_declaration(declared)
    assert clean["function"] == {"name": "f", "parameters": kept | {"$defs": {}}}
    assert clean_declaration(clean) is not None and clean_declaration(CLEAN["tools"][0]) is CLEAN["tools"][0]


def test_tables_of_other_formats(tmp_path):
    xlam = {
        "query": "q",
        "tools": [{"name": "f", "parameters": {"n": {"type": "int", "default": None}, "m": None}}],
        "answers": [{"name": "f", "arguments": {"n": 1, "m": None}, "parameters": None}],
        "conversations": None,
    }
    bfcl = {
        "question": "q",
        "function": [{"name": "f", "parameters": {"type": "dict", "properties": {"n": {"type": "int"}, "m": None}}}],
        "ground_truth": [{"f": {"n": [1], "m": None}, "g": None}],
    }
    for record in (xlam, bfcl):
        write(tmp_path / "d.jsonl", record)
        (item,) = items(tmp_path / "d.jsonl")
        assert item.reason == ""
        assert list(item.record.tools[0]["function"]["parameters"]["properties"]) == ["n"]
        assert item.record.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"n": 1}


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_struct_with_nulls_needs_tools_to_be_told(suffix, tmp_path):
    path = tmp_path / f"d.{suffix}"
    write(path, {**RECORD, "tools": None})
    (item,) = items(path)
    assert "no tools are offered whose schemas could tell the two apart" in item.reason


WHOLE = {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "given", "restored"),
    [
        (WHOLE, 3.0, 3),
        (WHOLE, 3.5, 3.5),
        (WHOLE, 1e300, int(1e300)),
        ({"type": ["integer", "null"]}, -3.0, -3),
        ({"type": "integer", "enum": [1, 2]}, 2.0, 2),
        ({"anyOf": [WHOLE, TEXT]}, 3.0, 3),
        ({"type": ["integer", "number"]}, 3.0, 3.0),
        (NUMBER, 3.0, 3.0),
        ({}, 3.0, 3.0),
        (True, 3.0, 3.0),
        (None, 3.0, 3.0),
        ({"type": "array", "items": WHOLE}, [1.0, 2], [1, 2]),
        ({"type": "object", "properties": {"a": WHOLE}}, {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1.0}),
    ],
)
def test_the_schema_decides_on_a_whole_fraction(schema, given, restored):
    found = restore_integers(given, schema)
    assert json.dumps(found) == json.dumps(restored)


def test_whole_fractions_are_integers_in_every_kind_of_file(tmp_path):
    """One record with a fraction makes fractions of all the others in its column."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tools = [tool("weather", days=WHOLE, share=NUMBER)]
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call("weather", days=3, share=2.5)]}]
    rows = [{"id": "a", "tools": tools, "messages": said}]
    rows.append(json.loads(json.dumps(rows[0]).replace('"days": 3,', '"days": 3.0,')))
    rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"]["share"] = 2.0
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("d.parquet", "d.jsonl"):
        found = list(items(tmp_path / name))
        for item, share in zip(found, ("2.5", "2.0"), strict=True):
            assert item.reason == ""
            arguments = item.record.messages[1]["tool_calls"][0]["function"]["arguments"]
            assert json.dumps(arguments) == f'{{"days": 3, "share": {share}}}'
        assert "integers" in found[1].notes
