"""BFCL's categories, its weighting, and an evaluation with a stand-in for its package."""

import importlib.util
import json
import math
import random
import re

import pytest

from helpers.bfcl_stand_in import ADD, CATEGORIES, StandIn, play
from helpers.played_answers import Player, write_call
from kd.evaluation.bfcl import package
from kd.evaluation.bfcl.categories import GROUPS, OFFERED, OVERALL, BfclError, choose_categories, share_weight
from kd.evaluation.bfcl.evaluate import evaluate_entries, read_entries
from kd.evaluation.bfcl.package import Package
from kd.evaluation.comparison import compare_models
from kd.evaluation.evaluate import merge
from kd.evaluation.files import format_comparison, format_table, write_cases, write_evaluation
from kd.evaluation.metrics import summarise
from kd.reports.scores import draw_scores


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BfclError, match=r'pip install "spanwise\[bfcl\]"'):
        Package()


def test_categories_are_chosen_by_name_and_collection():
    assert choose_categories(["live_simple", "multi_turn", "live_simple"]) == [
        "live_simple", "multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context",
    ]  # fmt: skip
    assert choose_categories(["all"]) == list(OFFERED) and len(OFFERED) == 17
    with pytest.raises(BfclError, match="the nearest is simple_python"):
        choose_categories(["simple_pyhton"])
    with pytest.raises(BfclError, match="memory_kv is not offered here"):
        choose_categories(["memory_kv"])


def test_the_overall_is_bfcls():
    """Its definition, written out again: means of means, weighted 10, 10, 10, 30, 40."""
    rng = random.Random(1)
    names = [*OFFERED, "web_search_base", "web_search_no_snippet", "memory_kv", "memory_vector", "memory_rec_sum"]
    counts = {name: rng.randrange(1, 50) for name in names}
    s = {name: rng.random() for name in names}

    def mean(*values):
        return sum(values) / len(values)

    live = ["live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"]
    simple = mean(s["simple_python"], s["simple_java"], s["simple_javascript"])
    web = mean(s["web_search_base"], s["web_search_no_snippet"])
    memory = mean(s["memory_kv"], s["memory_vector"], s["memory_rec_sum"])
    wanted = (
        10 * mean(simple, s["multiple"], s["parallel"], s["parallel_multiple"])
        + 10 * sum(s[n] * counts[n] for n in live) / sum(counts[n] for n in live)
        + 10 * mean(s["irrelevance"], s["live_irrelevance"])
        + 30 * mean(*(s[n] for n in names if n.startswith("multi_turn")))
        + 40 * mean(web, memory)
    ) / 100
    weights = share_weight(OVERALL, counts)
    assert math.isclose(sum(weight * s[name] for name, weight in weights.items()), wanted)
    assert math.isclose(sum(weights.values()), 1) and "live_relevance" not in weights
    assert share_weight(GROUPS["agentic"], {"multiple": 3}) == {}
    assert share_weight(OVERALL, {"irrelevance": 5, "multi_turn_base": 1}) == {
        "irrelevance": 0.25,
        "multi_turn_base": 0.75,
    }


def case(number, category, right):
    return {
        "case": number, "record": number, "record_id": f"{category}_{number}", "turn": 0, "kind": "bfcl",
        "outcome": {"category": category, "bfcl": right, "ours": right, "error": "" if right else "wrong",
            "judge": "bfcl-eval"},
        "num_tokens": 1, "finished": True,
    }  # fmt: skip


def test_the_interval_of_a_group_is_that_of_draws_within_its_categories():
    """By simulation: the interval of a mean over unlike categories holds it in 93 to 97 % of draws."""
    rng, names = random.Random(0), {"simple_python": (0.95, 120), "multiple": (0.3, 60), "irrelevance": (0.7, 80)}
    weights = share_weight(OVERALL, {name: size for name, (_, size) in names.items()})
    truth = sum(weights[name] * names[name][0] for name in names)
    held = widths = 0
    for _ in range(400):
        drawn = [(name, rng.random() < p) for name, (p, size) in names.items() for _ in range(size)]
        metrics = summarise([case(at, *one) for at, one in enumerate(drawn)])
        low, high = metrics["intervals"]["bfcl_v4_overall"]
        held += low <= truth <= high
        widths += high - low
    assert 0.93 <= held / 400 <= 0.98
    spread = math.sqrt(sum(weights[n] ** 2 * p * (1 - p) / size for n, (p, size) in names.items()))
    assert widths / 400 == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_few_entries_of_one_verdict_are_not_certain():
    few = summarise([case(0, "multiple", True), case(1, "irrelevance", False), case(2, "multi_turn_base", True)])
    low, high = few["intervals"]["bfcl_v4_overall"]
    assert few["bfcl_v4_overall"] == pytest.approx(0.8) and low < 0.3 and high > 0.9
    (low, high), (one, _) = (
        summarise([case(at, name, True) for at, name in enumerate(["multiple", "irrelevance"] * num)])["intervals"][
            "bfcl_v4_overall"
        ]
        for num in (50, 1)
    )
    assert high == 1 and 0.9 < low < 0.98 and one < 0.5


