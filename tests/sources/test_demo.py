"""The demo corpus: what it is made of, that its splits share nothing, and that every process makes the same one."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

import pytest

from helpers.jobs import REPOSITORY, plain_environment
from helpers.reading import calls_of, leaves
from kd.records.checks import DataError
from kd.records.files import write_records
from kd.records.record import parse_record
from kd.rendering.encode import annotate
from kd.sources.demo import corpus as demo
from kd.sources.demo.source import DemoSource
from kd.sources.demo.vocabulary import ALL_TOOLS, UNSEEN_TOOLS, WRITTEN_TOOLS
from kd.toolcalls.registry import ToolRegistry

WHOLE_VALUE = re.compile(r"[A-Z]{2}\d{3}|[A-Za-z]{3,}|\d{1,2}:\d{2}|\d{4}-\d{2}-\d{2}|\d+\.\d+|\d{3,}")


def drawn_values(record) -> set[str]:
    """Words, codes, dates, times and numbers of arguments and results; not enums and small counts, which all splits
    share.
    """
    enums = {value for p in demo.PARAMETERS.values() for value in p.schema.get("enum", ())}
    found = [leaf for call in calls_of(record) for leaf in leaves(call["arguments"])]
    found += [leaf for m in record.messages if m["role"] == "tool" for leaf in leaves(json.loads(m["content"]))]
    return {part for leaf in found if leaf not in enums for part in WHOLE_VALUE.findall(leaf)} - {"txt", "com"}


def test_there_are_enough_tools_of_every_shape():
    assert len(WRITTEN_TOOLS) >= 40 and len(ALL_TOOLS) >= 200
    written = [tool.schema()["function"]["parameters"] for tool in WRITTEN_TOOLS]
    schemas = [schema for parameters in written for schema in parameters["properties"].values()]
    assert {schema["type"] for schema in schemas} == {"string", "integer", "number", "array", "object"}
    assert any("enum" in schema for schema in schemas)
    assert any(set(parameters["required"]) < set(parameters["properties"]) for parameters in written)


@pytest.mark.parametrize("split", demo.SPLITS)
def test_calls_fit_the_schemas_of_the_offered_tools_and_prompts_name_every_value(split):
    for record in demo.records(split, 400, seed=9):
        registry = ToolRegistry(record.tools)
        assert len(set(registry.names)) == len(record.tools)
        calls = calls_of(record)
        said = " ".join(m["content"] for m in record.messages if m["role"] == "user")
        for call in calls:
            assert registry.validate_call(call["name"], call["arguments"]) == []
            assert all(leaf in said for leaf in leaves(call["arguments"]))
        assert bool(calls) == (record.meta["kind"] in ("single", "parallel", "multi"))
        if calls:  # distractors beside the tools that are called
            assert len(record.tools) > len({call["name"] for call in calls})


def test_a_record_where_no_tool_fits_does_not_offer_the_one_asked_for():
    asks = {ask: tool.name for tool in ALL_TOOLS.values() for ask in tool.asks}
    for index in range(300):
        record = demo.record("none", index, seed=2)
        request = record.messages[0]["content"].lower()
        asked = {name for ask, name in asks.items() if ask.lower() in request}
        assert record.tools and asked - {tool["function"]["name"] for tool in record.tools}


def test_no_unseen_tool_and_no_held_out_value_is_in_training():
    training_text, training_tools = set(), set()
    for kind in demo.KINDS:
        for index in range(1000):
            record = demo.record(kind, index, seed=5, split="train", short=index % 3 == 0)
            training_tools |= {tool["function"]["name"] for tool in record.tools}
            training_text |= set(
                WHOLE_VALUE.findall(
                    " ".join(m["content"] + json.dumps(m.get("tool_calls", "")) for m in record.messages)
                )
            )
    assert len(training_tools) >= 150
    for split in ("unseen_values", "unseen_tools"):
        values, tools = set(), set()
        for record in demo.records(split, 1500, seed=5):
            values |= drawn_values(record)
            tools |= {tool["function"]["name"] for tool in record.tools}
        assert len(values) > 2000
        assert not values & training_text
        assert (not tools & training_tools) if split == "unseen_tools" else tools <= training_tools


def digest() -> str:
    made = [
        demo.record(kind, index, seed=4, split=split)
        for split in demo.SPLITS
        for kind in demo.KINDS
        for index in range(20)
    ]
    made += [DemoSource(50, 3, {"single_short": 1, "echo": 0.5})[index] for index in range(50)]
    return hashlib.sha256(json.dumps([vars(r) for r in made]).encode()).hexdigest()


@pytest.mark.parametrize("salt", ["0", "1"])
def test_every_process_makes_the_same_records(salt):
    """Whatever Python salts its hashes with."""
    script = "import sys; sys.path[:0] = ['tests']; from sources.test_demo import digest; print(digest())"
    made = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=plain_environment(PYTHONHASHSEED=salt),
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.stdout.split()[-1] == digest()


def test_another_seed_is_another_corpus_and_an_unknown_kind_an_error():
    assert demo.record("single", 1, seed=1) != demo.record("single", 1, seed=2)
    with pytest.raises(ValueError, match="kinds are echo, single"):
        demo.record("double", 1)
    with pytest.raises(DataError, match="no demo record kind 'double_short'"):
        DemoSource(5, 1, {"double_short": 1.0})


def test_the_command_writes_records_and_a_tokenizer(tmp_path):
    demo.main(["--records", str(tmp_path / "r.jsonl"), "--split", "unseen_tools", "--num-records", "7"])
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [parse_record(json.loads(text), "x") for text in lines] == list(demo.records("unseen_tools", 7, seed=1337))
    assert {tool["function"]["name"] for text in lines for tool in json.loads(text)["tools"]} <= UNSEEN_TOOLS
    demo.main(["--records", str(tmp_path / "r.jsonl"), "--kinds", "near", "missing", "--num-records", "20"])
    kinds = {json.loads(text)["meta"]["kind"] for text in (tmp_path / "r.jsonl").read_text().splitlines()}
    assert kinds == {"near", "missing"}


@pytest.mark.parametrize("number", ["0", "-5"])
def test_no_records_are_refused_and_the_file_stays(tmp_path, capsys, number):
    path = tmp_path / "r.jsonl"
    write_records(path, demo.records("train", 1))
    with pytest.raises(SystemExit):
        demo.main(["--records", str(path), "--num-records", number])
    assert "--num-records: 1 or more" in capsys.readouterr().err and path.stat().st_size


def test_a_full_disk_is_told_in_one_line_and_leaves_the_tokenizer(tmp_path, capsys, monkeypatch):
    """It was cut where it stood, with a traceback."""
    build = demo.build_tokenizer
    monkeypatch.setattr(demo, "build_tokenizer", lambda folder, seed: build(folder, vocab_size=300, num_records=2))
    demo.main(["--tokenizer", str(tmp_path)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"} <= before.keys()

    def fill(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kd.atomic_files.os.fsync", fill)
    with pytest.raises(SystemExit):
        demo.main(["--tokenizer", str(tmp_path)])
    assert "the disk is full" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_value_is_the_same_tokens_in_a_request_in_json_and_in_an_answer(tokenizer):
    """What makes copying learnable: no token straddles a value's edge."""
    for value in ("Kruntamor", "AB123", "2031-04-09", "417", "83.5"):
        ids = tokenizer.encode(value, add_special_tokens=False)
        for text in (f"go to {value}, please", f'{{"city": "{value}"}}', f'["{value}", "x"]', f"Done: it is {value}."):
            around = tokenizer.encode(text, add_special_tokens=False)
            assert any(around[at : at + len(ids)] == ids for at in range(len(around))), text


def test_the_tokenizer_reads_back_what_it_wrote(tokenizer):
    for record in demo.records("unseen_values", 50, seed=1):
        text = tokenizer.apply_chat_template(record.messages, tools=record.tools, tokenize=False)
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_committed_teacher_renders_as_the_demo_does():
    assert (REPOSITORY / "configs" / "demo_teacher" / "chat_template.jinja").read_text(
        encoding="utf-8"
    ) == demo.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object"},
        {"type": "object", "properties": {"box": {"type": "object"}, "rows": {"type": "array"}, "any": {}}},
    ],
)
def test_tools_of_any_schema_are_rendered(parameters, tokenizer):
    """Other people's tools leave out what the demo's all have."""
    function = {"name": "f", "description": "..."} | ({} if parameters is None else {"parameters": parameters})
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"box": {"a": 1}}}}],
    }
    record = parse_record(
        {
            "id": "r",
            "messages": [{"role": "user", "content": "hi"}, call],
            "tools": [{"type": "function", "function": function}],
        },
        "x",
    )
    text = annotate(record, tokenizer).text
    assert text.startswith("<|tools|>f(") and ("box?: {}, rows?: [], any?" in text) == bool(
        (parameters or {}).get("properties")
    )
