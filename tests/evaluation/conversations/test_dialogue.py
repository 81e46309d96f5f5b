"""Whole conversations: the model's own calls are answered, and each turn is judged by the record's calls."""

import json
import sys
import time

import pytest

from helpers.played_answers import Player, make_answer, write_call
from helpers.scripted_model import Script, call, gold, make_tokenizer, record
from kd.evaluation.answerers.local_model import LocalModel
from kd.evaluation.cases import build_cases
from kd.evaluation.conversations.dialogue import Dialogue, Turn, run_dialogues
from kd.evaluation.conversations.evaluate import evaluate_conversations, split_turns
from kd.evaluation.conversations.judge import judge_turns
from kd.evaluation.conversations.results import NOT_RECORDED, SimulatorError, load_simulator, make_simulated
from kd.evaluation.metrics import summarise
from kd.records.checks import DataError
from kd.records.record import Record

OSLO, ROME = call("get_weather", city="Oslo"), call("get_weather", city="Rome")
STOCKS = call("get_stock", symbol="AB")
LONG = record(
    "long",
    "Weather in Oslo, then the stock.",
    [OSLO],
    ("tool", "3 degrees"),
    [STOCKS],
    ("tool", "45.5"),
    ("say", "3 degrees, 45.5."),
    "And in Rome?",
    [ROME],
    ("tool", "21 degrees"),
    ("say", "21 degrees."),
    "Thanks",
    ("say", "You are welcome."),
)
SHORT = record("short", "Stock of AB?", [STOCKS])  # ends with its call
CHAT = record("chat", "Hello", ("say", "Hi"))


def follow(records, change=lambda calls, at: calls):
    """Play the records' own answers; `change` may alter the calls of the answer at an index."""

    def play(prompt):
        first = next(m["content"] for m in prompt.messages if m["role"] == "user")
        record = next(r for r in records if r.messages[0]["content"] == first)
        truth = record.messages[len(prompt.messages)]
        calls = [one["function"] for one in truth.get("tool_calls") or []]
        return change(calls, len(prompt.messages)) or truth["content"]

    return Player(play)


def outcomes_of(records, change=lambda calls, at: calls, **options):
    return evaluate_conversations(follow(records, change), records, **options)


def test_the_records_own_answers_are_right_throughout():
    records = [LONG, CHAT, SHORT]
    player = follow(records)
    found = evaluate_conversations(player, records)
    assert [(one["case"], one["record"], one["kind"], one["correct"]) for one in found] == [
        (16, 0, "conversation", True),  # after the turns' cases, of which there are no more than messages
        (18, 2, "conversation", True),  # a conversation without calls is not held
    ]
    metrics = summarise(found)
    for name in ("conversations_right", "calls_before_error", "turns_reached"):
        assert metrics[name] == 1.0 and metrics["intervals"][name][1] == 1.0
    assert metrics["counts"]["conversations"] == 2
    results = [step["results"] for turn in found[0]["outcome"]["steps"] for step in turn]
    assert results == [["3 degrees"], ["45.5"], [], ["21 degrees"], [], []]
    told = [m for m in player.prompts[-1].messages if m["role"] == "tool"]
    assert [m["content"] for m in told] == ["3 degrees", "45.5", "21 degrees"]
    assert [m["tool_call_id"] for m in told] == ["call00000", "call00001", "call00002"]


RIGHT = [[OSLO], [STOCKS], "3 degrees, 45.5.", [ROME], "21 degrees.", "You are welcome."]


@pytest.mark.parametrize(
    "said, before, reached, turns",
    [
        ([[ROME], *RIGHT[1:]], 0, 1, [False, True, True]),  # a wrong value; the rest goes on
        ([[OSLO, OSLO], *RIGHT[1:]], 1, 1, [False, True, True]),  # one right, one too many
        ([[OSLO], *RIGHT[2:]], 1, 1, [False, True, True]),  # the turn ends a call short
        ([[STOCKS, OSLO], *RIGHT[2:]], 3, 3, [True, True, True]),  # both at once, in another order
        ([*RIGHT[:3], [STOCKS], *RIGHT[4:]], 2, 2, [True, False, True]),
        ([*RIGHT[:5], [OSLO], "You are welcome."], 3, 3, [True, True, False]),  # a call where none is wanted
        ([write_call(OSLO) + '<tool_call>{"name": </tool_call>', *RIGHT[1:]], 1, 1, [False, True, True]),  # broken
    ],
)
def test_an_error_counts_from_where_it_is_made(said, before, reached, turns):
    plays = iter(said)
    (found,) = evaluate_conversations(Player(lambda prompt: next(plays)), [LONG])
    outcome = found["outcome"]
    assert outcome["turns"] == turns and found["correct"] == outcome["right"] == all(turns)
    assert (outcome["calls_before_error"], outcome["num_calls"]) == (before, 3)
    assert (outcome["turns_reached"], outcome["num_turns"]) == (reached, 3)
    assert next(plays, None) is None
    metrics = summarise([found])
    assert metrics["conversations_right"] == all(turns) and metrics["calls_before_error"] == before / 3


