"""Registries refuse what they cannot hold, validation says what to change, and calls are read as JSON, not as text."""

import json

import pytest

from kd.toolcalls.json_values import same_json
from kd.toolcalls.reader import HERMES
from kd.toolcalls.registry import ToolRegistry

DEFAULT_CALLS = {
    "web.search": {"q": "ZeRO-3", "top_k": 5},
    "web.open": {"url": "https://example.org/a"},
    "read_file": {"path": "a.txt", "start_line": 1},
    "repo.read": {"path": "src/a.py", "ref": "main"},
    "file.write": {"path": "a.txt", "content": "", "mode": "append"},
    "code.execute": {"language": "python", "code": "print({'a': 1})", "timeout_s": 2.5},
}


def problem(arguments, parameters):
    registry = ToolRegistry([{"name": "t", "parameters": parameters}])
    return " | ".join(registry.validate_call("t", arguments))


def test_the_default_tools_take_valid_calls():
    registry = ToolRegistry.default()
    assert set(registry.names) == set(DEFAULT_CALLS)
    assert {
        name: registry.validate_call(name, arguments) for name, arguments in DEFAULT_CALLS.items()
    } == dict.fromkeys(DEFAULT_CALLS, [])


@pytest.mark.parametrize("name, arguments", DEFAULT_CALLS.items())
def test_the_default_tools_refuse_an_empty_and_a_misspelt_call(name, arguments):
    registry = ToolRegistry.default()
    assert all("is missing" in text for text in registry.validate_call(name, {})) and registry.validate_call(name, {})
    assert "unknown argument 'pathh'" in registry.validate_call(name, {**arguments, "pathh": "x"})[0]


@pytest.mark.parametrize(
    "value, kind, ok",
    [
        (True, "integer", False),
        (True, "number", False),
        (1, "integer", True),
        (1.0, "integer", True),
        (1.5, "integer", False),
        (1, "number", True),
        ("1", "integer", False),
        (1, "boolean", False),
        (None, "string", False),
        ([], "object", False),
    ],
)
def test_types_are_those_of_json(value, kind, ok):
    said = problem({"x": value}, {"type": "object", "properties": {"x": {"type": kind}}})
    assert said == "" if ok else said == f"t: argument 'x' must be {kind}, not {json.dumps(value)}"


def test_problems_name_the_place_and_the_remedy():
    inner = {"type": "object", "properties": {"unit": {"enum": ["celsius", "kelvin"]}}, "required": ["unit"]}
    parameters = {"type": "object", "properties": {"days": {"type": "array", "items": inner}}, "required": ["days"]}
    assert "argument 'days[1].unit' must be one of" in problem(
        {"days": [{"unit": "kelvin"}, {"unit": "celsus"}]}, parameters
    )
    assert "did you mean 'celsius'?" in problem({"days": [{"unit": "celsus"}]}, parameters)
    assert "argument 'days[0].unit' is missing" in problem({"days": [{}]}, parameters)
    assert "unknown argument 'days[0].units'; did you mean 'unit'?" in problem(
        {"days": [{"unit": "kelvin", "units": 1}]}, parameters
    )
    assert "unknown argument 'day'; did you mean 'days'?" in problem({"days": [], "day": 1}, parameters)
    assert "fits none of its alternatives" in problem(
        {"a": []}, {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}
    )


def test_all_missing_arguments_are_named_once():
    said = problem({}, {"type": "object", "properties": {}, "required": ["a", "b", "a b"]})
    assert said == "t: argument 'a' is missing | t: argument 'b' is missing | t: argument 'a b' is missing"


def test_an_unknown_tool_is_answered_with_the_nearest():
    said = ToolRegistry.default().validate_call("web.serch", {})
    assert len(said) == 1 and "did you mean 'web.search'?" in said[0] and "code.execute" in said[0]
    assert "offered: none" in ToolRegistry([]).validate_call("x", {})[0]


@pytest.mark.parametrize("arguments", [[], "{}", None, 1])
def test_arguments_that_are_no_object_are_refused(arguments):
    assert "must be a JSON object" in problem(arguments, {"type": "object"})


@pytest.mark.parametrize(
    "parameters, open_",
    [
        ({"type": "object", "properties": {"a": {}}}, False),
        ({"type": "object", "properties": {}}, False),
        ({}, False),
        (None, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, True),
        ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^x": {}}}, True),
        ({"allOf": [{"properties": {"extra": {}}}], "properties": {"a": {}}}, True),
        ({"type": "object"}, True),
    ],
)
def test_a_schema_that_lists_its_arguments_is_closed(parameters, open_):
    assert (problem({"extra": 1}, parameters) == "") is open_


def test_read_by_the_letter_an_unlisted_argument_is_valid_and_a_wrong_one_is_not():
    registry = ToolRegistry([{"name": "t", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}])
    assert registry.validate_call("t", {"b": 1}) and registry.validate_call("t", {"b": 1}, closed=False) == []
    assert registry.validate_call("t", {"a": True}, closed=False) == ["t: argument 'a' must be integer, not true"]


