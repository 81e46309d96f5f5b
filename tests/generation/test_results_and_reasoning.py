"""Results of calls come from where the configuration says, and private reasoning is nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.caws_cases import DAY, write_project
from helpers.chat_server import message
from helpers.teaching_server import STOCK, WEATHER, TeachingServer, make, settings_of
from kd.endpoint.chat import Chat
from kd.generation.broker import BrokerError
from kd.generation.reasoning import clean_chat, cut_reasoning
from kd.records.caws.context import format_caws_context_for_prompt

GENERATE = Path(__file__).resolve().parents[2] / "launch" / "generate.py"
CANARY, KEY = "Canary7QuartzViolin", "sk-Zebra7QuartzViolin"


def call_then_say(request):
    last = request["messages"][-1]
    if last["role"] == "tool":
        return message(f"It is {last['content']}.")
    return message("", {"name": request["tools"][0]["function"]["name"], "arguments": {"city": "Oslo"}})


def make_records(settings):
    return [json.loads(line) for line in make(settings)[1]["train"].splitlines()]


def given(server, tmp_path, **broker):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Oslo?"}\n')
    settings = settings_of(server, tmp_path, broker=broker)
    (tmp_path / "tools.json").write_text(json.dumps([WEATHER]))
    settings["prompts"] = {"files": (str(tmp_path / "p.jsonl"),), "tools": settings["prompts"]["tools"]}
    return settings


def result_of(record):
    return next(one["content"] for one in record["messages"] if one["role"] == "tool")


def test_results_are_drawn_of_returns_the_same_each_time(tmp_path):
    with TeachingServer(call_then_say) as server:
        (tmp_path / "b").mkdir()
        (one,), (two,) = make_records(given(server, tmp_path)), make_records(given(server, tmp_path / "b"))
    assert one == two and 10 <= json.loads(result_of(one))["temperature"] <= 40


def test_fixtures_come_first_and_a_function_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "played_tools.py").write_text(
        "calls = []\ndef play(call, record, state):\n    calls.append(call)\n    return {'n': len(calls)}\n"
    )
    fixture = {"name": "get_weather", "arguments": {"city": "Oslo"}, "result": {"temperature": 3}}
    (tmp_path / "f.jsonl").write_text(json.dumps(fixture))
    with TeachingServer(call_then_say) as server:
        broker = {"fixtures": str(tmp_path / "f.jsonl"), "function": "played_tools:play"}
        (record,) = make_records(given(server, tmp_path, **broker))
        assert result_of(record) == '{"temperature": 3}'
        settings = given(server, tmp_path, function="played_tools:play")
        (record,) = make_records(settings)
        assert result_of(record) == '{"n": 1}' and make_records(settings) == [record]


ODD_FUNCTIONS = {
    "exits": ("raise SystemExit(3)", r"broker.function: odd_tools:play: .*SystemExit: 3.*'get_weather'"),
    "is interrupted": ("raise KeyboardInterrupt", "broker.function: odd_tools:play: .*KeyboardInterrupt"),
    "cancels": ("import asyncio; raise asyncio.CancelledError", "broker.function: odd_tools:play: .*CancelledError"),
    "sleeps": ("import time; time.sleep(30)", r"odd_tools:play has no result .*within 0.2 s: .*broker.timeout_seconds"),
}


@pytest.mark.parametrize(("body", "said"), ODD_FUNCTIONS.values(), ids=ODD_FUNCTIONS.keys())
def test_a_function_that_gives_no_result_is_told(tmp_path, monkeypatch, body, said):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_tools", raising=False)
    (tmp_path / "odd_tools.py").write_text(f"def play(call, record, state):\n    {body}\n")
    begun = time.monotonic()
    with TeachingServer(call_then_say) as server, pytest.raises(BrokerError, match=said):
        make(given(server, tmp_path, function="odd_tools:play", timeout_seconds=0.2))
    assert time.monotonic() - begun < 20


def test_a_function_changes_nothing_but_its_state(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "emptying_tools.py").write_text(
        "def play(call, record, state):\n    call['arguments'].clear(), call.clear(), record.messages.clear()\n"
        "    record.tools[0].clear()\n    return 'sunny'\n"
    )
    with TeachingServer(call_then_say) as server:
        (record,) = make_records(given(server, tmp_path, function="emptying_tools:play"))
    assert result_of(record) == "sunny" and record["messages"][0]["content"] == "Oslo?"
    assert record["messages"][1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Oslo"}}


def test_a_second_endpoint_plays_the_tools(tmp_path):
    with TeachingServer(call_then_say) as server, TeachingServer(lambda request: message('{"x": 5}')) as other:
        endpoint = {**settings_of(server, tmp_path)["endpoint"], "url": other.url}
        (record,) = make_records(given(server, tmp_path, endpoint=endpoint))
        assert result_of(record) == '{"x": 5}'
        assert "Look up the weather" in other.requests[0]["messages"][0]["content"]


def test_a_result_that_cannot_be_drawn_is_told(tmp_path):
    tool = {**WEATHER, "returns": {"type": "integer", "minimum": "many"}}
    with TeachingServer(call_then_say) as server:
        settings = given(server, tmp_path)
        (tmp_path / "tools.json").write_text(json.dumps([tool]))
        with pytest.raises(BrokerError, match=r"prompts.tools: .*tools.json: tool 'get_weather': returns: .*examples"):
            make(settings)
        (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Oslo?", "tools": [tool]}))
        with pytest.raises(BrokerError, match=r"p.jsonl:1: tool 'get_weather': returns: .*examples"):
            make({**settings, "prompts": {"files": settings["prompts"]["files"]}})


@pytest.mark.parametrize(
    "said", [message("half \ud800"), message("", {"name": "get_weather", "arguments": '{"city": "\\ud800"}'})]
)
def test_half_a_surrogate_pair_of_the_teachers_drops_its_conversation_alone(tmp_path, said):
    def say(request):
        if request["messages"][0]["content"] == "bad" and request["messages"][-1]["role"] == "user":
            return said
        return call_then_say(request)

    with TeachingServer(say) as server:
        settings = given(server, tmp_path)
        (tmp_path / "p.jsonl").write_text('{"prompt": "bad"}\n{"prompt": "Oslo?"}\n')
        card, files = make(settings)
    assert sum(card["dropped"].values()) == 1 and len(files["train"].splitlines()) == 1


@pytest.mark.parametrize("form", ["full", "compact"])
def test_the_record_has_the_context_that_the_teacher_saw(tmp_path, form):
    project = write_project(tmp_path / "project")
    with TeachingServer() as server:
        settings = settings_of(server, tmp_path, prompts__num=6, prompts__system="Be brief.")
        settings["caws"] = {"project": str(project), "form": form, "date": DAY}
        settings["answers"] = {"rewards": {"caws_compliance": 1.0}}
        records = make_records(settings)
        seen = {request["messages"][0]["content"] for request in server.requests}
    assert [record["caws"]["id"] for record in records] == ["AUTH-002", "PAY-001"] * 3
    for record in records:
        text = f"Be brief.\n\n{format_caws_context_for_prompt(record['caws'], form)}"
        assert record["messages"][0] == {"role": "system", "content": text} and text in seen
        assert record["meta"]["quality_parts"]["caws_compliance"] == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>a</think> b", "b"),
        ("a <THINKING>b\nc</THINKING> d", "a  d"),
        ("hidden</think>\nb", "b"),
        ("a <think>hidden", "a"),
        ("<think>x</think>a<think>y", "a"),
        ("a < think > b", "a < think > b"),
    ],
)
def test_reasoning_is_cut_out_of_texts(text, kept):
    assert cut_reasoning(text) == kept
    chat = Chat(text, [("f", json.dumps({"q": text}))], 1, True)
    clean, had = clean_chat(chat, {})
    assert had == (kept != text) and "hidden" not in clean.calls[0][1]
    assert clean_chat(Chat("b", [], 1, True), {"choices": [{"message": {"reasoning_content": "a"}}]})[1]


def reason(request):
    """Reason in every field, block and argument."""
    last = request["messages"][-1]
    said = message(f"<think>{CANARY}</think>It is so.")
    if last["role"] != "tool" and request.get("tools"):
        arguments = json.dumps({"symbol": f"<think>{CANARY}</think>AB"})
        said = message(f"{CANARY}</think>", {"name": "get_stock", "arguments": arguments})
    for field in ("reasoning_content", "reasoning", "thinking"):
        said["message"][field] = CANARY
    said["reasoning_details"] = [{"text": CANARY}]
    return said


def test_neither_key_nor_reasoning_is_in_a_file_a_log_or_what_is_printed(tmp_path):
    """The real command, with root logging at DEBUG; a server that breaks its answers, and one that refuses the key."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import logging\nlogging.basicConfig(level=logging.DEBUG, filename={str(tmp_path / 'debug.log')!r})\n"
    )
    broken = json.dumps({"choices": CANARY, "reasoning": CANARY}).encode()

    def fault(number, request):
        from helpers.endpoint_server import body, cut_body, status

        faults = [cut_body, body(broken), body(CANARY.encode(), "text/plain"), status(500), None, None]
        return faults[number % len(faults)] if number < 12 else status(403, message=KEY) if number > 24 else None

    with TeachingServer(reason, key=KEY, faults=fault) as server:
        settings = settings_of(server, tmp_path, prompts__num=12)
        settings["endpoint"] |= {"api_key_env": "TEACHER_KEY", "concurrency": 2}
        (tmp_path / "tools.json").write_text(json.dumps([STOCK, {**STOCK, "name": "get_bond"}]))
        (tmp_path / "g.yaml").write_text(json.dumps(settings))
        command = [sys.executable, str(GENERATE), "--config", str(tmp_path / "g.yaml"), "--verbose"]
        environment = {**os.environ, "TEACHER_KEY": KEY, "PYTHONPATH": str(tmp_path)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        listed = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        out, error = process.communicate(timeout=200)
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    files |= {"stdout": out, "stderr": error, "the process list": listed}
    assert b"the key is not accepted" in error and b"reasoning" in files["journal.jsonl"] and "debug.log" in files
    for secret in (KEY, CANARY):
        assert {name for name, raw in files.items() if secret.encode() in raw} == set()


@pytest.mark.parametrize(
    "text", ["<think>" * 70_000, "<think></thinking>" * 30_000, "<think>" * 40_000 + "</think>" * 40_000]
)
def test_many_tags_are_cut_in_one_pass(text):
    """70,000 of them took minutes."""
    begun = time.process_time()
    assert cut_reasoning(f"yes {text}") in ("", "yes")
    assert time.process_time() - begun < 5


def test_blocks_end_at_the_next_closing_tag_of_their_name():
    assert cut_reasoning("a<think>b</thinking>c</Think>d<thinking>e<think>f</thinking>g") == "adg"
    assert cut_reasoning("<think>a<think>b</think>c") == "c"


def test_reasoning_is_found_at_any_depth():
    answer = {"reasoning_content": "x"}
    for _ in range(5000):
        answer = {"a": [answer]}
    assert clean_chat(Chat("a", [], 1, True), answer)[1]