def test_ranks_share_the_conversations():
    records = [LONG, CHAT, SHORT]
    parts = [evaluate_conversations(follow(records), records, share=(rank, 2)) for rank in range(2)]
    assert [one for part in parts for one in part] == evaluate_conversations(follow(records), records)


def test_a_call_that_the_record_does_not_make_is_told_so():
    (found,) = outcomes_of([LONG], lambda calls, at: [ROME] if at == 1 else calls)
    assert found["outcome"]["steps"][0][0]["results"] == ["21 degrees"]  # recorded, in another turn
    (found,) = outcomes_of([LONG], lambda calls, at: [call("get_weather", city="Paris")] if at == 1 else calls)
    assert found["outcome"]["steps"][0][0]["results"] == [NOT_RECORDED]


def test_equal_calls_get_their_own_results_in_order_and_then_the_last():
    twice = record("twice", "go", [OSLO], ("tool", "one"), [OSLO], ("tool", "two"), ("say", "done"))
    plays = iter([[OSLO], [OSLO], [OSLO], "done"])
    (found,) = evaluate_conversations(Player(lambda prompt: next(plays)), [twice])
    assert [step["results"] for step in found["outcome"]["steps"][0]] == [["one"], ["two"], ["two"], []]
    assert found["outcome"]["calls_before_error"] == 2 and not found["correct"]


def test_one_who_never_stops_calling_is_stopped():
    (found,) = evaluate_conversations(Player(lambda prompt: [OSLO]), [LONG])
    assert len(found["outcome"]["steps"]) == 1 and len(found["outcome"]["steps"][0]) == 21
    assert found["problems"] == ["turn 1: still calling after 20 steps"]
    assert found["outcome"]["turns"] == [False, False, False]


def test_a_prompt_that_the_template_refuses_ends_its_conversation_alone():
    class Fussy(Player):
        def answer(self, prompts, *, progress=None):
            if any("bad" in json.dumps(prompt.messages) for prompt in prompts):
                raise DataError("the chat template refuses it")
            return super().answer(prompts)

    dialogues = [Dialogue(name, [Turn([{"role": "user", "content": name}], [])] * 2, lambda calls: []) for name in "ab"]
    run_dialogues(Fussy(lambda prompt: "bad" if prompt.messages[0]["content"] == "a" else "good"), dialogues)
    assert [dialogue.problem for dialogue in dialogues] == ["the chat template refuses it", ""]
    assert [list(map(len, dialogue.steps)) for dialogue in dialogues] == [[1, 0], [1, 1]]
    refused = [Dialogue("a", [Turn([{"role": "user", "content": "bad"}], [])], lambda calls: [])]
    with pytest.raises(DataError, match="refuses"):
        run_dialogues(Fussy(lambda prompt: "x"), refused)


def test_what_a_template_shows_is_the_record_where_the_model_says_what_it_says():
    """A model of this process is asked the prompts of the turn-by-turn evaluation, token for token."""
    tokenizer = make_tokenizer()
    model = Script(tokenizer, {case.prompt: gold(case) for case in build_cases([LONG], tokenizer)})
    spoken = {tuple(key): value for key, value in model.answers.items()}
    thanks = Record("long", LONG.messages[:-1], LONG.tools)
    for at, message in enumerate(thanks.messages + LONG.messages[-1:]):
        if message["role"] == "assistant" and not message.get("tool_calls"):
            history = LONG.messages[:at]
            text = tokenizer.apply_chat_template(history, tools=LONG.tools, tokenize=False, add_generation_prompt=True)
            spoken[tuple(tokenizer(text)["input_ids"])] = [
                *tokenizer(message["content"])["input_ids"],
                tokenizer.eos_token_id,
            ]
    model.answers = spoken
    (found,) = evaluate_conversations(LocalModel(model, tokenizer, max_new_tokens=400), [LONG])
    assert found["correct"], found["problems"]


def test_turns_begin_at_the_users_messages():
    system = {"role": "system", "content": "Be brief."}
    greeting = {"role": "assistant", "content": "Hello!"}
    turns, wanted = split_turns(Record("r", [system, greeting, *LONG.messages, {"role": "user", "content": "x"}]))
    assert [[m["role"] for m in turn.messages] for turn in turns] == [
        ["system", "assistant", "user"],
        ["user"],
        ["user"],
    ]
    assert wanted == [[OSLO, STOCKS], [ROME], []]
    assert split_turns(Record("r", [greeting])) == ([], [])


