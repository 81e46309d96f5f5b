"""Whatever a data file holds, its reader neither crashes nor hangs nor grows: good records come out, each bad line is
named once.
"""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.record_cases import GOOD, LINE, ids_of, items
from kd.config.registries import FORMATS
from kd.records.checks import DataError, decode_json
from kd.records.files import DataFiles
from kd.records.quarantine import Quarantine
from kd.records.record import Record, parse_record, read_decoded

SETTINGS = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def text(value: str) -> bytes:
    return json.dumps({**GOOD, "meta": {"x": "@"}}).replace("@", value).encode()


def number(value: str) -> bytes:
    return text("@").replace(b'"@"', value.encode())


# Lines no record can come of, and what is said of each.
BAD = {
    "cut off": (LINE[:-9], "not a line of JSON"),
    "cut inside a string": (LINE[:20], "not a line of JSON"),
    "two on a line": (LINE + LINE, "Extra data"),
    "text": (b"hello", "not a line of JSON"),
    "a number": (b"7", "a record is a JSON object, not int"),
    "a string": (b'"x"', "not str"),
    "null": (b"null", "not NoneType"),
    "a list": (b"[" + LINE + b"]", "not list"),
    "nothing in it": (b"{}", "messages"),
    "a raw NUL": (LINE.replace(b"q", b"\0"), "control character"),
    "NULs alone": (b"\0" * 50, "not a line of JSON"),
    "invalid UTF-8": (LINE.replace(b"q", b"\xff\xfe"), r"byte \d+ is 0xff"),
    "cut UTF-8": (LINE[:40] + b"\xe6\xbc", "byte 41 is 0xe6"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16-le").replace(b"\n", b""), "not a line of JSON"),
    "a key twice": (LINE[:-1] + b', "id": "h"}', "'id' twice"),
    "a key twice inside": (text('", "y": {"a": 1, "a": 1}, "z": "'), "'a' twice"),
    "NaN": (number("NaN"), "NaN is not JSON"),
    "Infinity": (number("-Infinity"), "-Infinity is not JSON"),
    "too large a float": (number("1e999"), "inf is not a JSON number"),
    "a lone surrogate": (text("\\ud83d"), r"half a surrogate pair \(\\ud83d\)"),
    "surrogates the wrong way": (text("\\udc00\\ud800"), "half a surrogate pair"),
    "an int of 5000 digits": (number("9" * 5000), "digits"),
    "65 levels": (number("[" * 64 + "]" * 64), "nested deeper than 64"),
    "100,000 levels": (b"[" * 100_000, "nested deeper than 64|not a line"),
    "a million objects": (b'{"a":' * 800_000, "nested deeper than 64|not a line"),
    "10 MB string": (text("x" * 10_000_000), "more than the 4 MiB"),
    "10 MB of nothing": (b"\t" * 10_000_000 + b"x", "more than the 4 MiB"),
    "wrong types": (json.dumps({**GOOD, "messages": {"role": "user"}}).encode(), "messages: a non-empty list"),
    "a header further down": (b'{"__header__": 1}', "messages"),
}
FINE = {
    "an int of 400 digits": number("9" * 400),
    "62 levels": number("[" * 61 + "]" * 61),
    "a BOM": b"\xef\xbb\xbf" + LINE,
    "spaces": b"  " + LINE + b" \t\r",
    "an escaped NUL": text("\\u0000"),
    "a pair of surrogates": text("\\ud83d\\ude00"),
    "3 MB": text("y" * 3_000_000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_once_and_the_others_are_read(name, tmp_path):
    bad, said = BAD[name]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join([LINE, b"", bad, LINE, bad]))
    began = time.monotonic()
    found = items(path)
    assert time.monotonic() - began < 5
    assert [(item.line, item.record is not None) for item in found] == [(1, True), (3, False), (4, True), (5, False)]
    for item in (found[1], found[3]):
        with pytest.raises(DataError, match=rf"^{path}:{item.line}: .*({said})"):
            raise DataError(item.reason)
        assert len(item.reason) < 600 + len(str(path))


@pytest.mark.parametrize("name", FINE)
def test_what_only_looks_bad_is_read(name, tmp_path):
    (tmp_path / "d.jsonl").write_bytes(FINE[name] + b"\n")
    (item,) = items(tmp_path / "d.jsonl")
    assert item.reason == "" and item.record.messages == GOOD["messages"]


def test_every_bad_line_is_in_the_quarantine_once(tmp_path):
    path, kept = tmp_path / "d.jsonl", tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(line for bad, _ in BAD.values() for line in (LINE, bad)))
    quarantine = Quarantine(kept, max_bad_fraction=0.5)
    assert len(ids_of([DataFiles(str(path))], quarantine)) == len(BAD) == quarantine.num_bad
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert [line["line"] for line in lines] == list(range(2, 2 * len(BAD) + 1, 2))
    assert all(
        line["file"] == str(path) and line["reason"].startswith(f"{path}:{line['line']}: ") and len(line["raw"]) <= 8000
        for line in lines
    )
    assert kept.stat().st_size < 300_000


@pytest.mark.parametrize(
    ("bad", "fraction", "raised_after"),
    [(1, 0.0, 1), (5, 0.05, None), (6, 0.05, 6), (3, 0.02, 3), (20, 0.05, 6), (99, 1.0, None)],
)
def test_more_than_max_bad_fraction_stops_the_run(tmp_path, bad, fraction, raised_after):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join([b"x"] * bad + [LINE] * (100 - bad)))
    quarantine = Quarantine(max_bad_fraction=fraction)
    if raised_after is None:
        assert len(ids_of([DataFiles(str(path))], quarantine)) == 100 - bad
        return
    with pytest.raises(DataError, match=f"max_bad_fraction {fraction:g} allows"):
        ids_of([DataFiles(str(path))], quarantine)
    assert quarantine.num_bad == raised_after


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        [
            "user",
            "assistant",
            "tool",
            "<tool_call>",
            "</tool_call>",
            "<tools>[]</tools>",
            "gpt",
            '{"name": "f", "arguments": {}}',
            "f(x=1)",
            "List[int]",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=4)
            | st.sampled_from(
                [
                    "role",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "from",
                    "value",
                    "parameters",
                    "properties",
                    "type",
                    "id",
                    "tool_call_id",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = [
    "messages",
    "tools",
    "id",
    "quality",
    "meta",
    "caws",
    "conversations",
    "system",
    "query",
    "answers",
    "question",
    "function",
    "ground_truth",
    "text",
    "prompt",
    "teacher_text",
    "functions",
]
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["system", "user", "assistant", "tool", "function", 1]),
            "content": JSON,
            "tool_calls": JSON,
            "function_call": JSON,
            "tool_call_id": JSON,
            "weight": JSON,
            "from": st.sampled_from(["human", "gpt", "function_call"]),
            "value": JSON,
        },
    ),
    max_size=3,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | MESSAGES, max_size=5), st.sampled_from([None, *FORMATS.names()]))
@SETTINGS
def test_any_value_in_any_field_is_a_record_or_a_named_refusal(data, form):
    try:
        record = parse_record(data, "f:1", form)
    except DataError as error:
        assert str(error).startswith("f:1: ")
        return
    assert (
        isinstance(record, Record)
        and isinstance(record.id, str)
        and all(isinstance(m["content"], str) for m in record.messages)
    )
    assert parse_record(vars(record), "f:1", "chat") == record  # what is written reads back


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda s: s.encode("utf-8", "surrogatepass")))
@SETTINGS
def test_any_bytes_are_a_named_refusal(raw):
    with pytest.raises(DataError, match="^f:1: "):
        read_decoded(decode_json(raw, "f:1"), "f:1")


@given(st.integers(1, len(LINE)), st.binary(max_size=6), st.integers(0, 4))
@SETTINGS
def test_a_damaged_line_never_harms_the_next(tmp_path, at, damage, cut):
    damaged = (LINE[:at] + damage + LINE[at + cut :]).replace(b"\n", b" ")
    path = tmp_path / "d.jsonl"
    path.write_bytes(damaged + b"\n" + LINE)
    found = items(path)
    assert found[-1].record is not None and [item.line for item in found] == ([1, 2] if damaged.strip() else [2])
