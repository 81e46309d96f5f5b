"""`launch/evaluate.py` with --bfcl and --conversations, over an endpoint on loopback."""

import json

import pytest

from helpers.bfcl_stand_in import CATEGORIES, StandIn, make_say, play
from helpers.chat_server import ChatServer, message
from helpers.scripted_model import call, record
from kd.records.files import write_records
from launch import evaluate as evaluate_command
from launch import further


def test_bfcl_is_asked_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(further, "Package", StandIn)
    for way in ("right", "wrong"):
        with ChatServer(make_say(play(way))) as server:
            given = ["--model", f"served={server.url}", "--bfcl", *CATEGORIES, "--out", str(tmp_path / way)]
            assert evaluate_command.main(given) == 0
        found = json.loads((tmp_path / way / "evaluation.json").read_text())["served"]["bfcl"]
        assert found["bfcl_v4_multi_turn_miss_func"] == (way == "right") and found["bfcl_v4_multiple"] == 1
    assert "BFCL overall" in capsys.readouterr().out
    files = [f"{way}={tmp_path / way / 'evaluation.json'}" for way in ("right", "wrong")]
    for _ in range(2):  # what it wrote is its own, and is overwritten
        assert evaluate_command.main(["--compare", *files, "--out", str(tmp_path / "both")]) == 0
    assert "| bfcl_v4_multi_turn_miss_func | ~ +100.0 " in (tmp_path / "both" / "comparison.md").read_text()
    assert "BFCL overall" in (tmp_path / "both" / "comparison.html").read_text()


def test_conversations_are_held_beside_the_turns(tmp_path):
    oslo = call("get_weather", city="Oslo")
    held = record("r", "Weather?", [oslo], ("tool", "3 degrees"), ("say", "3 degrees."), "Thanks", ("say", "Welcome."))
    write_records(tmp_path / "d.jsonl", [held])

    def say(request):
        said = held.messages[len(request["messages"])]
        calls = [one["function"] for one in said.get("tool_calls") or []]
        return message(said["content"], *calls)

    with ChatServer(say) as server:
        given = ["--model", f"served={server.url}", "--data", f"d={tmp_path / 'd.jsonl'}", "--out", str(tmp_path)]
        assert evaluate_command.main([*given, "--conversations"]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["served"]["d"]
    assert found["conversations_right"] == found["exact_arguments"] == 1 and found["intervals"]["turns_reached"]
    assert found["counts"]["conversations"] == found["counts"]["call_turns"] == 1
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert kinds == ["call", "integration", "no_tool", "conversation"]


@pytest.mark.parametrize(
    "given, words",
    [
        ("--bfcl simple_pyhton", "the nearest is simple_python"),
        ("--bfcl memory_kv", "is not offered here"),
        ("--bfcl all --temperature 1", "--temperature: "),
        ("--bfcl all --bfcl-entries 0", "--bfcl-entries: 1 or more"),
        ("--bfcl all --data bfcl=DATA", "choose another name"),
        ("--conversations --bfcl all", "--conversations: the records"),
        ("--data DATA --simulator a:b", "--simulator: "),
        ("--bfcl-entries 3 --data DATA", "--bfcl-entries: 1 or more, with --bfcl"),
    ],
)
def test_wrong_use_is_told(tmp_path, capsys, given, words):
    data = tmp_path / "d.jsonl"
    data.write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        evaluate_command.main(["--model", "m", "--out", str(tmp_path), *given.replace("DATA", str(data)).split()])
    assert words in capsys.readouterr().err