def test_turns_that_were_not_asked_are_wrong():
    step = type("Step", (), {"calls": [OSLO], "answer": make_answer([OSLO])})()
    verdict = judge_turns([[step]], [[OSLO], [ROME], []])
    assert verdict["turns"] == [True, False, False] and verdict["turns_reached"] == 2


def test_a_simulator_answers_in_the_records_place(tmp_path, monkeypatch):
    (tmp_path / "my_tools.py").write_text(
        "def simulate(call, record, state):\n"
        "    state['n'] = state.get('n', 0) + 1\n"
        "    if call['arguments'].get('city') == 'Atlantis':\n"
        "        raise ValueError('no such city')\n"
        "    return {'call': state['n'], 'of': record.id}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_tools", raising=False)
    plays = iter([[OSLO], [call("get_weather", city="Atlantis"), STOCKS], "done", "done", "done"])
    player = Player(lambda prompt: next(plays))
    (found,) = evaluate_conversations(player, [LONG], load_simulator("my_tools:simulate"))
    assert [step["results"] for step in found["outcome"]["steps"][0]] == [
        ['{"call": 1, "of": "long"}'],
        ["Error: no such city", '{"call": 3, "of": "long"}'],
        [],
    ]


def test_half_a_character_is_replaced_and_an_error_without_words_is_told(tmp_path, monkeypatch):
    """A tokenizer takes no half of a character, and the error ended the evaluation in a traceback."""
    (tmp_path / "rough_tools.py").write_text(
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\n"
        "def half(call, record, state):\n    return {'a': '\\ud800'}\n"
        "def mute(call, record, state):\n    raise Mute\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rough_tools", raising=False)
    assert make_simulated(load_simulator("rough_tools:half"), SHORT)([OSLO]) == ['{"a": "?"}']
    assert make_simulated(load_simulator("rough_tools:mute"), SHORT)([OSLO]) == ["Error: it cannot say what it is"]


@pytest.mark.parametrize(
    "body, words",
    [
        ("import time; time.sleep(30)", "no result of a call of 'get_stock' within 0.2 s .record short.: .*-timeout"),
        ("import asyncio; raise asyncio.CancelledError", "ends the program .CancelledError. at a call of 'get_stock'"),
        ("raise SystemExit(0)", "ends the program .SystemExit: 0. at a call of 'get_stock'"),
    ],
)
def test_a_simulator_that_gives_no_result_is_told(tmp_path, monkeypatch, body, words):
    """One that sleeps held the evaluation for as long."""
    (tmp_path / "odd_simulator.py").write_text(f"def simulate(call, record, state):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_simulator", raising=False)
    begun = time.monotonic()
    with pytest.raises(SimulatorError, match=words):
        evaluate_conversations(follow([SHORT]), [SHORT], load_simulator("odd_simulator:simulate"), seconds=0.2)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    "name, words",
    [
        ("my_tools", "no module:function"),
        ("no_such_module_here:f", "PYTHONPATH"),
        ("json:no_such", "json has no function"),
        ("json:__name__", "json has no function"),
        ("broken_tools:f", "importing broken_tools failed: SyntaxError"),
        ("other_tools:two", r"does not take .call, record, state.: too many positional arguments"),
        ("other_tools:waits", "is async, or yields"),
        ("other_tools:yields", "is async, or yields"),
    ],
)
def test_a_simulator_that_cannot_be_used_is_named(tmp_path, monkeypatch, name, words):
    (tmp_path / "broken_tools.py").write_text("def f(:\n")
    (tmp_path / "other_tools.py").write_text(
        "def two(call, record):\n    return 1\nasync def waits(call, record, state):\n    return 1\n"
        "def yields(*asked):\n    yield 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SimulatorError, match=words):
        load_simulator(name)


def test_turns_and_conversations_are_summarised_apart():
    turn = {
        "case": 0, "record": 0, "record_id": "long", "turn": 1, "kind": "no_tool", "prompt": {}, "gold": {},
        "outcome": {"over_called": False}, "num_tokens": 3, "finished": True,
    }  # fmt: skip
    (held,) = outcomes_of([LONG])
    alone, both = summarise([turn]), summarise([turn, held])
    assert "conversations_right" not in alone and both["conversations_right"] == 1
    assert both["records"]["asked"] == alone["records"]["asked"]  # so that the two can be compared
    assert both["extra"]["mean_generated_tokens"] == alone["extra"]["mean_generated_tokens"] == 3
    assert both["num_records"] == 1 and "conversations" not in alone["counts"]
