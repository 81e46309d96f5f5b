"""A data set survives bad servers, small budgets and kills with the same records, and pays for nothing twice."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.chat_server import message
from helpers.teaching_server import STOCK, TeachingServer, make, misbehave, settings_of, teach
from kd.config.sections.generation import GenerationConfig
from kd.endpoint.http import EndpointError
from kd.generation import generate
from kd.generation.budget import UNIT
from kd.generation.data_set import DataSet, GenerationError
from kd.generation.journal import FOLDER, Journal
from kd.outputs import OutputError
from kd.records.files import read_records

GENERATE = Path(__file__).resolve().parents[2] / "launch" / "generate.py"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Uninterrupted run: (card, files, number of requests)."""
    with TeachingServer() as server:
        settings = settings_of(server, tmp_path_factory.mktemp("clean"))
        made = make(settings)
        num = len(server.requests)
        assert make(settings) == made and len(server.requests) == num  # nothing is asked again
        assert server.billed <= made[0]["spent"]["total"] * 1e6 + 1e-6
    return *made, num


def test_records_are_canonical_and_in_the_order_of_the_prompts(clean):
    card, files, num = clean
    records = [json.loads(line) for line in files["train"].splitlines()]
    assert card["records"] == len(records) == 20 and card["complete"] and not card["dropped"]
    assert [one["meta"]["kind"] for one in records].count("single") == 8
    assert any(len(one["messages"]) >= 4 and one["messages"][-1]["content"].startswith("Here it is") for one in records)
    missing = next(one for one in records if one["meta"]["kind"] == "missing")
    assert sum(message["role"] == "user" for message in missing["messages"]) == 2
    recovery = [one for one in records if one["meta"]["kind"] == "recovery" and len(one["messages"]) > 2]
    assert all("temporarily unavailable" in one["messages"][2]["content"] for one in recovery) and recovery
    for one in records:
        assert all("returns" not in tool["function"] for tool in one["tools"])
        assert 0 <= one["quality"] <= 1 and set(one["meta"]["quality_parts"]) >= {"wanted"}
    assert num == sum(message["role"] == "assistant" for one in records for message in one["messages"])


