"""An answer has the record's verdict, BFCL's, and ours by its rules, side by side."""

from __future__ import annotations

import json

import pytest

from kd.evaluation.bfcl_rules.entry import Entry, make_entry
from kd.evaluation.cases import Case
from kd.evaluation.judge import judge_case
from kd.evaluation.metrics import DETAILS, METRICS, read_value, summarise
from kd.toolcalls.compare import count_arguments
from kd.toolcalls.reader import HERMES


def tool(name: str, required=(), **properties) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


WEATHER = tool("get_weather", ["city"], city={"type": "string"}, days={"type": "integer", "default": 1})


def call(name: str = "get_weather", **arguments) -> dict:
    return {"name": name, "arguments": arguments}


def write(*calls: dict) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(one)}\n</tool_call>" for one in calls)


def make_case(calls: list[dict], entry: Entry | None = None, number: int = 0) -> Case:
    kind = "call" if calls else "no_tool"
    entry = entry or make_entry([WEATHER], calls)
    return Case(number, number, f"r{number}", 1, kind, "", [], "q", [], [WEATHER], calls, "", [], entry, [])


def judge(text: str, calls: list[dict], entry: Entry | None = None) -> dict:
    return judge_case(make_case(calls, entry), text, HERMES.parse(text, [WEATHER]))["outcome"]


OSLO = call(city="Oslo", days=2)
TEXT = write(OSLO)


@pytest.mark.parametrize(
    ("text", "exact", "allowed", "bfcl", "error"),
    [
        (TEXT, 1, 1, 1, ""),
        ("I look it up. " + TEXT, 1, 1, 1, ""),
        (write(call(city="oslo.", days=2)), 0, 1, 1, ""),
        (write(call("weather", city="Oslo", days=2)), 0, 0, 0, "simple_function_checker:wrong_func_name"),
        (write(call(days=2)), 0, 0, 0, "simple_function_checker:missing_required"),
        (write(call(city="Oslo")), 0, 0, 0, "simple_function_checker:missing_optional"),
        (write(call(city="Oslo", days=2, unit="C")), 0, 0, 0, "simple_function_checker:unexpected_param"),
        (write(call(city="Bergen", days=2)), 0, 0, 0, "value_error:string"),
        (write(call(city="Oslo", days="2")), 0, 0, 0, "type_error:simple"),
        (write(call(city="Oslo", days=2.0)), 1, 0, 0, "type_error:simple"),  # 2.0 is 2 in JSON, and no integer in BFCL
        (write(OSLO, OSLO), 0, 0, 0, "multiple_function_checker:wrong_count"),
        (TEXT[:-14], 0, 0, 0, "multiple_function_checker:wrong_count"),
        ("It rains.", 0, 0, 0, "multiple_function_checker:wrong_count"),
        ('[get_weather(city="Oslo", days=2)]', 0, 0, 0, "multiple_function_checker:wrong_count"),  # another syntax
        (TEXT + "\n<tool_call>\n{\n</tool_call>", 0, 0, 1, ""),  # a broken block beside
        (TEXT.replace('"days": 2', '"days": 1, "days": 2'), 0, 0, 1, ""),  # a key twice
    ],
)
def test_each_kind_of_answer(text, exact, allowed, bfcl, error):
    found = judge(text, [OSLO])
    assert [found[key] for key in ("exact", "allowed", "bfcl", "error")] == [exact, allowed, bfcl, error]


def test_bfcls_greedy_matching_beside_ours():
    entry = Entry(
        [WEATHER["function"]], [{"get_weather": {"city": ["A", "B"]}}, {"get_weather": {"city": ["A"]}}], "parallel"
    )
    found = judge(write(call(city="A"), call(city="B")), [call(city="A"), call(city="A")], entry)
    assert (found["bfcl"], found["allowed"]) == (False, True)


@pytest.mark.parametrize(
    ("text", "over_called", "bfcl"),
    [("No.", False, True), (TEXT, True, False), ("<tool_call>\n{\n</tool_call>", True, True)],
)
def test_a_broken_call_where_none_fits_is_an_attempt(text, over_called, bfcl):
    found = judge(text, [])
    assert (found["over_called"], found["bfcl"]) == (over_called, bfcl)


@pytest.mark.parametrize(
    ("calls", "wanted", "counts"),
    [
        ([OSLO], [OSLO], (2, 2, 2)),
        ([call(city="Oslo")], [OSLO], (1, 1, 2)),
        ([call(city="Oslo", days=3, unit="C")], [OSLO], (1, 3, 2)),
        ([call(city="Oslo", days=2.0)], [OSLO], (2, 2, 2)),
        ([call("weather", city="Oslo", days=2)], [OSLO], (0, 2, 2)),
        ([], [OSLO], (0, 0, 2)),
        ([call(city="B", days=1), OSLO], [OSLO, call(city="A", days=1)], (3, 4, 4)),  # paired with the one most alike
        ([call(city="A", days=2), call(city="B", days=1)], [call(city="A", days=1), call(city="B", days=2)], (2, 4, 4)),
        ([OSLO, OSLO], [OSLO], (2, 4, 2)),
    ],
)
def test_arguments_are_counted_in_calls_paired_by_name(calls, wanted, counts):
    assert count_arguments(calls, wanted) == counts


def test_the_summary_has_details_and_a_histogram_of_errors():
    texts = [TEXT, write(call(city="Oslo")), "no", write(call(city="Oslo", days=3))]
    judged = [
        judge_case(make_case([OSLO], number=at), text, HERMES.parse(text, [WEATHER])) for at, text in enumerate(texts)
    ]
    judged += [
        judge_case(make_case([], number=at), text, HERMES.parse(text, [WEATHER])) for at, text in ((4, "no"), (5, TEXT))
    ]
    metrics = summarise([{**case, "num_tokens": 5, "finished": True} for case in judged])
    values = {name: read_value(metrics, name) for name in (*METRICS.names(), *DETAILS)}
    assert values["exact_arguments"] == values["bfcl_accuracy"] == values["allowed_arguments"] == 0.25
    assert values["missed_calls"] == 0.25 and values["over_calling"] == values["bfcl_irrelevance"] == 0.5
    assert values["argument_precision"] == 4 / 5 and values["argument_recall"] == 4 / 8
    assert values["argument_f1"] == pytest.approx(8 / 13)
    assert metrics["errors"] == {
        "simple_function_checker:missing_optional": 1,
        "multiple_function_checker:wrong_count": 1,
        "value_error:others": 1,
        "irrelevance_error:decoder_success": 1,
    }
    low, high = metrics["intervals"]["argument_f1"]
    assert 0 < low < 8 / 13 < high < 1
