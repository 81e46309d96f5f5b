"""Whatever a data file holds, its reader neither crashes nor hangs nor grows: good records come out, each bad line is
named once.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd.config.registries import FORMATS
from kd.records.checks import MAX_RECORD_BYTES, DataError
from kd.records.files import DataFiles, read_all, read_each, write_records
from kd.records.lines import zstd
from kd.records.quarantine import Quarantine
from kd.records.record import Record, parse_line, parse_record
from kd.sources.file_index import RecordIndex

REPOSITORY = Path(__file__).resolve().parent.parent.parent

GOOD = {"id": "g", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
LINE = json.dumps(GOOD).encode()
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


def ids_of(sources, quarantine=None, **options) -> list[str]:
    index = RecordIndex(sources, quarantine, **options)
    if quarantine is not None:
        quarantine.check()
    return [index[at].id for at in range(len(index))]


def items(path, **options):
    return list(read_each(path, **options))


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
        parse_line(raw, "f:1")


@given(st.integers(1, len(LINE)), st.binary(max_size=6), st.integers(0, 4))
@SETTINGS
def test_a_damaged_line_never_harms_the_next(tmp_path, at, damage, cut):
    damaged = (LINE[:at] + damage + LINE[at + cut :]).replace(b"\n", b" ")
    path = tmp_path / "d.jsonl"
    path.write_bytes(damaged + b"\n" + LINE)
    found = items(path)
    assert found[-1].record is not None and [item.line for item in found] == ([1, 2] if damaged.strip() else [2])


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "": bytes}


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files_are_read_and_a_damaged_one_is_named(suffix, tmp_path):
    path = tmp_path / f"d.jsonl{'.' if suffix else ''}{suffix}"
    data = b"\n".join(LINE.replace(b'"g"', str(i).encode()) for i in range(1000))
    path.write_bytes(PACK[suffix](data))
    assert [item.record.id for item in items(path)] == [str(i) for i in range(1000)]
    path.write_bytes(PACK[suffix](data)[:-40])
    *_, last = items(path)
    assert last.record is None and ("damaged or cut off" if suffix else "not a line of JSON") in last.reason
    packed = PACK[suffix](data)
    path.write_bytes(packed[: len(packed) // 2] + b"\0\xff" * 50)
    bad = [item.line for item in items(path) if item.record is None]
    assert bad and len(set(bad)) == len(bad)


def test_zstd_needs_its_package(tmp_path):
    path = tmp_path / "d.jsonl.zst"
    if zstd is None:
        path.write_bytes(b"\x28\xb5\x2f\xfd....")
        with pytest.raises(DataError, match=r"backports\.zstd; install it with: pip install 'spanwise\[data\]'"):
            items(path)
        return
    path.write_bytes(zstd.compress(LINE) + zstd.compress(b"\n" + LINE))
    assert [item.record is not None for item in items(path)] == [True, True]
    path.write_bytes(zstd.compress(LINE * 100)[:-6])
    assert "damaged or cut off" in items(path)[-1].reason


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_parquet_and_arrow_need_their_package(suffix, tmp_path):
    path = tmp_path / f"d.{suffix}"
    try:
        import datasets
    except ImportError:
        path.write_bytes(b"PAR1....PAR1" if suffix == "parquet" else b"ARROW1\0\0")
        with pytest.raises(DataError, match=r"package datasets; install it with: pip install 'spanwise\[data\]'"):
            items(path)
        return
    import pyarrow as pa
    import pyarrow.parquet

    call = {"function": {"name": "f", "arguments": '{"a": null}'}, "id": "c"}
    rows = [
        GOOD,
        {**GOOD, "messages": [GOOD["messages"][0], {"role": "assistant", "tool_calls": [call]}]},
        {**GOOD, "messages": []},
    ]
    table = pa.Table.from_pylist(rows)
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    first, second, third = items(path)
    assert (
        first.record.messages == GOOD["messages"] and third.line == 3 and "messages: a non-empty list" in third.reason
    )
    assert second.record.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": None}
    assert datasets.__version__


ARRAY = [LINE, json.dumps(GOOD, indent=2).encode(), LINE.replace(b'"q"', rb'"]},{[\\\"\"["')]


@pytest.mark.parametrize("chunk", [7, 64, 1 << 18])
@pytest.mark.parametrize(
    ("before", "between", "after"), [(b"[", b",", b"]"), (b"\xef\xbb\xbf [\n", b"\n,\n", b"\n]\n"), (b"", b"\n", b"\n")]
)
def test_arrays_and_objects_over_several_lines(before, between, after, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("kd.records.lines._CHUNK", chunk)
    path = tmp_path / "d.json"
    parts = ARRAY[1:] + ARRAY[:1] if not before else ARRAY
    path.write_bytes(before + between.join(parts) + after)
    found = items(path)
    assert [item.reason for item in found] == [""] * 3 and [item.record.messages for item in found] == [
        json.loads(part)["messages"] for part in parts
    ]
    content = path.read_bytes()
    starts = [content.index(part) for part in parts]
    assert [item.line for item in found] == [content[:start].count(b"\n") + 1 for start in starts]


@pytest.mark.parametrize(
    ("content", "good", "bad"),
    [
        (b"[%s,{'a':1},%s]", [1, 3], [2]),
        (b"[%s, 7, %s]", [1, 3], [2]),
        (b'[%s, {"a": ]}, %s]', [1, 3], [2]),
        (b'[%s,%s,{"messages": [', [1, 2], [3]),
        (b"[%s,%s] and more", [1, 2], [3]),
        (b"[%s,%s", [1, 2], []),
        (b"[]", [], []),
        (b"[", [], []),
        (b"[%s,,%s,]", [1, 2], []),
        (b'[%s, {"a": [}, %s]', [1, 3], [2]),
        (b"[%s] ] } , %s", [1], [2]),
    ],
)
def test_a_broken_element_of_an_array_is_named_once(content, good, bad, tmp_path):
    path = tmp_path / "d.json"
    path.write_bytes(content.replace(b"%s", LINE))
    found = items(path)
    assert [i for i, item in enumerate(found, 1) if item.record] == good and [
        i for i, item in enumerate(found, 1) if not item.record
    ] == bad


def test_bfcl_files_are_joined_by_id(tmp_path):
    question = {
        "question": [[{"role": "user", "content": "q"}]],
        "function": [{"name": "f", "parameters": {"type": "dict", "properties": {"x": {"type": "float"}}}}],
    }
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "q.json").write_text("\n".join(json.dumps({"id": name, **question}) for name in ("a", "b", "c")))
    (tmp_path / "possible_answer" / "q.json").write_text(
        "\n".join(json.dumps({"id": name, "ground_truth": [{"f": {"x": [i]}}]}) for i, name in enumerate("ba"))
    )
    moved = tmp_path / "answers.jsonl"
    for files in (
        [tmp_path / "q.json"],
        [tmp_path / "possible_answer" / "q.json", tmp_path / "q.json"],
        [tmp_path / "q.json", moved],
    ):
        if moved in files:
            (tmp_path / "possible_answer" / "q.json").rename(moved)
        found = list(read_all(files))
        assert [
            item.record and item.record.messages[-1]["tool_calls"][0]["function"]["arguments"]["x"] for item in found
        ] == [1, 0, None]
        assert found[2].line == 3 and "no possible_answer file has this id" in found[2].reason


def test_weights_repeat_records_and_a_fraction_is_drawn_by_what_they_hold(tmp_path):
    """The same ones wherever the file is; of equal records not all or none."""
    for name in "ab":
        write_records(tmp_path / f"{name}.jsonl", [Record(f"{name}{i}", GOOD["messages"]) for i in range(400)])
    sources = [DataFiles(str(tmp_path / "a.jsonl"), 2.25), DataFiles(str(tmp_path / "[b].jsonl"), 0.5)]
    ids = ids_of(sources)
    (tmp_path / "moved").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.jsonl").rename(tmp_path / "moved" / f"{name}.jsonl")
    assert ids == ids_of(
        [source._replace(pattern=source.pattern.replace(str(tmp_path), f"{tmp_path}/moved")) for source in sources]
    )
    assert {ids.count(f"a{i}") for i in range(400)} == {2, 3} and {ids.count(f"b{i}") for i in range(400)} == {0, 1}
    assert 860 < sum(i.startswith("a") for i in ids) < 940 and 160 < sum(i.startswith("b") for i in ids) < 240
    write_records(tmp_path / "same.jsonl", [Record("same", GOOD["messages"])] * 400)
    assert 160 < len(ids_of([DataFiles(str(tmp_path / "same.jsonl"), 0.5)])) < 240


def test_an_index_gives_the_records_of_every_kind_of_file_by_position(tmp_path):
    def line(name):
        return LINE.replace(b'"g"', json.dumps(name).encode())

    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + line("a0") + b"\n\nbroken\n" + b"x" * (MAX_RECORD_BYTES + 9) + b"\n" + line("a1")
    )
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line("b0") + b"\n" + line("b1")))
    (tmp_path / "c.json").write_bytes(b"[" + line("c0") + b",\n" + line("c1") + b"]")
    (tmp_path / "d.jsonl").write_text(
        json.dumps({"id": "d0", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})
    )
    (tmp_path / "e.json").write_text(json.dumps({"id": "e0", "question": "q", "function": {"name": "f"}}))
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "possible_answer" / "e.json").write_text(json.dumps({"id": "e0", "ground_truth": [{"f": {}}]}))
    quarantine = Quarantine(tmp_path / "bad.jsonl", 0.5)
    sources = [DataFiles(str(tmp_path / "?.json*")), DataFiles(str(tmp_path / "a.jsonl"), 2)]
    index = RecordIndex(sources, quarantine)
    ids = [index[at].id for at in range(len(index))]
    assert ids == ["a0", "a1", "b0", "b1", "c0", "c1", "d0", "e0", "a0", "a0", "a1", "a1"]
    assert index[6].messages == GOOD["messages"] and index[7].messages[1]["tool_calls"][0]["function"]["name"] == "f"
    assert index.size_hint(1) == len(line("a1")) and quarantine.num_bad == 4
    kept = [json.loads(bad)["line"] for bad in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert kept == [3, 4, 3, 4]
    spool = index.spool
    del index
    assert not Path(spool).exists()


def test_memory_stays_bounded(tmp_path):
    """Lines of 300 MB, plain and compressed 300-fold, are passed over in a process that may not grow by 100 MB."""
    path = tmp_path / "d.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        for _ in range(30):
            out.write(b'"' + b"x" * 10_000_000)
        out.write(b"\n" + LINE + b"\n")
    code = f"""if 1:
        import resource
        from kd.records.files import read_each
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print([item.record is not None for item in read_each({str(path)!r})], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    good, grown = done.stdout.rsplit(" ", 1)
    assert good == "[False, True]" and int(grown) < 100
