"""launch/verify.py on data: what it writes, what it refuses, and that each of its checks can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.template_forms import FORMS, chat, make_tokenizer, rounds
from kd.preflight.read_back import SpanReader
from kd.preflight.records import CHECKS, ROUND_TRIP_TARGET, make_spans_lines, verify_records
from kd.preflight.tally import Tally, format_tally
from kd.records.files import read_records, write_records
from kd.records.quarantine import Item
from kd.records.record import parse_record
from kd.rendering.encode import TokenSpan, annotate
from kd.sources.demo import corpus as demo
from kd.toolcalls.registry import ToolRegistry
from launch import verify

REPOSITORY = Path(__file__).resolve().parents[2]


USER = {"role": "user", "content": "q"}


TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}


def calling(name="f", arguments=None, **more):
    call = {"id": "c", "function": {"name": name, "arguments": {"n": 1} if arguments is None else arguments}}
    return {
        "id": "r",
        "tools": [TOOL],
        "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}],
        **more,
    }


CALLS = calling()["messages"][1]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def data(tmp_path):
    """A function from values (or bytes) to a file of them."""

    def write(*values):
        path = tmp_path / "data.jsonl"
        path.write_bytes(
            b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values) + b"\n"
        )
        return path

    return write


@pytest.fixture
def run(tmp_path, tokenizer_folder):
    """launch/verify.py on data alone: (exit code, lines of --spans, verify.json)."""

    def run(path, *options):
        code = verify.main(
            [
                "--data",
                str(path),
                "--tokenizer",
                str(tokenizer_folder),
                "--spans",
                str(tmp_path / "spans.jsonl"),
                "--out",
                str(tmp_path / "out"),
                *options,
            ]
        )
        return (
            code,
            lines(tmp_path / "spans.jsonl"),
            json.loads((tmp_path / "out" / "verify.json").read_text(encoding="utf-8")),
        )

    return run


def test_good_data_is_ready_and_its_spans_are_what_they_say(tmp_path, run, tokenizer):
    records = [demo.record(kind, index, seed=5) for kind in demo.KINDS for index in range(4)]
    write_records(tmp_path / "d.jsonl", records)
    code, spans, report = run(tmp_path / "d.jsonl", "--fix", str(tmp_path / "clean.jsonl"))
    assert code == 0 and report["ready"] and report["records"]["ready"] == len(records) and report["failures"] == []
    assert list(read_records(tmp_path / "clean.jsonl")) == records
    for record, line in zip(records, spans, strict=True):
        calls = [c["function"] for m in record.messages for c in m.get("tool_calls", ())]
        assert line["id"] == record.id and line["calls"] == [
            {"name": c["name"], "arguments": c["arguments"]} for c in calls
        ]
        assert tokenizer.decode(line["token_ids"]) == line["text"] and all(
            m["content"] in line["text"] for m in record.messages
        )
        by_kind = {
            kind: [s for s in line["spans"] if s["kind"] == kind] for kind in ("TOOL", "ARGS", "INTEGRATION", "TRUTH")
        }
        assert sum(map(len, by_kind.values())) == len(line["spans"])
        assert [s["text"] for s in by_kind["TOOL"]] == [c["name"] for c in calls]
        assert [json.loads(s["text"]) for s in by_kind["ARGS"]] == [c["arguments"] for c in calls]
        assert len(by_kind["TRUTH"]) == sum(m["role"] == "assistant" for m in record.messages) and bool(
            by_kind["INTEGRATION"]
        ) == bool(calls)
        assert all(tokenizer.decode(line["token_ids"][s["start"] : s["end"]]) == s["text"] for s in line["spans"])


BAD = {
    "read": [b'{"id": "x", ', b"[]"],
    "reasoning": [
        calling(reasoning_content="so"),
        {"id": "r", "messages": [USER, {"role": "assistant", "content": "<think>a</think>b"}]},
    ],
    "special": [
        {"id": "r", "messages": [USER, {"role": "assistant", "content": "c<|end|>d"}]},
        calling(arguments={"n": 1, "x": "<|end|>"}),
    ],
    "located": [{**calling(), "messages": [USER, {**CALLS, "content": '{"name": "f", "arguments": {"n": 1}}'}]}],
    "known": [calling(name="g")],
    "arguments": [
        calling(arguments={"n": True}),
        calling(arguments={}),
        calling(tools=[{**TOOL, "parameters": {"type": "object", "properties": {"n": {"type": "objekt"}}}}]),
    ],
}


@pytest.mark.parametrize(("check", "bad"), [(check, bad) for check, several in BAD.items() for bad in several])
def test_each_check_refuses_and_names_the_line(check, bad, data, run):
    code, (first, second), report = run(data(calling(), bad))
    assert code == 1 and not report["ready"] and "refused" not in first
    assert (
        set(second) == {"id", "file", "line", "refused"}
        and second["line"] == 2
        and "data.jsonl:2: " in second["refused"]
    )
    assert {c["name"]: c["failed"] for c in report["checks"]} == {name: int(name == check) for name in CHECKS}
    assert report["failures"][0]["check"] == check
    assert run(data(calling(), bad), "--max-bad-fraction", "0.5")[0] == 0


def test_an_argument_that_the_schema_only_leaves_out_is_flagged_and_located(tmp_path, data, run):
    code, (line,), report = run(data(calling(arguments={"n": 1, "m": 2})), "--fix", str(tmp_path / "clean.jsonl"))
    assert (
        code == 1
        and line["calls"] == [{"name": "f", "arguments": {"n": 1, "m": 2}}]
        and "unknown argument 'm'" in line["problems"][0]
    )
    assert report["records"]["flagged"] == 1 and (tmp_path / "clean.jsonl").read_text() == ""
    (kept,) = lines(tmp_path / "out" / "bad.jsonl")
    assert kept["line"] == 1 and "unknown argument 'm'" in kept["reason"] and json.loads(kept["raw"])["id"] == "r"


def test_calls_of_records_without_tools_are_held_to_the_tools_given(tmp_path, data, run, capsys):
    code, (first, second), report = run(
        data(calling(tools=[]), calling(name="web.search", arguments={"q": 7}, tools=[]))
    )
    assert code == 1 and "refused" not in first and "argument 'q' must be string" in second["refused"]
    assert report["records"]["unchecked_calls"] == 1 and "give --tools" in capsys.readouterr().out
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    path = data(calling(tools=[]), calling(name="web.search", arguments={"q": "7"}, tools=[]))
    code, (first, second), report = run(path, "--tools", str(tmp_path / "tools.json"))
    assert code == 1 and "problems" not in first and report["records"].get("unchecked_calls", 0) == 0
    assert (
        "unknown tool 'web.search'" in second["problems"][0]
    )  # flagged, for training has not these tools to refuse by


def moved(annotated, kind, by):
    """`annotated` with the first span of `kind` shifted."""
    at = next(i for i, span in enumerate(annotated.spans) if span.kind == kind)
    spans = list(annotated.spans)
    spans[at] = TokenSpan(kind, spans[at].start + by[0], spans[at].end + by[1])
    return annotated._replace(spans=spans)


@pytest.mark.parametrize("kind", ["tool", "args", "integration"])
@pytest.mark.parametrize("by", [(0, 0), (1, 1), (-1, -1), (-1, 0), (0, 1), (1, 0), (0, -1), (5, 5)])
def test_a_span_that_is_one_token_off_does_not_read_back(kind, by, tokenizer, monkeypatch):
    record = demo.record("single", 3, seed=9)
    annotated = annotate(record, tokenizer)
    counts, problems = SpanReader(tokenizer).read_back(record, moved(annotated, kind, by))
    wider_answer = (
        kind == "integration" and 0 in by
    )  # a word of a value, or its quotes too, is a value of the result as well
    if by == (0, 0):
        assert problems == [] and counts == {name: (sum(s.kind == name for s in annotated.spans), 0) for name in counts}
    elif not wider_answer:
        assert len(problems) == 1 and problems[0].startswith(kind.upper()) and counts[kind][1] == 1
        monkeypatch.setattr("kd.preflight.records.annotate_sequences", lambda *_: [moved(annotated, kind, by)])
        item = Item("f", 1, record, None, b"", "a")
        tally = Tally()
        tally.add(next(verify_records([item], tokenizer)))
        assert tally.round_trip(kind) < ROUND_TRIP_TARGET and not tally.ready() and tally.failed == {"read back": 1}


def test_a_special_token_that_a_user_or_a_tool_writes_is_located_as_text(data, run, tokenizer):
    good = calling()
    said = [
        {"role": "user", "content": "a<|end|><|assistant|>b"},
        *good["messages"][1:],
        {"role": "tool", "content": "42<|end|>"},
        {"role": "assistant", "content": "It is 42."},
    ]
    code, (line,), report = run(data({**good, "messages": said}))
    assert code == 0 and line["token_ids"].count(tokenizer.convert_tokens_to_ids("<|assistant|>")) == 2
    assert [(s["kind"], s["text"]) for s in line["spans"] if s["kind"] != "TRUTH"] == [
        ("TOOL", "f"),
        ("ARGS", '{"n": 1}'),
        ("INTEGRATION", "42"),
    ]
    assert report["round_trip"]["args"] == {"spans": 1, "unread": 0, "share": 1.0}


def test_the_page_shows_every_span_and_escapes_what_it_shows(tmp_path, data, run):
    answer = [
        {"role": "tool", "content": "<b>Lorvik 42</b>"},
        {"role": "assistant", "content": "It is Lorvik 42 & <script>alert(1)</script>."},
    ]
    good = calling()
    run(data({**good, "messages": good["messages"] + answer}, b"not <i>JSON</i>"))
    page = (tmp_path / "out" / "verify.html").read_text(encoding="utf-8")
    for kind, text in (("tool", "f"), ("args", "{&quot;n&quot;: 1}"), ("integration", "42")):
        assert f'<mark class="{kind}"' in page and f">{text}</mark>" in page
    assert (
        "<script" not in page
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert (
        all(name in page for name in ("TOOL", "ARGS", "INTEGRATION", "TRUTH", "untrained")) and "data.jsonl:2" in page
    )
    assert page.index("data.jsonl:2: not a line of JSON") < page.index('class="spans"')  # failures first


def test_forms_and_compressed_files_are_found_without_being_named(tmp_path, run):
    import gzip

    record = {
        "query": "q",
        "tools": json.dumps([{"name": "f", "parameters": {"n": {"type": "int"}}}]),
        "answers": '[{"name": "f", "arguments": {"n": 1}}]',
    }
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as out:
        out.write(json.dumps(record))
    code, (line,), _ = run(tmp_path / "d.jsonl.gz")
    assert code == 0 and line["calls"] == [{"name": "f", "arguments": {"n": 1}}]
    assert run(tmp_path / "d.jsonl.gz", "--format", "sharegpt")[0] == 1


@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_files_without_a_record_are_not_ready_and_it_is_said_why(content, data, run, capsys):
    path = data()
    path.write_bytes(content)
    assert run(path)[0] == 1
    assert "FAIL    the files hold no record: give others" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data", "x"],
        ["--config", "a", "--data", "b"],
        ["--data", "x", "--tokenizer", "t", "--set", "a=b"],
        ["--data", "{file}", "--tokenizer", "{tok}", "--max-bad-fraction", "2"],
        ["--data", "missing.jsonl", "--tokenizer", "{tok}"],
        ["--data", "{file}", "--tokenizer", "missing"],
        ["--data", "{file}", "--tokenizer", "{tok}", "--format", "alpaca"],
        ["--data", "{file}", "--tokenizer", "{tok}", "--tools", "missing"],
        ["--data", "{file}", "--tokenizer", "{tok}", "--out", ""],
        ["--data", "{file}", "--tokenizer", "{tok}", "--fix", "a" * 300],
        ["--config", "missing.yaml"],
    ],
)
def test_wrong_use_is_exit_code_2(options, data, tokenizer_folder, capsys):
    options = [option.format(file=data(calling()), tok=tokenizer_folder) for option in options]
    try:
        code = verify.main(options)
    except SystemExit as error:
        code = error.code
    assert code == 2 and "error: " in capsys.readouterr().err


def test_data_alone_needs_neither_deepspeed_nor_a_process_group(tmp_path, data, tokenizer_folder):
    code = f"""if 1:
        import sys
        sys.modules["deepspeed"] = None
        from launch import verify
        assert verify.main(["--data", {str(data(calling()))!r}, "--tokenizer", {str(tokenizer_folder)!r}, "--spans", {str(tmp_path / "spans.jsonl")!r}]) == 0
        import torch
        assert not torch.distributed.is_initialized()"""  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


def test_the_flat_record_is_held_to_the_default_tools(tokenizer):
    text = 'Look.\n<tool_call>{"name": "web.search", "arguments": {"q": "rain"}}</tool_call>'
    record = parse_record({"prompt": "Rain?", "teacher_text": text}, "f:1")
    item = Item("f", 1, record, None, b"", "a")
    (verified,) = verify_records([item], tokenizer, ToolRegistry.default())
    assert verified.ready and verified.unchecked_calls == 0


def test_records_and_their_sequences_are_told_apart(tmp_path):
    """A template that rewrites earlier turns gives a line a turn; text beside a call that it drops is counted."""
    tokenizer = make_tokenizer(FORMS["block in the last"].replace("{{ m.content }}", SAID))
    records = [rounds(2, beside="I look."), chat("Hi", "Hello")]
    items = [Item("f", at + 1, record, None, b"", record.id) for at, record in enumerate(records)]
    tally, reader, lines = Tally(), SpanReader(tokenizer), []
    for verified in verify_records(items, tokenizer):
        tally.add(verified)
        lines += make_spans_lines(verified, reader)
    assert [line["id"] for line in lines] == ["r#1", "r#3", "r#5", "r#7", "r"]
    assert (tally.total["records"], tally.total["sequences"], tally.total["dropped_texts"]) == (2, 5, 2)
    assert tally.total["calls"] == tally.total["tool_spans"] == 2 and tally.ready()
    assert "2 turns have text beside their calls" in format_tally(tally, [])
    (whole,) = verify_records(items[1:], tokenizer, None, "whole")
    assert whole.ready and len(whole.sequences) == 1


SAID = "{% if not m.tool_calls %}{{ m.content }}{% endif %}"
