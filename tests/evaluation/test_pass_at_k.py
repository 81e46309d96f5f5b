"""pass@k is the chance that one of k answers is right, and samples are the same however they are asked for."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.scripted_model import call, make_tokenizer, record
from kd.evaluation.answerers.local_model import LocalModel
from kd.evaluation.cases import build_cases
from kd.evaluation.comparison import compare_models
from kd.evaluation.evaluate import Samples, evaluate_cases, merge
from kd.evaluation.files import format_comparison, format_table, write_cases
from kd.evaluation.pass_at_k import estimate_pass, list_ks
from kd.reports.scores import draw_scores
from kd.rollouts.decode import Sampling
from launch import evaluate as evaluate_command

RECORDS = [
    record("a", "Weather?", [call("get_weather", city="Oslo")], ("tool", '{"temp": 21}'), ("say", "21 degrees.")),
    record("b", "Both!", [call("get_weather", city="Rome")], "And?", [call("get_stock", symbol="AB")]),
    record("c", "Tell me a joke", ("say", "No tool fits.")),
]


@pytest.mark.parametrize(("num", "right"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (6, 1)])
def test_the_estimate_is_the_mean_over_every_choice_of_k_answers(num, right):
    answers = [True] * right + [False] * (num - right)
    for k in range(1, num + 1):
        choices = list(combinations(answers, k))
        assert estimate_pass(num, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert list_ks(6) == [1, 2, 4, 6] and list_ks(8) == [1, 2, 4, 8] and list_ks(1) == [1]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def babbling(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(3)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()


def test_samples_are_equal_for_every_batch_size_and_number_of_ranks(tokenizer, babbling):
    def ask(batch_size: int, seed: int, share: tuple[int, int] = (0, 1)):
        answerer = LocalModel(babbling, tokenizer, batch_size=batch_size, max_new_tokens=9, sampling=Sampling(1.0, 0.9))
        return evaluate_cases(answerer, build_cases(RECORDS, tokenizer, share), Samples(3, seed))

    whole = merge(ask(64, 0))
    assert merge(ask(2, 0, (1, 2)), ask(5, 0, (0, 2))) == whole
    outputs = [case["output"] for case in whole.cases]
    assert len(outputs) == 15 and len(set(outputs)) == 15
    assert not set(outputs) & {case["output"] for case in ask(64, 1)}
    assert whole.metrics["counts"] == {"call_turns": 3, "no_tool_turns": 1, "integration_turns": 1}


def test_the_metrics_are_means_over_samples_and_pass_at_k_goes_up(tokenizer):
    """Of four answers to each turn the first one, two and four are right."""
    cases = build_cases(RECORDS, tokenizer)

    class Scripted:
        def answer(self, prompts, *, progress=None):
            good = {0: 1, 2: 2, 3: 4}
            texts = []
            for at in range(len(prompts)):
                case, sample = cases[at // 4], at % 4
                wanted = "".join(f"<tool_call>{json.dumps(one)}</tool_call>" for one in case.gold_calls)
                texts.append(wanted if sample < good.get(case.index, 4) else "no")
            ids = [tokenizer(text)["input_ids"] for text in texts]
            reader = LocalModel(None, tokenizer)
            return [reader.read(prompt, [0], one + [tokenizer.eos_token_id]) for prompt, one in zip(prompts, ids)]

    sampled = merge(evaluate_cases(Scripted(), cases, Samples(4)))
    exact = sampled.metrics["pass_at_k"]["exact_arguments"]
    assert sampled.metrics["exact_arguments"] == exact["1"]["value"] == pytest.approx((1 + 2 + 4) / 12)
    assert exact["2"]["value"] == pytest.approx((1 - 3 / 6 + 1 - 1 / 6 + 1) / 3) and exact["4"]["value"] == 1
    assert exact["1"]["interval"] == pytest.approx(sampled.metrics["intervals"]["exact_arguments"])
    low, high = exact["2"]["interval"]
    assert 0 <= low < exact["2"]["value"] < high <= 1
    assert set(sampled.metrics["pass_at_k"]) >= {"tool_name_accuracy", "json_validity", "bfcl_accuracy"}
    assert not {"over_calling", "missed_calls", "argument_f1"} & set(sampled.metrics["pass_at_k"])
    assert "exact_arguments      pass@1 58.3 % (" in format_table({"student": {"s": sampled.metrics}})
    shown = {"student": {"s": sampled.metrics}}
    for words in ("4 sampled answers a turn", "exact_arguments pass@1 58.3 % ("):
        assert words in format_comparison(shown) and words in draw_scores(shown)
    greedy = merge([case for case in sampled.cases if case["sample"] == 0])
    assert "pass_at_k" not in greedy.metrics
    pairs = compare_models({"sampled": {"s": sampled.metrics}, "greedy": {"s": greedy.metrics}})
    assert pairs["s"]["sampled", "greedy"]["exact_arguments"].difference == pytest.approx(7 / 12 - 1)


def test_the_first_answer_stands_where_a_greedy_one_does_and_the_others_below_it(tokenizer, babbling, tmp_path):
    answerer = LocalModel(babbling, tokenizer, max_new_tokens=4, sampling=Sampling())
    outcomes = evaluate_cases(answerer, build_cases(RECORDS, tokenizer), Samples(3))
    write_cases(tmp_path / "cases.jsonl", {"student": {"s": outcomes}})
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and lines[0]["models"]["student"]["output"] == outcomes[0]["output"]
    assert [one["output"] for one in lines[0]["models"]["student"]["samples"]] == [
        one["output"] for one in outcomes[1:3]
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--num-samples 4", "--num-samples: greedy answers are all the same: give --temperature too"),
        ("--top-p 0.9", "--top-p: greedy answers"),
        ("--seed 1", "--seed: greedy answers"),
        ("--num-samples 0", "--num-samples: 1 or more"),
        ("--temperature 0", "--temperature is above 0 \\(leave it out for greedy answers\\)"),
        ("--temperature 1 --top-p 0", "--top-p above 0 and at most 1"),
        ("--temperature nan", "--temperature is above 0"),
        ("--temperature inf", "--temperature is above 0"),
    ],
)
def test_sampling_options_that_contradict_are_wrong_use(given, said, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.touch()
    with pytest.raises(SystemExit, match="2"):
        evaluate_command.main(["--model", "m", "--data", str(data), "--out", str(Path(tmp_path)), *given.split()])
    shown = capsys.readouterr().err
    assert re.search(said, shown), shown
