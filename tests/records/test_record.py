"""Records and data files: what is refused, and that the message says where."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kd.paths import expand_path
from kd.records.checks import COT_FIELDS, DataError
from kd.records.files import DataFiles, read_records, write_records
from kd.records.record import Record, parse_record
from kd.sources.file_index import RecordIndex

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": [1, "é"]}'}}],
}


def line(**changes) -> str:
    return json.dumps({"messages": [USER, ANSWER], **changes}, ensure_ascii=False)


def index_of(pattern) -> RecordIndex:
    return RecordIndex([DataFiles(str(pattern))])


@pytest.fixture(params=[index_of, read_records], ids=["RecordIndex", "read_records"])
def read(request, tmp_path):
    """Both readers of a file, as a function from its text to its records."""

    def read(text: str | bytes) -> list[Record]:
        path = tmp_path / "data.jsonl"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        source = request.param(path)
        return [source[i] for i in range(len(source))] if request.param is index_of else list(source)

    return read


def test_a_record_is_read_with_its_defaults(read):
    first, second = read(
        "\ufeff" + line(id="a", quality=0.5, meta={"k": 1}) + "\n\n" + line(messages=[USER, CALL]) + "\n"
    )
    assert (first.id, first.quality, first.meta, first.tools) == ("a", 0.5, {"k": 1}, [])
    assert second.id.endswith("data.jsonl:3") and second.quality is None
    # the wire form (arguments as text, content null) becomes what a template renders
    assert second.messages[1]["content"] == ""
    assert second.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": [1, "é"]}


def test_arguments_that_are_the_text_of_a_text_are_read(read):
    """As some lines of OpenAI's own function-calling example have them."""
    calls = [{"function": {"name": "f", "arguments": json.dumps(json.dumps(value))}} for value in ({"a": "é"}, {})]
    (record,) = read(line(messages=[USER, {"role": "assistant", "tool_calls": calls}]))
    assert [call["function"]["arguments"] for call in record.messages[1]["tool_calls"]] == [{"a": "é"}, {}]
    with pytest.raises(DataError, match="an object is needed, not str"):
        read(
            line(
                messages=[
                    USER,
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": json.dumps(json.dumps("x"))}}],
                    },
                ]
            )
        )


def test_a_bare_function_is_wrapped_as_a_tool(read):
    (record,) = read(line(tools=[{"name": "f", "parameters": {}}]))
    assert record.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def test_what_is_written_reads_back_equal(tmp_path, read):
    records = [
        Record(
            "a",
            [USER, parse_record({"messages": [CALL]}, "x").messages[0], {"role": "tool", "content": "1"}, ANSWER],
            [],
            0.25,
            {"tier": 1},
            {"é": [None]},
        )
    ]
    assert write_records(tmp_path / "w.jsonl", records) == 1
    assert read((tmp_path / "w.jsonl").read_bytes()) == records


@pytest.mark.parametrize("name", sorted(COT_FIELDS))
@pytest.mark.parametrize("place", ["record", "message", "call"])
def test_every_chain_of_thought_field_is_refused_with_its_line(read, name, place):
    bad = {
        "record": {name: "because"},
        "message": {"messages": [USER, {**ANSWER, name: "because"}]},
        "call": {"messages": [USER, {**CALL, "tool_calls": [{**CALL["tool_calls"][0], name: ["x"]}]}]},
    }[place]
    with pytest.raises(DataError, match=rf"data\.jsonl:2: .*{name}.*chain-of-thought is never trained on"):
        read(line() + "\n" + line(**bad) + "\n")


@pytest.mark.parametrize("text", ["<think>so</think>ok", "so</think>ok", "<Thinking> so", "ok\n<think>"])
@pytest.mark.parametrize("role", ["assistant", "user"])
def test_reasoning_inside_a_text_is_refused_with_its_line(read, text, role):
    with pytest.raises(DataError, match=r"data\.jsonl:2: messages\[1\]\.content: holds a </?[Tt]hink"):
        read(line() + "\n" + line(messages=[USER, {"role": role, "content": text}, ANSWER]) + "\n")


def test_an_empty_field_and_an_argument_of_that_name_are_no_reasoning(read):
    arguments = {"reasoning": "a value that the user asked for", "note": "<think>"}
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
        "reasoning_content": None,
    }
    (record,) = read(line(messages=[USER, call], thinking=""))
    assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"messages": ', "not a line of JSON"),
        ("[]", "a record is a JSON object"),
        ("7", "a record is a JSON object"),
        ("{}", "messages: a non-empty list"),
        (line(messages=[]), "messages: a non-empty list"),
        (
            line(messages=[[]]),
            r"messages\[0\]: role must be one "
            r"of system",
        ),
        (line(messages=[{"role": "bot", "content": ""}]), r"messages\[0\]: role must be"),
        (line(messages=[USER]), "no assistant message"),
        (
            line(messages=[{"role": "user", "content": [{"type": "text"}]}, ANSWER]),
            r"messages\[0\]\.content: text is "
            r"needed, not list",
        ),
        (line(messages=[{**USER, "tool_calls": [1]}, ANSWER]), r"messages\[0\]\.tool_calls: a list, on assistant"),
        (
            line(messages=[USER, {**ANSWER, "tool_calls": [{"name": "f"}]}]),
            r"tool_calls\[0\]: a tool call needs "
            r"function\.name",
        ),
        (
            line(messages=[USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]),
            r"arguments: not JSON",
        ),
        (
            line(messages=[USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]),
            "an object is needed, not list",
        ),
        (line(tools={"f": 1}), "tools: a list"),
        (line(tools=["f"]), "tools: a list"),
        (line(quality=1.5), "quality: a number in"),
        (line(quality="high"), "quality: a number in"),
        (line(quality=True), "quality: a number in"),
        (line(quality=float("nan")), "NaN is not JSON"),
    ],
)
def test_a_bad_line_is_named(read, bad, said):
    with pytest.raises(DataError, match=rf"data\.jsonl:3: .*{said}"):
        read(line() + "\n\n" + bad + "\n" + line() + "\n")


def test_bytes_that_are_no_text_are_named(read):
    with pytest.raises(DataError, match=r"data\.jsonl:2: not a line of JSON in UTF-8"):
        read(line().encode() + b'\n{"messages": "\xff"}\n')


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(read, text):
    with pytest.raises(DataError, match="no record"):
        read(text)


def test_a_missing_file_and_a_glob_without_files_are_refused(tmp_path):
    for pattern in (tmp_path / "none.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(DataError, match="no such data file"):
            index_of(pattern)
    with pytest.raises(DataError, match="no such data file"):
        list(read_records(tmp_path / "none.jsonl"))


def test_what_is_no_plain_file_is_called_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, said in ((tmp_path, "is a folder; name its files"), (tmp_path / "pipe.jsonl", "is a pipe or dev")):
        with pytest.raises(DataError, match=said):
            index_of(path)
        with pytest.raises(DataError, match=said):
            list(read_records(path))


def test_a_file_whose_name_is_no_text_is_named(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    path.write_text(line())
    with pytest.raises(DataError, match=r"udcff\.jsonl': its name is no text in UTF-8: rename it"):
        list(read_records(path))
    with pytest.raises(ValueError, match="a path is text in UTF-8"):
        expand_path(str(path))


def test_a_glob_reads_every_file_in_order_of_name(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(line(id=name) + "\n")
    source = index_of(tmp_path / "*.jsonl")
    assert [source[i].id for i in range(len(source))] == ["a", "b"]
