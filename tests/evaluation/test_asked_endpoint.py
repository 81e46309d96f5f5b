"""An endpoint is asked by its own tools, judged as any model is, and asked nothing twice."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from helpers.chat_server import ChatServer, message, say_gold
from helpers.endpoint_cases import FakeClock
from helpers.endpoint_server import MODEL, no_reply, status
from helpers.jobs import free_port
from helpers.scripted_model import call, record, tool, written
from kd.config.schema import Endpoint
from kd.endpoint.http import EndpointError
from kd.evaluation.answerers.endpoint import EndpointModel, Server
from kd.evaluation.answerers.journal import FOLDER, Journal
from kd.evaluation.cases import build_cases
from kd.evaluation.evaluate import Samples, evaluate_cases, merge
from kd.evaluation.metrics import METRICS
from kd.records.files import write_records
from kd.rollouts.decode import Sampling
from launch import evaluate as evaluate_command

RECORDS = [
    record("a", "Weather?", [call("get_weather", city="Oslo")], ("tool", '{"temp": 21}'), ("say", "21 degrees.")),
    record("b", "Both!", [call("get_weather", city="Rome", days=2), call("get_stock", symbol="AB")]),
    record("c", "Tell me a joke", ("say", "No tool fits.")),
]
CASES = build_cases(RECORDS)
OPENING = 1  # completions that opening takes


def open_model(server: ChatServer, **settings) -> EndpointModel:
    asked = {key: settings.pop(key) for key in ("sampling", "journal") if key in settings}
    clock = FakeClock()
    options = {"url": server.url, "model": MODEL, "retries": 3, **settings}
    return EndpointModel(Server(Endpoint.model_validate(options), 64, say=lambda text: None, **asked), clock.clock())


def evaluate(say, cases=CASES, **settings):
    with ChatServer(say) as server:
        return merge(evaluate_cases(open_model(server, **settings), cases)), server


def test_an_endpoint_s_own_calls_are_judged_as_calls():
    evaluation, server = evaluate(say_gold(CASES))
    wanted = dict.fromkeys(METRICS.names(), 1.0) | {"over_calling": 0.0}
    assert {name: evaluation.metrics[name] for name in METRICS.names()} == wanted
    assert all(case["finished"] and case["num_tokens"] == 5 for case in evaluation.cases)
    assert evaluation.cases[0]["own_calls"] == [["get_weather", '{"city": "Oslo"}']]
    later = next(request for request in server.requests if len(request["messages"]) == 3)
    assert later["messages"][1]["tool_calls"][0]["id"] == later["messages"][2]["tool_call_id"]
    assert later["messages"][1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert later["temperature"] == 0 and later["max_tokens"] == 64 and later["tools"] == RECORDS[0].tools


ONE = [case for case in CASES if case.record_id == "b"]
GOOD = {"name": "get_stock", "arguments": {"symbol": "AB"}}


@pytest.mark.parametrize(
    ("choice", "names", "exact", "valid", "repaired"),
    [
        (message("", *ONE[0].gold_calls), 1, 1, 1, 1),
        (message(written(*ONE[0].gold_calls)), 1, 1, 1, 1),  # a server without a parser of calls
        (message("I do.\n" + json.dumps(ONE[0].gold_calls[0]) + "\n" + json.dumps(GOOD)), 1, 1, 1, 1),
        (message("", ONE[0].gold_calls[0]), 0, 0, 1, 1),
        (message("", ONE[0].gold_calls[0], {"name": "get_stock", "arguments": '{"symbol": "AB"'}), 0, 0, 0, 1),
        (
            message("", ONE[0].gold_calls[0], {"name": "get_stock", "arguments": '{"symbol": 1, "symbol": 1}'}),
            0,
            0,
            0,
            1,
        ),
        (message("", ONE[0].gold_calls[0], {"name": "get_stock", "arguments": '["AB"]'}), 0, 0, 0, 0),
        (message("", ONE[0].gold_calls[0], {"name": "get_stock", "arguments": '{"symbol": "AB"} and'}), 0, 0, 0, 1),
        (message(f"<tool_call>{json.dumps(GOOD)[:-1]}</tool_call>"), 0, 0, 0, 1),
        (message("get_stock(symbol=AB"), 0, 0, 0, 0),
        (message("No."), 0, 0, 0, 0),
    ],
)
def test_right_and_broken_calls_have_their_verdicts(choice, names, exact, valid, repaired):
    evaluation, _ = evaluate(lambda request: choice, ONE)
    outcome = evaluation.cases[0]["outcome"]
    found = [outcome[key] for key in ("names", "exact", "json", "repaired_json")]
    assert found == [bool(one) for one in (names, exact, valid, repaired)], evaluation.cases[0]["problems"]
    assert outcome["missed"] == (choice["message"]["content"] == "No.")


def test_names_that_the_api_does_not_take_are_sent_otherwise_and_given_back():
    tools = [tool("math.add", a={"type": "integer"}), tool("math_add", b={"type": "integer"})]
    cases = build_cases([record("r", "Add!", [call("math.add", a=1)], ("tool", "1"), ("say", "1"), tools=tools)])
    asked = []

    def say(request):
        asked.append(request)
        return message("", {"name": request["tools"][0]["function"]["name"], "arguments": {"a": 1}})

    evaluation, _ = evaluate(say, cases)
    assert [one["function"]["name"] for one in asked[-1]["tools"]] == ["math_add_2", "math_add"]
    assert evaluation.metrics["exact_arguments"] == 1 and evaluation.cases[0]["calls"][0]["name"] == "math.add"


def test_requests_are_under_way_together_within_the_bound_and_progress_counts_all():
    at_once, seen = threading.Barrier(3), []

    def say(request):
        if len(request.get("tools", ())) == 2:  # not the opening
            at_once.wait(timeout=20)
        return message("No.")

    with ChatServer(say) as server:
        many = [*CASES[:3]] * 3
        answers = open_model(server, concurrency=3, retries=0).answer(
            [Samples().list_prompts(case)[0] for case in many], progress=lambda done, num: seen.append((done, num))
        )
        assert server.most_active == 3 and len(answers) == 9 and seen[-1] == (9, 9)


def test_sampled_requests_have_seeds_of_their_own():
    with ChatServer(lambda request: message(str(request.get("seed")))) as server:
        model = open_model(server, sampling=Sampling(0.7, 0.9))
        outcomes = evaluate_cases(model, CASES, Samples(3, 5))
        assert {(one["temperature"], one["top_p"]) for one in server.requests} == {(0.7, 0.9)}
    assert len({one["output"] for one in outcomes}) == len(outcomes) == 3 * len(CASES)


def test_a_server_of_the_newer_limit_is_asked_by_it():
    with ChatServer(say_gold(CASES), limit="max_completion_tokens") as server:
        evaluation = merge(evaluate_cases(open_model(server), CASES))
    assert evaluation.metrics["exact_arguments"] == 1


ERRORS = {
    "wrong name": ({"model": "dem"}, {}, r"--endpoint-model: no model 'dem' there; it has 'demo'; did you mean 'demo'"),
    "no tools": ({}, {"takes_tools": False}, r"takes no tools for 'demo': .*start the server with tool calling"),
    "no key": ({}, {"key": "k"}, r"the key is not accepted \(status 401; no key was sent\): .*--api-key-env names"),
    "unset key": ({"api_key_env": "NOT_SET"}, {}, r"--api-key-env: the variable that it names is not set"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_endpoint_that_cannot_serve_is_told_before_anything_is_asked(kind, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    settings, options, said = ERRORS[kind]
    with ChatServer(say_gold(CASES), **options) as server, pytest.raises(EndpointError, match=said):
        open_model(server, **settings)


def test_an_address_that_nothing_answers_at_is_told_at_once():
    url = f"http://127.0.0.1:{free_port()}/v1"
    settings = Endpoint(url=url, model=MODEL)
    with pytest.raises(EndpointError, match=rf"{url}: no connection: .*\(attempts: 3\)"):
        EndpointModel(Server(settings, 8, say=lambda text: None), FakeClock().clock())


def test_the_only_model_is_taken_where_none_is_named():
    with ChatServer(say_gold(CASES)) as server:
        settings = Endpoint(url=server.url, model="x").model_copy(update={"model": ""})
        EndpointModel(Server(settings, 8))
        assert server.requests[0]["model"] == MODEL


def test_a_busy_server_is_waited_for_and_a_prompt_that_it_refuses_counts_as_not_answered():
    def fault(number, request):
        if number == OPENING:
            return status(429, {"Retry-After": "7"})
        return status(400, message="too long") if request["messages"][-1]["content"] == "Both!" else None

    with ChatServer(say_gold(CASES), faults=fault) as server:
        evaluation = merge(evaluate_cases(open_model(server, concurrency=1), CASES))
    refused = next(case for case in evaluation.cases if case["record_id"] == "b")
    assert refused["problems"] == ["not answered: the server refuses it: too long"] and not refused["finished"]
    assert sum(case["correct"] for case in evaluation.cases) == len(CASES) - 1


def test_a_prompt_that_always_fails_counts_as_not_answered_while_others_are():
    def fault(number, request):
        return status(500) if request["messages"][-1]["content"] == "Both!" else None

    with ChatServer(say_gold(CASES), faults=fault) as server:
        evaluation = merge(evaluate_cases(open_model(server, max_missing=0.5), CASES))
        assert sum("not answered: status 500" in str(case["problems"]) for case in evaluation.cases) == 1
        with pytest.raises(EndpointError, match=r"1 of 4 prompts were not answered, more than 1%; the last: status"):
            evaluate_cases(open_model(server), CASES)


def test_what_was_answered_is_not_asked_again_and_the_journal_goes_once_all_is_written(tmp_path):
    def dead(number, request):
        return no_reply if number >= OPENING + 2 else None

    with ChatServer(say_gold(CASES), faults=dead) as server:
        model = open_model(server, concurrency=1, journal=Journal(tmp_path))
        with pytest.raises(EndpointError, match=r"answers no more: .*what was answered is kept; give the same command"):
            evaluate_cases(model, CASES)
        server.fault_of = lambda number, request: None
        with (tmp_path / FOLDER / "rank-0.jsonl").open("ab") as file:
            file.write(b'{"request": "cut by a ki')
        server.requests.clear()
        journal = Journal(tmp_path, rank=1)
        assert journal.num_kept == 2
        evaluation = merge(evaluate_cases(open_model(server, journal=journal), CASES))
        assert len(server.requests) == OPENING + len(CASES) - 2
    assert evaluation.metrics["exact_arguments"] == 1
    (tmp_path / FOLDER / "mine.txt").touch()
    journal.remove()
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["mine.txt"]


def test_the_command_asks_an_endpoint_with_a_key_that_it_shows_nowhere(tmp_path, monkeypatch, capsys):
    key = "sk-Zebra7QuartzViolin"
    monkeypatch.setenv("MY_KEY", key)
    write_records(tmp_path / "held_out.jsonl", RECORDS)

    def fault(number, request):
        return status(500, message=f"you sent {key}") if number == 2 else None

    with ChatServer(say_gold(CASES), key=key, faults=fault) as server:
        command = ["--model", f"big={server.url}", "--data", str(tmp_path / "held_out.jsonl"), "--out", str(tmp_path)]
        assert evaluate_command.main([*command, "--api-key-env", "MY_KEY", "--concurrency", "2"]) == 0
        written_metrics = json.loads((tmp_path / "evaluation.json").read_text())["big"]["held_out"]
        assert written_metrics["exact_arguments"] == 1 and written_metrics["num_records"] == 3
        assert evaluate_command.main([*command, "--endpoint-model", "big=other", "--api-key-env", "MY_KEY"]) == 1
    shown = "".join(capsys.readouterr())
    assert "no model 'other' there; it has 'demo'" in shown and "Traceback" not in shown
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert key not in shown and not any(key.encode() in raw for raw in files)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "m", "--concurrency", "2"], "go with an address"),
        (["--model", "http://u:p@h/v1"], "--model: String should match pattern"),
        (["--model", "http://h/v1", "--concurrency", "0"], "--concurrency: Input should be greater"),
    ],
)
def test_options_that_cannot_serve_are_wrong_use(given, said, tmp_path, capsys):
    (tmp_path / "d.jsonl").touch()
    with pytest.raises(SystemExit, match="2"):
        evaluate_command.main([*given, "--data", str(Path(tmp_path / "d.jsonl")), "--out", str(tmp_path)])
    assert said in capsys.readouterr().err


def test_reading_a_long_damaged_answer_is_quick():
    began = time.monotonic()
    evaluation, _ = evaluate(lambda request: message('{"name": "get_stock", ' * 5000), ONE)
    assert not evaluation.cases[0]["correct"] and time.monotonic() - began < 10
