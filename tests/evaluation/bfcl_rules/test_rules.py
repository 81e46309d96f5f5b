"""BFCL's rules on entries made up here; test_agreement.py holds them against its checker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.evaluation.bfcl_rules.answer import judge_calls
from kd.evaluation.bfcl_rules.entry import Entry, find_entry, make_entry, read_entry
from kd.evaluation.bfcl_rules.literals import read_java, read_javascript
from kd.evaluation.bfcl_rules.reading import read_as_bfcl
from kd.records.record import Record, parse_record
from kd.toolcalls.reader import HERMES


def function(name: str, *required: str, **kinds) -> dict:
    properties = {key: kind if isinstance(kind, dict) else {"type": kind} for key, kind in kinds.items()}
    return {"name": name, "parameters": {"type": "dict", "properties": properties, "required": list(required)}}


def call(name: str, **arguments) -> dict:
    return {"name": name, "arguments": arguments}


TRIP = function(
    "trip.plan",
    "city",
    "days",
    city="string",
    days="integer",
    budget="float",
    stops={"type": "array", "items": {"type": "string"}},
    limits={"type": "array", "items": {"type": "float"}},
    guest="dict",
    guests={"type": "array", "items": {"type": "dict"}},
    quiet="boolean",
    mode="any",
    start="string",
)
ALLOWED = {
    "trip.plan": {
        "city": ["Oslo", "Oslo, Norway"],
        "days": [3],
        "budget": [100.0, ""],
        "stops": [["Ski hut", "Lake"], ""],
        "limits": [[1.5, 2.0], ""],
        "guest": [{"name": ["Ann", "Anna"], "age": [30, ""]}, ""],
        "guests": [[{"name": ["Ann"]}, {"name": ["Bo"]}], ""],
        "quiet": [True, ""],
        "mode": [7, ""],
        "start": ["start_date", 20, ""],
    }
}
BASE = {"city": "Oslo", "days": 3}


def judge(category: str = "simple", **arguments):
    return judge_calls([call("trip.plan", **{**BASE, **arguments})], Entry([TRIP], [ALLOWED], category))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"city": "oslo norway"},  # an alternative, without case and punctuation
        {"city": "O-S_L.O*,/^"},
        {"budget": 100},  # an integer for a float
        {"budget": 100.0},
        {"stops": ["ski hut!".strip("!"), "LAKE"]},
        {"stops": []},  # "" among the allowed is an empty list, too
        {"limits": [1.5, 2.0]},
        {"guest": {"name": "anna"}},  # its age may be left out
        {"guest": {"name": "Ann", "age": 30}},
        {"guests": [{"name": "ann"}, {"name": "bo"}]},
        {"quiet": True},
        {"mode": 7},  # of another type than declared: a variable
        {"start": ""},
        {"start": "StartDate"},
    ],
)
def test_what_is_allowed(arguments):
    assert judge(**arguments) == (True, "", "", True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"days": 5}, "value_error:others"),
        ({"days": 3.0}, "type_error:simple"),  # a float for an integer
        ({"days": "3"}, "type_error:simple"),
        ({"days": True}, "type_error:simple"),
        ({"days": None}, "type_error:simple"),
        ({"city": "Bergen"}, "value_error:string"),
        ({"city": ["Oslo"]}, "type_error:simple"),
        ({"budget": "100"}, "type_error:simple"),
        ({"stops": ["Lake", "Ski hut"]}, "value_error:list/tuple"),  # only in a listed order
        ({"stops": ["Lake", 5]}, "value_error:list/tuple"),  # any list passes as a type where it may be left out
        ({"limits": [1.5]}, "value_error:list/tuple"),
        ({"guest": {"name": "Ann", "pet": 1}}, "value_error:dict_key"),
        ({"guest": {"age": 30}}, "value_error:dict_key"),
        ({"guest": {"name": "Bo"}}, "value_error:dict_value"),
        ({"guest": "Ann"}, "type_error:simple"),
        ({"guests": [{"name": "Bo"}, {"name": "Ann"}]}, "value_error:list_dict_count"),  # what "" says, the last tried
        ({"guests": ["Ann", "Bo"]}, "value_error:list_dict_count"),
        ({"quiet": False}, "value_error:others"),
        ({"quiet": 1}, "type_error:simple"),
        ({"mode": 8}, "value_error:others"),
        ({"mode": "7"}, "value_error:others"),
        ({"colour": "red"}, "simple_function_checker:unexpected_param"),
    ],
)
def test_what_is_not(arguments, error):
    found = judge(**arguments)
    assert (found.valid, found.error, found.fair) == (False, error, False) and found.words


def test_items_of_another_type():
    entry = Entry([TRIP], [{"trip.plan": {"city": ["Oslo"], "days": [3], "limits": [[1.5, 2.0]]}}], "simple")
    for items, error in (([1.5, "2"], "type_error:nested"), ([1, 2], "type_error:nested"), ([1.5, 2.0], "")):
        assert judge_calls([call("trip.plan", **BASE, limits=items)], entry).error == error


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ([], "simple_function_checker:wrong_count"),
        ([call("trip.plan", **BASE)] * 2, "simple_function_checker:wrong_count"),
        ([call("trip_plan", **BASE)], "simple_function_checker:wrong_func_name"),
        ([call("trip.plan", city="Oslo")], "simple_function_checker:missing_required"),
    ],
)
def test_calls_and_names(calls, error):
    assert judge_calls(calls, Entry([TRIP], [ALLOWED], "simple")).error == error


def test_an_argument_that_is_neither_required_nor_optional():
    entry = Entry([function("f", a="integer")], [{"f": {"a": [1]}}], "multiple")
    assert judge_calls([call("f")], entry).error == "simple_function_checker:missing_optional"


ADD = function("add", "a", a="integer")


def parallel(*allowed) -> Entry:
    return Entry([ADD, TRIP], [{"add": {"a": list(values)}} for values in allowed], "parallel")


def test_parallel_calls_come_in_any_order():
    calls = [call("add", a=2), call("add", a=1)]
    assert judge_calls(calls, parallel([1], [2])).valid
    found = judge_calls(calls, parallel([1], [3]))
    assert found.error == "parallel_function_checker_no_order:cannot_find_match" and not found.fair
    assert judge_calls(calls[:1], parallel([1], [2])).error == "parallel_function_checker_no_order:wrong_count"


def test_greedy_matching_is_not_ours():
    """The first wanted call takes the answer that the second needs. BFCL fails it; both verdicts are kept."""
    found = judge_calls([call("add", a=1), call("add", a=2)], parallel([1, 2], [1]))
    assert not found.valid and found.error.endswith("cannot_find_match") and found.fair
    assert not judge_calls([call("add", a=2), call("add", a=2)], parallel([1, 2], [1])).fair


def test_relevance_and_irrelevance():
    none, some = Entry([ADD], [], "irrelevance"), Entry([ADD], [], "relevance")
    assert judge_calls([], none).valid and judge_calls([call("anything")], some).valid
    assert judge_calls([call("add", a=1)], none).error == "irrelevance_error:decoder_success"
    assert judge_calls([], some).error == "relevance_error:decoder_failed"


@pytest.mark.parametrize(
    ("text", "kind", "items", "value"),
    [
        ("12", "integer", None, 12),
        ("12.0", "integer", None, "12.0"),
        ("12L", "long", None, 12),
        ("12", "long", None, "12"),
        ("1.5f", "float", None, 1.5),
        ("1.5", "float", None, "1.5"),
        ("-2e3", "double", None, -2000.0),
        ("true", "boolean", None, True),
        ("True", "boolean", None, "True"),
        ("'x'", "char", None, "'x'"),
        ("obj", "any", None, "obj"),
        ("new int[]{1, 2}", "Array", "integer", [1, 2]),
        ('new String[]{"a"}', "Array", "String", ['"a"']),
        ("int[]{1}", "Array", "integer", "int[]{1}"),
        ('new ArrayList<>(Arrays.asList("a", "b"))', "ArrayList", "String", ["a", "b"]),
        ("new ArrayList<Integer>() {{ add(1); add(2); }}", "ArrayList", "integer", [1, 2]),
        ("new ArrayList<>()", "ArrayList", "integer", []),
        ("[1]", "ArrayList", "integer", "[1]"),
        (
            'new HashMap<>() {{ put("a", 1); put("b", "x"); put("c", 2L); }}',
            "HashMap",
            None,
            {"a": 1, "b": "x", "c": 2},
        ),
        ("new HashMap<String, Integer>()", "HashMap", None, {}),
        ("map", "HashMap", None, "map"),
        ("9" * 5000, "integer", None, "9" * 5000),
    ],
)
def test_java_literals(text, kind, items, value):
    assert read_java(text, kind, items) == value


@pytest.mark.parametrize(
    ("text", "kind", "items", "value"),
    [
        ("'a'", "String", None, "a"),
        ("a", "String", None, "a"),
        ("3", "integer", None, 3),
        ("3n", "Bigint", None, 3),
        ("3", "float", None, 3.0),
        ("1e3", "float", None, "1e3"),
        ("false", "Boolean", None, False),
        ("[1, 2]", "array", "integer", [1, 2]),
        ("new Array('a', 'b')", "array", "String", ["a", "b"]),
        ("[]", "array", "String", []),
        ("[[1, 2], [3, 4]]", "array", "array", [[1, 2], [3, 4]]),
        ("items", "array", "String", "items"),
        ("{a: 1, 'b': true}", "dict", None, {"a": 1, "b": True}),
        ("{a: [1, 2]}", "dict", None, {"a": [1, 2]}),
        ("{}", "dict", None, {}),
        ("thing", "dict", None, "thing"),
    ],
)
def test_javascript_literals(text, kind, items, value):
    assert read_javascript(text, kind, items) == value


@pytest.mark.parametrize(("test_id", "short"), [("simple_java_0", "java"), ("simple_javascript_4", "js")])
def test_other_languages_take_texts_alone(test_id, short):
    entry = read_entry(test_id, [function("f", "n", n="integer")], [{"f": {"n": [5]}}])
    assert judge_calls([call("f", n="5")], entry).valid
    assert judge_calls([call("f", n=5)], entry).error == f"type_error:{short}"
    assert judge_calls([call("f", n="five")], entry).error == "type_error:simple"


@pytest.mark.parametrize(
    ("test_id", "category", "language"),
    [
        ("live_parallel_multiple_0-0-0", "parallel", "python"),
        ("live_multiple_3-1-0", "multiple", "python"),
        ("live_irrelevance_2-0-0", "irrelevance", "python"),
        ("live_relevance_1-0-0", "relevance", "python"),
        ("simple_javascript_3", "simple", "javascript"),
    ],
)
def test_an_id_says_the_category(test_id, category, language):
    entry = read_entry(test_id, [], [])
    assert (entry.category, entry.language) == (category, language)


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "n": {"type": ["null", "number"]},
                "unit": {"type": "string", "default": "m"},
                "tags": {"type": "array"},
                "of": {"type": "object"},
            },
            "required": ["n"],
        },
    },
}


@pytest.mark.parametrize(
    ("wanted", "given", "valid"),
    [
        ({"n": 1.5, "unit": "m"}, {"n": 1.5}, True),  # the default, left out
        ({"n": 1.5}, {"n": 1.5, "unit": "m"}, True),  # or given
        ({"n": 1.5}, {"n": 1.5, "unit": "km"}, False),
        ({"n": 1.5, "unit": "km"}, {"n": 1.5}, False),
        ({"n": 2}, {"n": 2}, True),  # a number that the record writes as an integer
        ({"n": 1, "tags": [1, 2]}, {"n": 1, "tags": [1, 2]}, True),  # items of no declared type
        ({"n": 1, "tags": [{"a": 1}]}, {"n": 1, "tags": [{"a": 1}]}, True),
        ({"n": 1, "of": {"a": [1], "b": {"c": "x"}}}, {"n": 1, "of": {"a": [1], "b": {"c": "x"}}}, True),
        ({"n": 1, "of": {"a": 1}}, {"n": 1, "of": {"a": 1, "b": 2}}, False),
    ],
)
def test_an_entry_of_a_records_own_calls(wanted, given, valid):
    assert judge_calls([call("f", **given)], make_entry([TOOL], [call("f", **wanted)])).valid is valid


def test_a_record_of_bfcl_keeps_its_alternatives():
    data = {
        "id": "simple_python_9",
        "question": [[{"role": "user", "content": "Plan three days."}]],
        "function": [TRIP],
        "ground_truth": [ALLOWED],
        "meta": {"from": "here"},
    }
    record = parse_record(data, "f:1")
    made = [
        {"name": one["function"]["name"], "arguments": one["function"]["arguments"]}
        for one in record.messages[-1]["tool_calls"]
    ]
    entry = find_entry(record, made)
    assert entry == Entry([TRIP], [ALLOWED], "simple") and record.meta["from"] == "here"
    assert judge_calls([call("trip.plan", city="Oslo, Norway", days=3)], entry).valid


@pytest.mark.parametrize("items", [None, {}, {"type": ["string", "null"]}, {"anyOf": [{"type": "integer"}]}])
@pytest.mark.parametrize("value", [["1", 1, None, {"k": "v"}], [[], {}], [1, "b"], [{"a": 1}, 2], [{"a": [1]}], []])
def test_a_list_whose_items_are_of_no_one_type(items, value):
    declared = {"type": "array"} if items is None else {"type": "array", "items": items}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": declared}}}}]
    entry = make_entry(tools, [call("f", x=value)])
    assert judge_calls([call("f", x=value)], entry).valid
    assert not judge_calls([call("f", x=[*value, 7])], entry).valid


@pytest.mark.parametrize("kept", [None, 5, {}, {"functions": [1], "ground_truth": [{}]}, {"ground_truth": [{"f": 1}]}])
def test_other_words_in_meta_are_no_truth(kept):
    record = Record("r", [], [TOOL], meta={"bfcl": kept})
    assert find_entry(record, [call("f", n=1)]) == make_entry([TOOL], [call("f", n=1)])


def test_blocks_are_read_as_bfcl_reads_them():
    right = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
    for text, wanted in (
        (right, [call("f", n=1)]),
        (right + '<tool_call>\n{"name": "f", "arg\n</tool_call>', [call("f", n=1)]),  # a broken block beside
        (right.replace('{"n": 1', '{"n": 2, "n": 1'), [call("f", n=1)]),  # a key twice: the last counts
        ("no call", []),
        ("<tool_call>\n[1]\n</tool_call>", []),
        ('<tool_call>\n{"name": "f", "arguments": 5}\n</tool_call>', []),
    ):
        assert read_as_bfcl(text, HERMES.parse(text)) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
KINDS = ["string", "integer", "float", "boolean", "array", "tuple", "dict", "any", "number", "Array", "ArrayList"]
KINDS += ["HashMap", "long", "Bigint", "not a type"]


@settings(max_examples=400, deadline=None)
@given(
    value=JSON,
    allowed=st.lists(JSON, max_size=3),
    kind=st.sampled_from(KINDS),
    items=st.sampled_from([None, *KINDS]),
    language=st.sampled_from(["python", "java", "javascript"]),
)
def test_nothing_makes_it_raise(value, allowed, kind, items, language):
    declared = {"type": kind, **({"items": {"type": items}} if items else {})}
    entry = Entry([function("f", a=declared)], [{"f": {"a": allowed}}], "simple", language)
    found = judge_calls([call("f", a=value)], entry)
    assert found.valid == (not found.error) == (not found.words)
