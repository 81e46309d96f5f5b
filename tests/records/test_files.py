"""Files of records: compressed, arrays, Parquet, joined, weighted, by position; a damaged one is named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.record_cases import GOOD, LINE, ids_of, items
from kd.records.checks import MAX_RECORD_BYTES, DataError
from kd.records.files import DataFiles, read_all, write_records
from kd.records.lines import zstd
from kd.records.quarantine import Quarantine
from kd.records.record import Record
from kd.sources.file_index import RecordIndex

REPOSITORY = Path(__file__).resolve().parent.parent.parent


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