def test_the_files_are_read_as_records(clean, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(clean[1]["train"])
    assert len(list(read_records(tmp_path / "train.jsonl"))) == 20


def test_a_misbehaving_server_changes_no_record(clean, tmp_path):
    with TeachingServer(faults=misbehave()) as server:
        card, files = make(settings_of(server, tmp_path))
        assert files == clean[1] and len(server.requests) > clean[2]
        assert server.billed <= card["spent"]["total"] * 1e6 + 1e-6 and card["spent"]["unknown"] > 0


def test_the_limit_is_never_passed_and_more_of_it_ends_with_the_same_file(clean, tmp_path):
    """The server counts; faults make some answers cost more than they give."""
    whole = clean[0]["spent"]["total"]
    with TeachingServer(faults=misbehave(3)) as server:
        for part in (0.0001, 0.3, 0.8, 20):
            settings = settings_of(server, tmp_path, spending__limit=part * whole, spending__overhead_tokens=0)
            try:
                card, files = make(settings)
            except GenerationError:
                assert part < 0.01  # not one request fits
                continue
            assert server.billed <= part * whole * 1e6 + 1e-6
            assert card["spent"]["total"] <= part * whole + 1e-9 and card["complete"] == (part == 20)
        assert files == clean[1]


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_kills_at_any_write_lose_nothing_that_was_kept(clean, tmp_path):
    """The process dies before, within or after its nth write to the journal, each time on another one."""
    drawn = random.Random(3)
    with TeachingServer() as server:
        settings, num_kills = settings_of(server, tmp_path), 0
        for at, cut in [(drawn.randrange(4, 30), drawn.random()) for _ in range(8)]:

            def work(at=at, cut=cut):
                whole, count = Journal._append, [0]

                def append(journal, line):
                    count[0] += 1
                    if count[0] == at:
                        raw = json.dumps(line).encode() + b"\n"
                        os.write(journal._file.fileno(), raw[: int(len(raw) * cut * 1.2)])
                        os._exit(9)
                    return whole(journal, line)

                Journal._append = append
                make(settings)

            num_kills += in_child(work) == 9
        card, files = make(settings)
        assert num_kills >= 4 and files == clean[1]
        assert len(server.requests) <= clean[2] + num_kills * settings["endpoint"]["concurrency"]
        assert server.billed <= card["spent"]["total"] * 1e6 + 1e-6


@pytest.mark.slow
def test_twenty_random_kills_give_the_same_file(tmp_path):
    """The real command, killed by SIGKILL at random moments, under a limit that the server counts."""

    def wait_and_teach(request):
        time.sleep(0.05)
        return teach(request)

    with TeachingServer(wait_and_teach, faults=misbehave(5)) as server:
        given = {"prompts__num": 150, "prompts__languages": ("en",)}
        whole = settings_of(server, tmp_path, **given)
        (tmp_path / "g.yaml").write_text(json.dumps(whole))
        drawn, num_kills = random.Random(5), 0
        while num_kills < 20:
            command = [sys.executable, str(GENERATE), "--config", str(tmp_path / "g.yaml")]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            journal = tmp_path / "out" / FOLDER / "journal.jsonl"
            size = journal.stat().st_size if journal.exists() else 0
            while process.poll() is None and (not journal.exists() or journal.stat().st_size <= size):
                time.sleep(0.01)
            time.sleep(drawn.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            num_kills += process.wait() == -9
        card, files = make(whole)
        assert server.billed <= card["spent"]["total"] * 1e6 + 1e-6
    (tmp_path / "again").mkdir()
    with TeachingServer() as server:
        assert make(settings_of(server, tmp_path / "again", **given))[1] == files


def test_held_out_tools_and_templates_are_in_no_record_of_train(tmp_path):
    with TeachingServer() as server:
        settings = settings_of(server, tmp_path, prompts__num=60, splits={"tools": 0.3, "templates": 0.2})
        settings["prompts"]["mix"] = {"several": 0.0, "near_miss": 0.0}
        card, files = make(settings)
    records = {split: [json.loads(line) for line in raw.splitlines()] for split, raw in files.items()}
    assert set(records) == {"train", "unseen_tools", "unseen_templates"}
    offered = {
        split: {tool["function"]["name"] for one in found for tool in one["tools"]} for split, found in records.items()
    }
    assert len(offered["train"]) == 2 and offered["unseen_tools"] == {"get_weather", "get_stock", "send_mail"}
    templates = {split: {one["meta"]["template"] for one in found} for split, found in records.items()}
    assert not templates["train"] & templates["unseen_templates"]
    held = ({"get_weather", "get_stock", "send_mail"} - offered["train"]).pop()
    assert held.encode() not in files["train"]
    assert card["files"]["train"]["records"] == len(records["train"])


def test_the_best_of_several_conversations_is_kept(tmp_path):
    with TeachingServer() as server:
        one, _ = make(settings_of(server, tmp_path))
        num = len(server.requests)
        settings = settings_of(server, tmp_path, sampling__num_samples=3)
        best, _ = make(settings)
        assert best["quality"]["quality"] > one["quality"]["quality"]
        assert num < len(server.requests)
        first = {json.dumps(request, sort_keys=True) for request in server.requests[:num]}
        again = [json.dumps(request, sort_keys=True) for request in server.requests[num:]]
        assert not first & set(again)  # the first conversation of each was paid before


@pytest.mark.parametrize(
    ("choice", "answers", "reason"),
    [
        (message("", {"name": "get_stock", "arguments": "{'symbol': 'A'}"}), {}, "broken call"),
        (message("", {"name": "nobody", "arguments": {}}), {}, "call of a tool that is not on offer"),
        (message("", {"name": "get_stock", "arguments": {"symbol": 3}}), {}, "arguments that the schema forbids"),
        (message("and so", finish="length"), {}, "cut at max_new_tokens"),
        (message(""), {}, "empty answer"),
        (message("", {"name": "get_stock", "arguments": {"symbol": "A"}}), {}, "still calling after max_rounds"),
        (message("<think>hm</think>fine"), {"reasoning": "refuse"}, "reasoning"),
        (message("I cannot"), {"min_quality": 0.5}, "quality under min_quality"),
    ],
)
def test_what_cannot_be_used_is_dropped_and_counted(tmp_path, choice, answers, reason):
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    with TeachingServer(lambda request: choice) as server:
        settings = settings_of(server, tmp_path, answers=answers)
        (tmp_path / "tools.json").write_text(json.dumps([STOCK]))
        if "min_quality" in answers:
            settings["prompts"] |= {"num": 2, "mix": dict.fromkeys(("several", "near_miss", "no_tool", "missing"), 0.0)}
        else:
            settings["prompts"] = {"files": (str(tmp_path / "p.jsonl"),), "tools": settings["prompts"]["tools"]}
        with pytest.raises(GenerationError, match=f"no record was made of 2 prompts: 2 {reason}"):
            make(settings)
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        assert card["dropped"] == {reason: 2} and card["records"] == 0
        num = len(server.requests)
        with pytest.raises(GenerationError):
            make(settings)
        assert len(server.requests) == num


def test_a_broken_call_is_mended_where_that_is_asked_for(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n')

    def say(request):
        done = request["messages"][-1]["role"] == "tool"
        return message("done") if done else message("", {"name": "get_stock", "arguments": '{"symbol": "A"'})

    with TeachingServer(say) as server:
        settings = settings_of(server, tmp_path, answers={"repair": True})
        settings["prompts"] = {"files": (str(tmp_path / "p.jsonl"),), "tools": settings["prompts"]["tools"]}
        card, files = make(settings)
    record = json.loads(files["train"])
    assert record["messages"][1]["tool_calls"][0]["function"] == {"name": "get_stock", "arguments": {"symbol": "A"}}
    assert card["notes"]["broken_calls"] == card["notes"]["repaired_calls"] == 1
    assert record["meta"]["quality_parts"]["written"] == 0


def test_a_dead_server_ends_the_run_and_keeps_what_was_answered(clean, tmp_path):
    with TeachingServer(faults=lambda number, request: None if number < 9 else misbehave(1)(1, request)) as server:
        settings = settings_of(server, tmp_path)
        settings["endpoint"]["retries"] = 1
        with pytest.raises(EndpointError, match=r"conversations failed, more than endpoint.max_missing \(0.01\)"):
            make(settings)
    with TeachingServer() as server:
        settings["endpoint"]["url"] = server.url
        assert make(settings)[1] == clean[1] and len(server.requests) == clean[2] - 9


def test_another_process_and_foreign_files_are_named(tmp_path):
    with TeachingServer() as server:
        settings = settings_of(server, tmp_path)
        out = tmp_path / "out"
        out.mkdir()
        (out / "train.jsonl").write_text('{"id": "mine"}\n')
        with pytest.raises(ValueError, match="train.jsonl is there already and is not known"):
            make(settings)
        (out / "train.jsonl").unlink()
        with (
            DataSet(GenerationConfig.model_validate(settings)),
            pytest.raises(ValueError, match="is in use by process"),
        ):
            make(settings)
        settings["endpoint"]["model"] = "demmo"
        said: list[str] = []
        with pytest.raises(EndpointError, match=r"status 404: The model `demmo` does not exist.*endpoint\.url"):
            make(settings, said.append)
        assert "endpoint.model: no model 'demmo' there; it has 'demo'; did you mean 'demo'?" in said


def test_a_power_cut_loses_a_second_at_most(tmp_path, monkeypatch):
    """What was written is forced to disk while the server is waited for, and at the end; never twice for nothing."""
    forced: list[int] = []
    monkeypatch.setattr(generate, "_SYNC_SECONDS", 0.05)

    def force(handle):
        if os.readlink(f"/proc/self/fd/{handle}").endswith("journal.jsonl"):
            forced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", force)

    def wait_and_teach(request):
        time.sleep(0.3)
        return teach(request)

    with TeachingServer(wait_and_teach) as server:
        make(settings_of(server, tmp_path, prompts__num=4))
    size = (tmp_path / "out" / FOLDER / "journal.jsonl").stat().st_size
    assert forced[-1] == size and len(set(forced)) == len(forced) > 2


def test_requests_under_way_while_the_limit_changes_its_name_are_asked_again(tmp_path):
    with TeachingServer(limit="max_completion_tokens") as server:
        card, _ = make(settings_of(server, tmp_path))
        assert card["records"] == 20 and not card["dropped"] and "max_tokens" not in server.requests[-1]


def test_the_journal_takes_a_reservation_without_a_charge_as_spent(tmp_path):
    journal = Journal(tmp_path)
    one, two = journal.reserve(5), journal.reserve(7)
    journal.charge(one, 3)
    journal.close()
    with (tmp_path / FOLDER / "journal.jsonl").open("ab") as file:
        file.write(b'{"charge": 1, "co')
    again = Journal(tmp_path)
    assert (again.spent, again.num_lost) == (3 + 7, 1) and again.reserve(1) == two + 1
    again.close()
    assert UNIT == 10**12


def test_a_journal_that_cannot_grow_is_named_at_its_end_too(tmp_path):
    """What its end tries to write again was told without a name, in place of the first."""
    journal, before = Journal(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for work in (lambda: journal.reserve(5), journal.close):
            with pytest.raises(OSError, match="File too large") as raised:
                work()
            assert raised.value.filename == str(journal.path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


DAMAGES = {
    "a flipped bit": lambda lines: [line.replace(b"weather", b"weathes") for line in lines],
    "a cost past all": lambda lines: [line.replace(b'"charge": ', b'"cost": 1e999, "charge": ') for line in lines],
    "costs that give money back": lambda lines: [*lines, b'{"charge": 0, "cost": -1000000000000000}\n'],
    "other types": lambda lines: [
        *lines,
        b'{"reserve": "x", "cost": 1}\n',
        b'{"reserve": 7, "cost": null}\n',
        b'{"answer": 5, "value": 1, "charge": {}, "cost": 1}\n',
    ],
    "depth": lambda lines: [*lines, b"[" * 100_000 + b"\n"],
    "zeros": lambda lines: [*lines, b"\0" * 10_000, b"\n"],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_line_of_the_journal_is_left_out_and_asked_again(clean, tmp_path, damage):
    with TeachingServer() as server:
        settings = settings_of(server, tmp_path)
        whole = make(settings)
        journal = tmp_path / "out" / FOLDER / "journal.jsonl"
        journal.write_bytes(b"".join(damage(journal.read_bytes().splitlines(keepends=True))))
        card, files = make(settings)
    assert files == whole[1] == clean[1]
    assert card["spent"]["total"] >= whole[0]["spent"]["total"] - 1e-9


def test_a_line_of_an_earlier_version_is_read(tmp_path):
    place = tmp_path / FOLDER / "journal.jsonl"
    place.parent.mkdir()
    place.write_text('{"reserve": 0, "cost": 9}\n{"answer": "ab", "charge": 0, "cost": 5, "value": {"text": "x"}}\n')
    journal = Journal(tmp_path)
    assert (journal.spent, journal.num_damaged, journal.find("answer", "ab")) == (5, 0, {"text": "x"})
    journal.close()


@pytest.mark.parametrize("name", [f"{FOLDER}/journal.jsonl", "train.jsonl", "unseen_tools.jsonl", "card.json"])
def test_a_pipe_in_an_outputs_place_is_not_waited_for(tmp_path, name):
    with TeachingServer() as server:
        settings = settings_of(server, tmp_path)
        (tmp_path / "out" / FOLDER).mkdir(parents=True)
        os.mkfifo(tmp_path / "out" / name)
        with pytest.raises(OutputError, match=f"output_dir: .*{name} is no"):
            make(settings)
        assert not server.requests
