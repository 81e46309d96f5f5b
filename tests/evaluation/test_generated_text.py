"""No generated text ends an evaluation: each is judged, written, read again and shown."""

from __future__ import annotations

import json
import time

import pytest

from helpers.scripted_model import call, make_tokenizer, record, tool
from kd.evaluation.cases import build_cases
from kd.evaluation.evaluate import merge
from kd.evaluation.files import write_cases, write_evaluation
from kd.evaluation.judge import judge_case
from kd.rendering.call_syntax import find_syntax
from kd.reports.run_page import write_report
from kd.toolcalls.json_values import encode_json

FORECAST = tool("forecast", days={"multipleOf": 0.5}, place={})
RECORDS = [
    record("call", "How is it?", [call("forecast", days=2)], tools=[FORECAST]),
    record(
        "used", "How is it?", [call("forecast")], ("tool", "19.5 in Bodø"), ("say", "19.5 in Bodø"), tools=[FORECAST]
    ),
    record("none", "Hello", ("say", "Hello!"), tools=[FORECAST]),
]


def block(days: str, name: str = "forecast") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{"days": {days}}}}}</tool_call>'


READ = {  # generated text -> whether its calls are valid as written, and fit the schema
    block("1e999"): (False, False),  # no JSON number that can be held
    block("-1e999"): (False, False),
    block("NaN"): (False, False),
    block('"\\ud83d"'): (False, False),  # half a surrogate pair is no text
    block("1", name="forecast\\udc00"): (False, False),
    block('1, "days": 2'): (False, False),
    block("3" * 330): (True, True),
    block("3" * 5000): (False, False),  # more digits than Python reads
    block("0.1e-400"): (True, True),  # underflows to 0.0
    block("[" * 500 + "]" * 500): (False, False),
    block("[" * 100_000): (False, False),
    block('"a</tool_call>b"'): (True, True),
    block("0.75"): (True, False),
    "": (False, False),
    "\ufffd\ufffd \x00\x1b[31m": (False, False),
    "<|end|>" * 50: (False, False),  # special tokens alone
    "<tool_call>" * 3000: (False, False),
    "</tool_call>" + block("2"): (True, True),
    "<script>alert(1)</script>" + block('"<b>"'): (True, True),
}


@pytest.mark.parametrize("text", READ, ids=lambda text: repr(text[:60]))
def test_any_text_is_judged_written_and_shown(text, tmp_path):
    tokenizer = make_tokenizer()
    reader, cases = find_syntax(tokenizer), build_cases(RECORDS, tokenizer)
    assert {case.kind for case in cases} == {"call", "integration", "no_tool"}
    began = time.monotonic()
    outcomes = [
        {**judge_case(case, text, reader.parse(text, case.tools)), "num_tokens": 7, "finished": False} for case in cases
    ]
    assert (outcomes[0]["outcome"]["json"], outcomes[0]["outcome"]["schema"]) == READ[text]
    write_evaluation(tmp_path / "evaluation.json", {"student": {"s": merge(outcomes).metrics}})
    write_cases(tmp_path / "cases.jsonl", {"student": {"s": outcomes}})
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "cases.jsonl").open("rb")]
    assert [line["models"]["student"]["output"] for line in lines] == [text] * len(cases)
    assert "How is it?" in write_report(tmp_path).read_text(encoding="utf-8")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"x": float("inf"), "y": [float("-inf"), float("nan"), 1.5]}, {"x": "inf", "y": ["-inf", "nan", 1.5]}),
        ({"a\ud800": "b\udfff é 😀"}, {"a\ud800": "b\udfff é 😀"}),
        ([10**5000, 10**20, True], [hex(10**5000), 10**20, True]),
    ],
)
def test_any_value_is_encoded(value, read):
    assert json.loads(encode_json(value), parse_constant=pytest.fail) == read
