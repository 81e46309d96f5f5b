"""The example on a real model: its data as records, its configurations as the schema has them."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_its_configurations_are_whole(name):
    config = load_config(EXAMPLE / f"{name}.yaml")
    assert config.run.name == f"smollm2_{name}"
    assert load_config(EXAMPLE / "student.yaml", ["loss.weights={kd: 0, hard: 0, truth: 1}", "loss.w_tool=0"])