def evaluate_bfcl(answerer, package, categories, most_entries=None):
    return merge(evaluate_entries(answerer, package, read_entries(package, categories, most_entries)))


def test_answers_are_asked_executed_and_judged():
    player = play("right")
    found = evaluate_bfcl(player, StandIn(), CATEGORIES)
    metrics = found.metrics
    assert player.prompts[0].tools[0]["function"]["parameters"]["type"] == "object"
    assert metrics["bfcl_v4_multiple"] == 1 and metrics["bfcl_v4_irrelevance"] == 0
    assert metrics["bfcl_v4_multi_turn_miss_func"] == metrics["bfcl_v4_overall_multi_turn"] == 1
    assert metrics["bfcl_v4_overall"] == pytest.approx((10 * 1 + 10 * 0 + 30 * 1) / 50)
    assert metrics["counts"] == {"multiple": 3, "irrelevance": 3, "multi_turn_miss_func": 1}
    assert metrics["errors"] == {"wrong": 3} and metrics["bfcl"]["judges_differ"] == {}
    assert "live_simple" in metrics["bfcl"]["not_run"] and "memory_kv" in metrics["bfcl"]["not_run"]
    turns = found.cases[-1]["outcome"]["steps"]
    assert [[step["results"] for step in turn] for turn in turns] == [[["put 2"], []], [["put 3"], []], [["put 1"], []]]
    assert [one["case"] for one in found.cases] == list(range(7))
    few = evaluate_bfcl(play("right"), StandIn(), CATEGORIES, most_entries=1)
    assert few.metrics["num_records"] == 3


def test_ranks_share_the_entries():
    package = StandIn()
    entries = read_entries(package, CATEGORIES)
    parts = [evaluate_entries(play("right"), package, entries, (rank, 2)) for rank in range(2)]
    assert [len(part) for part in parts] == [4, 3]
    assert merge(*parts) == merge(evaluate_entries(play("right"), package, entries))


def test_another_way_to_the_same_state_has_two_verdicts():
    metrics = evaluate_bfcl(play("another way"), StandIn(), CATEGORIES).metrics
    assert metrics["bfcl_v4_multi_turn_miss_func"] == 1
    assert metrics["bfcl"]["judges_differ"] == {"multi_turn_miss_func": 1}
    metrics = evaluate_bfcl(play("wrong"), StandIn(), CATEGORIES).metrics
    assert metrics["bfcl_v4_multi_turn_miss_func"] == 0
    assert metrics["bfcl"]["judges_differ"] == {}
    assert metrics["errors"]["multi_turn:instance_state_mismatch"] == 1


def test_a_broken_block_beside_a_right_call_has_two_verdicts():
    single = Player(lambda prompt: write_call(ADD) + '\n<tool_call>\n{"name": "f", "arguments": {\n</tool_call>')
    found = evaluate_bfcl(single, StandIn(), ["multiple"])
    assert [(one["outcome"]["bfcl"], one["outcome"]["ours"]) for one in found.cases] == [(True, False)] * 3
    assert found.metrics["bfcl"]["judges_differ"] == {"multiple": 3}


def test_files_and_tables_have_the_categories(tmp_path):
    found = {
        "good": evaluate_bfcl(play("right"), StandIn(), CATEGORIES),
        "bad": evaluate_bfcl(play("wrong", {**ADD, "name": "add"}), StandIn(), CATEGORIES),
    }
    metrics = {name: {"bfcl": one.metrics} for name, one in found.items()}
    write_evaluation(tmp_path / "evaluation.json", metrics)
    write_cases(tmp_path / "cases.jsonl", {name: {"bfcl": one.cases} for name, one in found.items()})
    read = json.loads((tmp_path / "evaluation.json").read_text())
    assert read["bad"]["bfcl"]["comparisons"]["good"]["bfcl_v4_multiple"]["num_discordant"] == 3
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(lines) == 7 and lines[0]["models"]["good"]["outcome"]["ours"] is True
    table = format_table(read)
    row = next(line for line in table.splitlines() if line.startswith("BFCL multiple"))
    assert "100.0 %" in row and " 0.0 %" in row
    assert "good: the overall is of what was run; not run: simple_python" in table
    assert "tool_name_accuracy" not in table
    page = re.sub(r"<[^>]+>", "", draw_scores(read))
    assert "good: the overall is of what was run; not run: simple_python" in page and "bad: bfcl-eval" in page
    text = format_comparison(read)
    assert "| model | good | bad |" in text and "| bfcl_v4_multi_turn_miss_func | 100.0 % " in text
    assert compare_models(read)["bfcl"]["good", "bad"]["bfcl_v4_overall"].difference == pytest.approx(0.8)


def test_calls_that_are_no_methods_are_not_evaluated():
    methods = {"cd"}
    assert package._explain({"name": "cd", "arguments": {"folder": "a"}}, methods) is None
    assert "open" in package._explain({"name": "open", "arguments": {"file": "x", "mode": "w"}}, methods)
    assert "argument" in package._explain({"name": "cd", "arguments": {"a=open('x'),b": 1}}, methods)
    assert package._write_call({"name": "cd", "arguments": {"folder": "it's", "n": None}}) == (
        'cd(folder="it\'s",n=None)'
    )
