"""Damaged text: parsed in linear time, never raised on, and never taken for more than its grammar allows."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from kd.records.checks import DataError
from kd.records.formats.chatml import from_chatml
from kd.toolcalls.reader import HERMES
from kd.toolcalls.syntax.strict_json import MAX_MENDED, Mender
from kd.toolcalls.syntax.typed import NO_VALUE, read_literal, read_typed


def block(arguments: str, name: str = '"f"') -> str:
    return f'<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (block('{"x": 1e999}'), False),  # not a number that can be held
        (block('{"x": -1e999}'), False),
        (block('{"x": "\\ud800"}'), False),  # half a surrogate pair cannot be written as UTF-8
        (block("{}", name='"f\\udc00"'), False),
        (block('{"\\ud800": 1}'), False),
        (block('{"x": "\\ud83d\\ude00"}'), True),
        (block('{"x": ' + "123" * 10 + "}"), True),  # a large integer stays exact
        (block('{"x": ' + "9" * 330 + "}"), True),
        (block('{"x": 1, "x": 2}'), False),
        (block('{"x": 0.1e-400}'), True),  # underflows to 0.0
        (block("{}"), True),
        (block('"{}"'), False),
        ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', False),  # another family's key
        (block("{}") + '<tool_call>\n{"name": "g"', False),
        (block('{"x": "a</tool_call>b"}'), True),
        (block("[" * 100_000), False),
    ],
)
def test_what_is_valid(text, valid):
    parsed = HERMES.parse(text)
    assert parsed.valid is valid
    json.dumps([parsed.calls, parsed.problems, parsed.repaired_calls], allow_nan=False, ensure_ascii=False).encode()


PIECES = ["<tool_call>", "<tool_call>{", '<tool_call>{"a":"', "{", "1", "a:", '"', '{"a" ', 'a"b', "[", " ", "\\", "\n"]


def measure(run, *sizes: int) -> list[float]:
    taken = []
    for size in sizes:
        start = time.process_time()
        run(size)
        taken.append(time.process_time() - start)
    return taken


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_with_the_text(piece):
    def parse(size: int) -> None:
        HERMES.parse("<tool_call>" + (piece * size)[:size])

    short, long = measure(parse, 50_000, 200_000)
    assert long < max(4 * 2.5 * short, 0.2) and short < 1


def test_mending_is_for_short_blocks():
    broken = "{'name': 'f', 'arguments': {}}"
    assert Mender().mend(broken) == {"name": "f", "arguments": {}}
    assert Mender().mend(broken + " " * MAX_MENDED) is None
    mender = Mender()
    assert [mender.mend(broken + " " * 3900) is not None for _ in range(4)] == [True, True, False, False]
    assert Mender().mend("{" * 100) is None  # nests past any honest call


@pytest.mark.parametrize(
    "piece", ["<|im_start|>user\nhi ", "<|im_start|>", "<|im_start|>user\n<|im_end|>", "<tools>a "]
)
def test_chatml_is_read_in_linear_time(piece):
    def read(size: int) -> None:
        with contextlib.suppress(DataError):
            from_chatml({"text": "<|im_start|>system\n" + (piece * size)[:size] + "<|im_end|>"}, "x")

    short, long = measure(read, 100_000, 400_000)
    assert long < max(4 * 2.5 * short, 0.3) and short < 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("true", True),
        ("True", True),
        ("None", None),
        ("{'a': (1, 2)}", {"a": [1, 2]}),
        ("{'a': 1, 'a': 2}", NO_VALUE),
        ("1e999", NO_VALUE),
        ("NaN", NO_VALUE),
        ("{1: 2}", NO_VALUE),
        ("'\\ud800'", NO_VALUE),
        ("b'x'", NO_VALUE),
        ("{1, 2}", NO_VALUE),
        ("f()", NO_VALUE),
        *((text, NO_VALUE) for text in ("(3)", "+3", "-+3", "0x10", "1_000", "1, 2", "()")),
        *((text, NO_VALUE) for text in ("3.", ".5", "(True)", "...")),
        ("9" * 6000, NO_VALUE),
        ("[" * 5000, NO_VALUE),
    ],
)
def test_a_literal_is_jsons_or_pythons(text, value):
    assert read_literal(text) is value or read_literal(text) == value


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "string"}, "5"),
        ("5", {"type": "integer"}, 5),
        ("5", None, 5),
        ("five", {"type": "integer"}, "five"),  # the schema's check says what is wrong
        ("5", {"type": ["string", "null"]}, "5"),
        ("null", {"type": ["string", "null"]}, None),
        ("null", {"type": "string"}, "null"),
        ("5", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 5),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("5", {"enum": [5, 6]}, 5),
        ('"a"', {"type": "string"}, '"a"'),
        ("[1]", {"type": "array"}, [1]),
    ],
)
def test_a_value_has_the_type_that_its_schema_allows(text, schema, value):
    assert read_typed(text, schema) == value