def test_a_schema_that_never_ends_is_a_problem_with_the_tool_and_no_crash():
    parameters = {"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"$ref": "#/$defs/n"}}}
    found = problem({"x": "word"}, parameters)
    assert found.startswith("tool 't': these arguments cannot be checked") and "RecursionError" in found


SLOW = r"^(a|aa)+$"


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"properties": {"x": {"pattern": SLOW}}}, {"x": "a" * 80 + "!"}),
        ({"patternProperties": {SLOW: {}}, "additionalProperties": False}, {"a" * 80 + "!": 1}),
        ({"propertyNames": {"pattern": SLOW}}, {"a" * 80 + "!": 1}),
    ],
)
def test_a_pattern_that_takes_exponential_time_is_a_problem_with_the_tool_and_no_hang(parameters, arguments):
    assert (
        f"tool 't': these arguments cannot be checked by its schema (ValueError: the pattern '{SLOW}' takes more"
        in (problem(arguments, parameters))
    )


def test_names_are_checked_by_their_patterns():
    parameters = {"patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False}
    assert problem({"n_a": 1, "n_b": 2}, parameters) == ""
    assert "argument 'n_a' must be integer" in problem({"n_a": "x"}, parameters)
    assert "unknown argument 'm'" in problem({"n_a": 1, "m": 1}, parameters)


def test_of_thousands_of_unknown_arguments_some_are_named():
    assert problem({f"k{i}": 1 for i in range(10_000)}, {"properties": {"a": {}}}).count("unknown argument") == 20


@pytest.mark.parametrize("pattern", ["(", r"\p{L}"])  # the second is right in JavaScript
def test_a_pattern_that_cannot_be_read_is_found_before_any_call(pattern):
    with pytest.raises(ValueError, match="tool 't': its parameters are not a JSON Schema: at properties/x/pattern"):
        problem({"x": "word"}, {"properties": {"x": {"pattern": pattern}}})


HUGE = int("3" * 330)


@pytest.mark.parametrize(
    ("value", "factor", "right"),
    [
        (HUGE, 0.5, True),  # past every float
        (HUGE, 0.1, True),
        (HUGE, 1e-3, True),
        (HUGE, 7.5, HUGE % 15 == 0),
        (HUGE, 2, False),
        (float("inf"), 0.5, False),  # what 1e999 was read as
        (float("nan"), 0.5, False),
        (0.75, 0.5, False),
        (1.5, 0.5, True),
    ],
)
def test_a_multiple_is_found_for_any_number(value, factor, right):
    found = problem({"x": value}, {"type": "object", "properties": {"x": {"multipleOf": factor}}})
    assert (found == "") is right, found


def test_a_long_value_does_not_fill_the_message():
    said = problem({"x": "y" * 10**6}, {"properties": {"x": {"maxLength": 3}}})
    assert len(said) < 300 and said.startswith("t: argument 'x': 'yyy") and said.endswith("is too long")


def test_a_record_keeps_its_schema_after_validation():
    parameters = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    problem({"a": {}}, parameters)
    assert "additionalProperties" not in json.dumps(parameters)


@pytest.mark.parametrize(
    "tools, match",
    [
        ([{"description": "no name"}], 'a tool needs a "name"'),
        (["web.search"], 'a tool needs a "name"'),
        ([{"name": "a", "parameters": {"type": "strin"}}], "tool 'a': its parameters are not a JSON Schema"),
        ([{"name": "a", "description": "1"}, {"name": "a", "description": "2"}], "tool 'a' is defined twice"),
    ],
)
def test_broken_tools_are_refused_by_name(tools, match):
    with pytest.raises(ValueError, match=match):
        ToolRegistry(tools)


def test_a_reference_is_never_fetched(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    registry = ToolRegistry([{"name": "a", "parameters": {"$ref": (tmp_path / "other.json").as_uri()}}])
    assert "put it under $defs" in registry.validate_call("a", {})[0]


def test_tools_are_read_from_files_and_folders(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"type": "function", "function": {"name": "one"}}))
    (tmp_path / "more.yaml").write_text(
        "tools:\n- name: two\n  parameters: {type: object, properties: {n: {type: integer}}}\n- name: three\n"
    )
    (tmp_path / "README.md").write_text("not a tool")
    assert sorted(ToolRegistry.load(tmp_path).names) == ["one", "three", "two"]
    assert ToolRegistry.load(tmp_path / "more.yaml").validate_call("two", {"n": True})
    with pytest.raises(ValueError, match="no such file"):
        ToolRegistry.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no tool files here"):
        ToolRegistry.load(tmp_path / "empty")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json: cannot be read as json"):
        ToolRegistry.load(tmp_path)


def block(text):
    return f"<tool_call>{text}</tool_call>"


