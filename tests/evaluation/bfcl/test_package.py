"""BFCL's own package: it needs bfcl-eval beside this project, in the interpreter that runs the tests."""

import importlib.util
import json
import random
from functools import lru_cache

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")

from benchmarks.bfcl_mutations import make_answers  # noqa: E402
from helpers.bfcl_stand_in import make_say  # noqa: E402
from helpers.chat_server import ChatServer  # noqa: E402
from helpers.demo_server import TEACHER  # noqa: E402
from helpers.played_answers import Player, make_answer  # noqa: E402
from kd.evaluation.bfcl.categories import COLLECTIONS, OFFERED, SCORED  # noqa: E402
from kd.evaluation.bfcl.evaluate import evaluate_entries  # noqa: E402
from kd.evaluation.bfcl.package import Package  # noqa: E402
from kd.evaluation.bfcl_rules.answer import judge_calls  # noqa: E402
from kd.evaluation.bfcl_rules.entry import read_entry  # noqa: E402
from kd.evaluation.bfcl_rules.reading import read_as_bfcl  # noqa: E402
from kd.evaluation.evaluate import merge  # noqa: E402
from kd.records.formats.bfcl import read_python_call  # noqa: E402
from launch import evaluate as evaluate_command  # noqa: E402


@lru_cache
def open_package():
    return Package()


@lru_cache
def read_entries(category):
    return open_package().read_entries(category)


def test_its_categories_are_those_that_are_scored_here():
    names = importlib.import_module("bfcl_eval.constants.category_mapping")
    open_package()
    assert set(names.ALL_SCORING_CATEGORIES) == {*SCORED}
    for collection in ("single_turn", "non_live", "live", "multi_turn"):
        assert set(names.TEST_COLLECTION_MAPPING[collection]) == set(COLLECTIONS[collection])


@pytest.mark.parametrize("category", COLLECTIONS["single_turn"])
def test_our_judge_agrees_on_answers_made_by_mutation(category):
    package, entries = open_package(), read_entries(category)
    num_answers = num_right = 0
    for entry in entries[:: max(len(entries) // 6, 1)]:
        judged = {**entry.judged, "category": category, "truth": entry.truth}
        truth = [{name.replace(".", "_"): allowed for name, allowed in one.items()} for one in entry.truth or []]
        functions = [{**one, "name": one["name"].replace(".", "_")} for one in entry.judged["function"]]
        ours = read_entry(entry.id, functions, truth)
        for name, text in make_answers(judged, random.Random(entry.id)):
            answer = make_answer(text)
            calls = [
                {**call, "name": call["name"].replace(".", "_")} for call in read_as_bfcl(answer.text, answer.calls)
            ]
            theirs, verdict = package.check_calls(entry, calls), judge_calls(calls, ours)
            assert (verdict.valid, verdict.error) == theirs or theirs.error.startswith("checker:"), (entry.id, name)
            num_answers += 1
            num_right += theirs.valid
    assert 0 < num_right < num_answers


def evaluate_bfcl(answerer, package, categories, most_entries):
    entries = [entry for category in categories for entry in read_entries(category)[:most_entries]]
    return merge(evaluate_entries(answerer, package, entries))


def read_truth(entry):
    functions = [*entry.asked["function"], *sum(entry.asked.get("missed_function", {}).values(), [])]
    schemas = {function["name"]: function["parameters"] for function in functions}
    return [[read_python_call(text, schemas, entry.id) for text in turn] for turn in entry.truth]


def play_truth(category, number, change=lambda calls, turn: calls):
    """Play the ground truth of the first entries of a multi-turn category; `change` may alter the calls of a turn."""
    entries = {entry.asked["question"][0][0]["content"]: entry for entry in read_entries(category)[:number]}
    assert len(entries) == number

    def play(prompt):
        users = [message for message in prompt.messages if message["role"] == "user"]
        entry = entries[prompt.messages[0]["content"]]
        if prompt.messages[-1]["role"] == "tool":
            return "Done."
        turn = len(users) - 1
        return change(read_truth(entry)[turn], turn) or "Nothing to call."

    return Player(play)


@pytest.mark.parametrize("category", COLLECTIONS["multi_turn"])
def test_the_ground_truth_scores_in_full(category):
    found = evaluate_bfcl(play_truth(category, 12), open_package(), [category], most_entries=12)
    assert found.metrics[f"bfcl_v4_{category}"] == 1.0, found.metrics["errors"]
    assert found.metrics["bfcl"]["judges_differ"] == {} and all(case["outcome"]["right"] for case in found.cases)


def test_errors_score_what_they_should():
    """A turn left out, a call too many that changes nothing, and one who calls without end."""
    package, category = open_package(), "multi_turn_base"
    silent = evaluate_bfcl(
        play_truth(category, 8, lambda calls, turn: calls if turn else []), package, [category], most_entries=8
    )
    assert silent.metrics["bfcl_v4_multi_turn_base"] == 0
    assert silent.metrics["errors"] == {"multi_turn:empty_turn_model_response": 8}
    unknown = {"name": "open", "arguments": {"file": "/no/such", "mode": "w"}}
    more = evaluate_bfcl(
        play_truth(category, 8, lambda calls, turn: [*calls, unknown]), package, [category], most_entries=8
    )
    assert more.metrics["bfcl_v4_multi_turn_base"] == 1.0  # its checker counts states and results, not calls
    assert more.metrics["bfcl"]["judges_differ"] == {category: 8}
    steps = more.cases[0]["outcome"]["steps"]
    assert steps[0][0]["results"][-1] == "Error during execution: name 'open' is not defined"
    endless = evaluate_bfcl(Player(lambda prompt: [unknown]), package, [category], most_entries=2)
    assert endless.metrics["errors"] == {"multi_turn:force_terminated": 2}
    assert [len(turn) for turn in endless.cases[0]["outcome"]["steps"]] == [21]


def test_every_category_can_be_asked():
    found = evaluate_bfcl(Player(lambda prompt: "No."), open_package(), OFFERED, most_entries=2)
    assert found.metrics["num_records"] == 34 and found.metrics["bfcl_v4_irrelevance"] == 1
    assert found.metrics["bfcl_v4_live_relevance"] == found.metrics["bfcl_v4_overall_multi_turn"] == 0


@pytest.mark.parametrize("score, change", [(1.0, None), (0.0, lambda calls, turn: calls if turn else [])])
def test_an_endpoint_is_asked_its_conversations(tmp_path, score, change):
    player = play_truth("multi_turn_miss_func", 3, *([change] if change else []))
    with ChatServer(make_say(player)) as server:
        given = ["--model", f"served={server.url}", "--bfcl", "multi_turn_miss_func", "--bfcl-entries", "3"]
        assert evaluate_command.main([*given, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["served"]["bfcl"]
    assert found["bfcl_v4_multi_turn_miss_func"] == found["bfcl_v4_overall"] == score
    assert server.requests[-1]["messages"][-1]["role"] == "tool" and server.requests[-1]["temperature"] == 0


@pytest.mark.slow
def test_a_tiny_model_goes_through_its_conversations(tmp_path):
    given = ["--model", f"tiny={TEACHER}", "--bfcl", "multi_turn_base", "--bfcl-entries", "2", "--max-new-tokens", "8"]
    assert evaluate_command.main([*given, "--out", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    steps = [line["models"]["tiny"]["outcome"]["steps"] for line in lines]
    assert len(steps) == 2 and all(turn for turns in steps for turn in turns)
