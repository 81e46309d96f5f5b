"""The example on a real model: its data as records, its configurations as the schema has them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from helpers.jobs import REPOSITORY, plain_environment
from kd.config.load import load_config
from kd.records.files import read_records

EXAMPLE = REPOSITORY / "examples" / "smollm2"


def tool(name: str, field: str) -> dict:
    parameters = {"place": {"type": "str", "description": "where"}, "days": {"type": "int"}}
    return {
        "api_name": name,
        "api_description": f"{name} of a place",
        "field": field,
        "parameters": parameters,
        "required": ["place"],
    }


def line(name: str, tool: str, **arguments) -> dict:
    return {"id": name, "query": "How far?", "calling": [{"api": tool, "parameters": arguments}]}


def test_seal_tools_become_records_with_a_menu_of_their_field(tmp_path):
    tools = [tool(f"find{at}", "Travel/Roads") for at in range(5)] + [tool("cook", "Food/Soup")]
    requests = [line(f"good{at}", "find0", place="Tromsø", days=at) for at in range(104)]
    requests += [line("nested", "find0", place="API_call_0"), line("unknown", "lost", place="a")]
    requests += [line("text", "find0", place="a", days="three")]
    files = {"tool": tools, "dev": requests, "test_in_domain": [], "test_out_domain": [line("out", "cook", place="a")]}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(tmp_path / "made"), "data"]
    command += ["--seal-tools", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=plain_environment())
    assert done.returncode == 0, done.stderr
    for reason in ("another call's result", "does not fit its schema", "is not declared"):
        assert sum(reason in said and "left out: 1 of" in said for said in done.stdout.splitlines()) == 1
    made = {name: list(read_records(tmp_path / "made" / f"{name}.jsonl")) for name in ("train", "validation")}
    assert [len(records) for records in made.values()] == [4, 100]
    for record in made["train"]:
        menu = [one["function"]["name"] for one in record.tools]
        assert len(menu) == 3 and "find0" in menu and "cook" not in menu
        (call,) = record.messages[1]["tool_calls"]
        assert call["function"]["name"] == "find0" and call["function"]["arguments"]["place"] == "Tromsø"
    assert [record.id for record in read_records(tmp_path / "made" / "out_of_domain.jsonl")] == ["out"]


@pytest.fixture
def prepare(monkeypatch):
    spec = importlib.util.spec_from_file_location("prepare_smollm2", EXAMPLE / "prepare.py")
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, program)  # annotations are looked up there
    spec.loader.exec_module(program)

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
        return program.main()

    return run


def write_seal(folder, *, first=None, dev=None):
    folder.mkdir()
    (folder / "tool.jsonl").write_text(json.dumps(tool("a", "x/y")) + "\n" if first is None else first)
    lines = json.dumps(line("1", "a", place="b")) + "\n"
    for name in ("dev", "test_in_domain", "test_out_domain"):
        (folder / f"{name}.jsonl").write_text(lines if dev is None or name != "dev" else dev)
    return folder


def dumps(base: dict, **changes) -> str:
    return json.dumps({key: value for key, value in (base | changes).items() if value is not None}) + "\n"


TOOL, LINE = tool("a", "x/y"), line("1", "a", place="b")
ODD_TOOLS = ["{\n", "[1]\n", "5\n", dumps({"api_name": "a"}), dumps(TOOL, parameters=[1]), dumps(TOOL, required=5)]
ODD_TOOLS += [dumps(TOOL, parameters={"p": 5}), dumps(TOOL, field=None), dumps(TOOL, api_name="")]
ODD_LINES = ["{\n", "[]\n", dumps(LINE, calling=None), dumps(LINE, calling=[]), dumps(LINE, calling=[5])]
ODD_LINES += [dumps(LINE, query=5), dumps(LINE, query="\ud800"), dumps(LINE, id=7), dumps(LINE, calling=[{"api": "a"}])]


@pytest.mark.parametrize(("first", "dev"), [*((one, None) for one in ODD_TOOLS), *((None, one) for one in ODD_LINES)])
def test_an_odd_line_is_told_with_its_place(prepare, tmp_path, capsys, first, dev):
    folder = write_seal(tmp_path / "seal", first=first, dev=dev)
    assert prepare("--out", tmp_path / "out", "data", "--seal-tools", folder) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}/{'tool' if dev is None else 'dev'}.jsonl:1: ") and "Traceback" not in said
    assert not (tmp_path / "out" / "train.jsonl").exists()


@pytest.mark.parametrize("make", ["nothing", "a file", "an empty folder", "a pipe", "bytes"])
def test_an_odd_folder_is_told(prepare, tmp_path, capsys, make):
    folder = tmp_path / "seal"
    if make == "a file":
        folder.write_text("x")
    elif make == "an empty folder":
        folder.mkdir()
    elif make != "nothing":
        (write_seal(folder) / "dev.jsonl").unlink()
        os.mkfifo(folder / "dev.jsonl") if make == "a pipe" else (folder / "dev.jsonl").write_bytes(b"\xff\xfe")
    assert prepare("--out", tmp_path / "out", "data", "--seal-tools", folder) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}/") and "Traceback" not in said


def test_only_its_own_files_are_replaced(prepare, tmp_path, capsys):
    folder, out = write_seal(tmp_path / "seal"), tmp_path / "out"
    command = ("--out", out, "data", "--seal-tools", folder)
    assert prepare(*command) == prepare(*command) == 0
    (out / "train.jsonl").write_text('{"id": "mine"}\n')
    assert prepare(*command) == 1
    assert "train.jsonl is there already" in capsys.readouterr().err
    assert (out / "train.jsonl").read_text() == '{"id": "mine"}\n'
    (tmp_path / "file").write_text("x")
    assert prepare("--out", tmp_path / "file", "data", "--seal-tools", folder) == 1
    assert "--out: " in capsys.readouterr().err and (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("content", [None, b"GGUF" + b"\xff" * 100, b"mine"])
def test_a_model_that_cannot_be_read_is_told_and_nothing_is_lost(prepare, tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "x.gguf").write_bytes(content)
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "config.json").write_text("mine")
    for place in (tmp_path / "x.gguf", tmp_path):
        assert prepare("--out", tmp_path / "out", "model", "--gguf", place) == 1
        said = capsys.readouterr().err
        assert f"error: --gguf: {place}: " in said and "Traceback" not in said
    assert (tmp_path / "out" / "model" / "config.json").read_text() == "mine"


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_its_configurations_are_whole(name):
    config = load_config(EXAMPLE / f"{name}.yaml")
    assert config.run.name == f"smollm2_{name}"
    assert load_config(EXAMPLE / "student.yaml", ["loss.weights={kd: 0, hard: 0, truth: 1}", "loss.w_tool=0"])