@pytest.mark.parametrize(
    "value",
    [
        "}",
        "{",
        '"',
        "\\",
        '\\"}',
        "</tool_call>",
        "<tool_call>{}",
        "é\u2028\n",
        '{"name": "x"}',
        {"a": {"b": {"c": [{}, [[]]]}}},
        1e-7,
    ],
)
def test_any_json_value_survives_in_an_argument(value):
    call = {"name": "f", "arguments": {"x": value}}
    text = f"So: {block(json.dumps(call))} and\n{block(' ' + json.dumps(call, ensure_ascii=False, indent=1) + ' ')}."
    parsed = HERMES.parse(text)
    assert parsed.calls == [call, call] and parsed.problems == [] and parsed.valid
    assert parsed.text_outside == "So:  and\n."
    assert [text[a:b].startswith("<tool_call>") and text[a:b].endswith("</tool_call>") for a, b in parsed.spans] == [
        True,
        True,
    ]


GOOD = '{"name": "f", "arguments": {}}'


@pytest.mark.parametrize(
    "text, problem, repairable",
    [
        (f"<tool_call>{GOOD}", "not closed", True),
        ('<tool_call>{"name": "f", "arguments": {"x": "unend', "not closed", True),
        (block(GOOD + "}"), "text after the JSON", True),
        (block(GOOD[:-1]), "not valid JSON", True),
        (block("{'name': 'f', 'arguments': {}}"), "not valid JSON", True),
        (block('{"name": "f", "arguments": {"x": NaN}}'), "NaN is not JSON", False),
        (block('{"name": "f", "name": "g", "arguments": {}}'), "names a key twice", True),
        (block(f"[{GOOD}]"), "one JSON object", False),
        (block('{"name": "f"}'), 'no object "arguments"', False),
        (block('{"name": "f", "arguments": "{}"}'), 'no object "arguments"', False),
        (block('{"name": 1, "arguments": {}}'), 'no string "name"', False),
        (block(""), "not valid JSON", False),
        ("<tool_call>", "not closed", False),
        ("<tool_call>" + "[" * 50_000, "not valid JSON", False),
        (block('{"name": "f", "arguments": {"x": ' + "[" * 200 + "]" * 200 + "}}"), "nested deeper", False),
        (block('{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}"), "", None),
    ],
)
def test_a_block_that_is_not_a_call_is_a_problem_and_never_a_call(text, problem, repairable):
    parsed = HERMES.parse(text)
    if repairable is None:  # Python 3.10 before 3.10.7 has no limit on digits; either way nothing may be raised
        return
    assert parsed.calls == [] and len(parsed.problems) == len(parsed.spans) == 1 and not parsed.valid
    assert problem in parsed.problems[0]
    assert parsed.valid_after_repair is repairable


def test_a_broken_block_does_not_swallow_the_next():
    parsed = HERMES.parse(f"<tool_call>{{ {block(GOOD)} tail")
    assert len(parsed.calls) == 1 and len(parsed.spans) == 2 and parsed.text_outside == "tail"
    assert not parsed.valid and not parsed.valid_after_repair


def test_text_without_blocks_calls_nothing():
    parsed = HERMES.parse(f"{GOOD} </tool_call>")
    assert (parsed.calls, parsed.problems, parsed.spans, parsed.valid, parsed.valid_after_repair) == (
        [],
        [],
        [],
        False,
        False,
    )


@pytest.mark.parametrize(
    "left, right, same",
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (True, True, True),
        (None, False, False),
        ("1", 1, False),
        ({"a": 1, "b": [1]}, {"b": [1.0], "a": 1}, True),
        ({"a": [True]}, {"a": [1]}, False),
        ([1, 2], [2, 1], False),
        ([], {}, False),
        ({"a": None}, {}, False),
        ([1], [1, 2], False),
        (2**53, 2**53 + 1, False),
    ],
)
def test_equality_is_that_of_json(left, right, same):
    assert same_json(left, right) is same and same_json(right, left) is same


_DEEP = '{"properties": {"a": ' * 300 + "{}" + "}}" * 300
_BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh")
)
_BROKEN = ["[" * 100_000, "\x00", "{", f'{{"name": "t", "parameters": {_DEEP}}}', '{"name": "t\\ud800"}']


@pytest.mark.parametrize("text", [*_BROKEN, "name: t\n" + _BOMB])
@pytest.mark.parametrize("name", ["tools.json", "tools.yaml"])
def test_a_damaged_file_of_tools_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: cannot be read as"):
        ToolRegistry.load(tmp_path / name)


def test_what_is_no_file_of_tools_is_not_read():
    with pytest.raises(ValueError, match="/dev/zero: no file of tools"):
        ToolRegistry.load("/dev/zero")


def test_a_description_is_text(tmp_path):
    (tmp_path / "tools.json").write_text('{"name": "t", "description": 5}')
    with pytest.raises(ValueError, match="tools.json: tool 't': its description is no text: write one"):
        ToolRegistry.load(tmp_path / "tools.json")
