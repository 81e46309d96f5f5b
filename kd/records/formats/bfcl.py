"""BFCL records: a question, the functions offered, and for each expected call the values that count as right.

The truth is in a second file (`possible_answer/`, the same name), joined by id in kd/records/files.py; here it is
`ground_truth`:

    [{"hotel.book": {"city": ["Rome"], "nights": [2, "two"], "floor": ["", 1]}}]       every argument lists its
                                                                                       alternatives
    ["hotel.book(city='Rome', nights=2)"]                                              or the calls, as Python

`meta.bfcl` keeps functions and truth as they are: an evaluation judges by them (kd/evaluation/bfcl_rules/).

The value taken is the first alternative that the function's schema accepts. "" means that the argument may be left out:
it is, where "" comes first or nothing else is listed, unless the schema requires it. An object lists alternatives for
each of its keys in turn.
"""

from __future__ import annotations

import ast
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from kd.records.checks import DataError
from kd.records.formats.format import Format
from kd.records.formats.schemas import from_bfcl

_LEFT_OUT = object()


def from_bfcl_record(data: dict, where: str) -> dict:
    """Convert one BFCL record with its `ground_truth`; see Format.convert.

    Raises:
        DataError: no function, no truth, or a dialogue of several turns, whose results are in no file.
    """
    question = data.get("question")
    if isinstance(question, list) and question and isinstance(question[0], list):
        if len(question) > 1:
            raise DataError(
                f"{where}: question: a dialogue of {len(question)} turns has no tool results in BFCL's files, so it "
                "cannot be trained on"
            )
        question = question[0]
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    functions = data.get("function")
    functions = [functions] if isinstance(functions, dict) else functions
    if (
        not isinstance(functions, list)
        or not functions
        or not all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions)
    ):
        raise DataError(f"{where}: function: a function, or a list of them, each with a name, is needed")
    declared = functions
    functions = [{**f, "parameters": from_bfcl(f.get("parameters") or {})} for f in declared]
    truth = next((data[key] for key in ("ground_truth", "possible_answer", "possible_answers") if key in data), None)
    if truth is None:
        raise DataError(
            f"{where}: ground_truth: none, and no possible_answer file has this id: there is nothing to train on; "
            "give that file too"
        )
    calls = _calls(truth, functions, where)
    if not isinstance(question, list) or not calls:
        lacks = (
            "ground_truth: no call expected" if isinstance(question, list) else "question: text or messages are needed"
        )
        raise DataError(f"{where}: {lacks}: there is nothing to train on")
    answer = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": f"call_{index}", "type": "function", "function": call} for index, call in enumerate(calls)
        ],
    }
    chat = {
        "messages": [*question, answer],
        "tools": [{"type": "function", "function": function} for function in functions],
    }
    meta = data.get("meta") or {}
    if isinstance(meta, dict) and isinstance(truth, list) and all(isinstance(one, dict) for one in truth):
        chat["meta"] = {**meta, "bfcl": {"functions": declared, "ground_truth": truth}}
    return chat


def _calls(truth: Any, functions: list[dict], where: str) -> list[dict]:
    by_name = {function["name"]: function["parameters"] for function in functions}
    calls = []
    for index, expected in enumerate(truth if isinstance(truth, list) else [truth]):
        spot = f"{where}: ground_truth[{index}]"
        if isinstance(expected, str):
            calls.append(read_python_call(expected, by_name, spot))
            continue
        if not isinstance(expected, dict) or not expected:
            raise DataError(
                f"{spot}: a call is an object {{name: {{argument: [values]}}}} or Python text, not "
                f"{type(expected).__name__}"
            )
        for name, arguments in expected.items():
            if arguments is None:  # of a columnar table
                continue
            if not isinstance(arguments, dict):
                raise DataError(f"{spot}.{name}: an object of arguments is needed, not {type(arguments).__name__}")
            calls.append({"name": name, "arguments": _object(arguments, by_name.get(name) or {})})
    return calls


def _object(alternatives: dict, schema: Any) -> dict:
    schema = schema if isinstance(schema, dict) else {}
    properties = schema.get("properties") if isinstance(schema.get("properties"), dict) else {}
    required = schema.get("required") if isinstance(schema.get("required"), list) else []
    chosen = {
        key: _value(options, properties.get(key), key in required)
        for key, options in alternatives.items()
        if options is not None
    }
    return {key: value for key, value in chosen.items() if value is not _LEFT_OUT}


def _value(options: Any, schema: Any, required: bool) -> Any:
    if not isinstance(options, list):
        return options  # a plain value, as inner objects hold them here and there
    listed = [option for option in options if option != ""]
    if not listed:
        return "" if required or not options else _LEFT_OUT
    if options[0] == "" and not required:
        return _LEFT_OUT
    readings = [reading for option in listed for reading in _readings(option, schema)]
    readings.append(options)  # an inner object may hold a list that is itself the value
    return next((reading for reading in readings if _accepts(schema, reading)), readings[0])


def _readings(option: Any, schema: Any) -> list[Any]:
    """Read an alternative as a value: an object's own values are alternatives again, or, failing the schema, what they
    are.
    """
    if isinstance(option, dict):
        return [_object(option, schema), option]
    if isinstance(option, list) and any(isinstance(item, dict) for item in option):
        items = schema.get("items") if isinstance(schema, dict) else None
        return [[_object(item, items) if isinstance(item, dict) else item for item in option], option]
    return [option]


def _accepts(schema: Any, value: Any) -> bool:
    if not isinstance(schema, dict):
        return True
    try:
        return Draft202012Validator(schema).is_valid(value)
    except (SchemaError, TypeError, ValueError, AttributeError):
        return True  # the declaration is broken: kd/toolcalls/registry.py names it


def read_python_call(text: str, by_name: dict[str, Any], where: str) -> dict:
    """Read a call written in Python: keywords, or positions in the order of the schema's properties."""
    try:
        if len(text) > 100_000:
            raise ValueError("too long")
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call):
            raise ValueError("no call")
        name = ast.unparse(node.func)
        order = list((by_name.get(name) or {}).get("properties") or {})
        if len(node.args) > len(order):
            raise ValueError("more values than the function has arguments")
        arguments = {key: ast.literal_eval(value) for key, value in zip(order, node.args)}
        arguments |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: {text[:80]!r} is no Python call with literal values ({error})") from None
    return {"name": name, "arguments": _plain(arguments, where)}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner, where) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, where) for inner in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise DataError(f"{where}: {value!r} is no JSON value")


def is_bfcl_record(data: dict) -> bool:
    """Tell a question, with its functions or its truth, from other records."""
    return "question" in data and ("function" in data or "ground_truth" in data or "involved_classes" in data)


FORMAT = Format(detect=is_bfcl_record, convert=from_bfcl_record, order=40)
