"""The evaluation judges what a model says: here a scripted model says exactly what each test needs."""

import copy
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.scripted_model import TEMPLATE, Script, call, evaluate, gold, make_tokenizer, record, written
from kd.evaluation.answerers.answer import Prompt
from kd.evaluation.answerers.local_model import LocalModel
from kd.evaluation.cases import build_cases
from kd.evaluation.evaluate import evaluate_cases, merge
from kd.evaluation.files import format_table, write_cases, write_evaluation
from kd.evaluation.metrics import METRICS, Metric
from kd.records.checks import DataError
from launch import evaluate as evaluate_command


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


FULL = [
    record(
        "r0", "Weather in Oslo?", [call("get_weather", city="Oslo")], ("tool", '{"temp": 21}'), ("say", "21 degrees.")
    ),
    record("r1", "Both!", [call("get_weather", city="Rome", days=2), call("get_stock", symbol="AB")]),
    record("r2", "Tell me a joke", ("say", "No tool fits.")),
]


def test_gold_answers_score_full_marks(tokenizer):
    evaluation = evaluate(tokenizer, FULL, gold)
    wanted = dict.fromkeys(METRICS.names(), 1.0) | {"over_calling": 0.0}
    assert {metric: evaluation.metrics[metric] for metric in METRICS.names()} == wanted
    assert evaluation.metrics["num_records"] == 3
    assert evaluation.metrics["counts"] == {"call_turns": 2, "no_tool_turns": 1, "integration_turns": 1}
    assert evaluation.metrics["extra"]["integration_f1"] == 1.0
    assert all(case["correct"] and case["finished"] for case in evaluation.cases)


def test_silence_scores_zero_and_calls_nothing(tokenizer):
    metrics = evaluate(tokenizer, FULL, "I cannot help.").metrics
    assert [metrics[metric] for metric in METRICS.names()] == [0.0] * 6


ONE = [record("r", "q", [call("get_weather", city="Oslo", days=1)])]
TWO = [record("r", "q", [call("get_weather", city="Oslo"), call("get_stock", symbol="AB")])]
RIGHT = '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 1}}'


@pytest.mark.parametrize(
    "records, answer, names, exact, valid, schema",
    [
        (ONE, f"<tool_call>{RIGHT}</tool_call>", 1, 1, 1, 1),
        (ONE, f"Sure.\n<tool_call>\n{RIGHT}\n</tool_call>", 1, 1, 1, 1),
        (ONE, written(call("get_weather", days=1.0, city="Oslo")), 1, 1, 1, 1),  # 1.0 is 1, key order is free
        (ONE, written(call("get_weather", city="Oslo", days=True)), 1, 0, 1, 0),  # true is not 1
        (ONE, written(call("get_weather", city="Oslo", days="1")), 1, 0, 1, 0),
        (ONE, written(call("get_weather", city="oslo", days=1)), 1, 0, 1, 1),
        (ONE, written(call("get_weather", city="Oslo")), 1, 0, 1, 1),  # valid, but not what was asked
        (ONE, written(call("get_weather", city="Oslo", days=1, unit="C")), 1, 0, 1, 0),  # unknown argument
        (ONE, written(call("getweather", city="Oslo", days=1)), 0, 0, 1, 0),  # not offered
        (ONE, f"<tool_call>{RIGHT}</tool_call>" * 2, 0, 0, 1, 1),  # called twice
        (ONE, f"<tool_call>{RIGHT}</tool_call><tool_call>{{</tool_call>", 0, 0, 0, 0),  # one good, one broken
        (ONE, f"<tool_call>{RIGHT}", 0, 0, 0, 0),  # never closed
        (ONE, RIGHT, 0, 0, 0, 0),  # JSON without its tags is not a call
        (TWO, written(call("get_stock", symbol="AB"), call("get_weather", city="Oslo")), 1, 1, 1, 1),  # order is free
        (TWO, written(call("get_stock", symbol="AB")), 0, 0, 1, 1),  # half is nothing
        (
            TWO,
            written(call("get_stock", symbol="Oslo"), call("get_weather", city="AB")),
            1,
            0,
            1,
            1,
        ),  # arguments swapped
    ],
)
def test_a_call_turn_is_right_as_a_whole(tokenizer, records, answer, names, exact, valid, schema):
    metrics = evaluate(tokenizer, records, answer).metrics
    keys = ("tool_name_accuracy", "exact_arguments", "json_validity", "schema_validity")
    assert [metrics[key] for key in keys] == [names, exact, valid, schema]


def test_a_repaired_call_is_counted_apart(tokenizer):
    metrics = evaluate(tokenizer, ONE, f"<tool_call>{RIGHT[:-1]}</tool_call>").metrics
    assert metrics["json_validity"] == metrics["exact_arguments"] == 0
    assert metrics["extra"]["repaired_json_validity"] == 1


@pytest.mark.parametrize("answer, over", [("No.", 0), (written(call("get_weather", city="x")), 1), ("<tool_call>{", 1)])
def test_over_calling_counts_attempts_on_turns_without_a_fitting_tool(tokenizer, answer, over):
    metrics = evaluate(tokenizer, FULL[2:], answer).metrics
    assert metrics["over_calling"] == over
    assert metrics["exact_arguments"] is None and metrics["counts"]["call_turns"] == 0


def carrying(answer, result='{"temp": 12, "total": 1234.5, "place": "Bergen"}'):
    return [record("r", "q", [call("get_weather", city="x")], ("tool", result), ("say", answer))]


@pytest.mark.parametrize(
    "truth, answer, integrated",
    [
        ("It is 12 in Bergen.", "In Bergen: 12", 1),
        ("It is 12 in Bergen.", "In Bergen: 312", 0),
        ("It is 12 in Bergen.", "In Bergen: 12.5", 0),
        ("It is 12 in Bergen.", "In Bergenhus: 12", 0),
        ("It is 12 in Bergen.", "It is 12.", 0),  # every value, not some
        ("It is 12 in Bergen.", "Bergen" + written(call("get_weather", city="12")), 0),  # the user never sees this 12
        ("You pay 1,234.50.", "It costs 1,234.50", 1),  # as the gold answer formats it
        ("You pay 1,234.50.", "It costs 1234", 0),
    ],
)
def test_integration_needs_every_carried_value_whole(tokenizer, truth, answer, integrated):
    metrics = evaluate(tokenizer, carrying(truth), answer).metrics
    assert metrics["integration"] == integrated


def test_an_answer_that_carries_nothing_is_not_an_integration_case(tokenizer):
    kinds = [case.kind for case in build_cases(carrying("Done.", '{"ok": true, "n": 1}'), tokenizer)]
    assert kinds == ["call"]


def test_every_turn_is_asked_with_the_true_history(tokenizer):
    first, second = call("get_weather", city="Oslo"), call("get_stock", symbol="AB")
    records = [
        record(
            "r",
            "go",
            [first],
            ("tool", '"ABC"'),
            [second],
            ("tool", "45.5"),
            ("say", "ABC is 45.5"),
            "ta",
            ("say", "ok"),
        )
    ]
    cases = build_cases(records, tokenizer)
    assert [case.kind for case in cases] == ["call", "call", "integration", "no_tool"]
    assert cases[2].carried == ["ABC", "45.5"]
    assert written(first) in cases[1].prompt and written(second) not in cases[1].prompt
    assert all(case.prompt.endswith("<|assistant|>") for case in cases)
    assert cases[3].user == "ta"


def test_shares_merge_to_the_whole(tokenizer):
    cases = build_cases(FULL, tokenizer)
    model = Script(tokenizer, {case.prompt: gold(case) if case.index else "no" for case in cases})
    answerer = LocalModel(model, tokenizer)
    whole = merge(evaluate_cases(answerer, cases))
    shares = [evaluate_cases(answerer, build_cases(FULL, tokenizer, (rank, 2))) for rank in (1, 0)]
    assert merge(*json.loads(json.dumps(shares))) == whole
    assert merge(whole.cases, evaluate_cases(answerer, [])) == whole
    with pytest.raises(ValueError, match="judged twice"):
        merge(shares[0], shares[0])


def test_a_prompt_without_its_tokens_is_encoded_as_training_does(tokenizer):
    cases = build_cases(FULL, tokenizer)
    answerer = LocalModel(Script(tokenizer, {case.prompt: gold(case) for case in cases}), tokenizer)
    answers = answerer.answer([Prompt(case.history, case.tools) for case in cases])
    assert answers == answerer.answer([Prompt([], case.tools, case.prompt_ids) for case in cases])
    assert [answer.calls.calls for answer in answers] == [case.gold_calls for case in cases]


def test_an_answer_without_an_end_is_cut_and_said_so(tokenizer):
    evaluation = evaluate(tokenizer, ONE, f"<tool_call>{RIGHT}</tool_call>", max_new_tokens=20)
    assert not evaluation.cases[0]["finished"] and evaluation.cases[0]["num_tokens"] == 20
    assert evaluation.metrics["extra"]["unfinished"] == 1 and evaluation.metrics["json_validity"] == 0


def test_a_metric_of_ones_own_is_one_registration(tokenizer):
    def brevity(cases):
        return sum(case["num_tokens"] < 20 for case in cases) / len(cases)

    METRICS.register("brevity", Metric("brevity", brevity))
    try:
        metrics = evaluate(tokenizer, FULL, "No.").metrics
        assert metrics["brevity"] == 1.0 and list(metrics)[6:8] == ["brevity", "num_records"]
        table = format_table({"student": {"s": metrics}}).splitlines()
        assert table[0].split()[-2:] == ["brevity", "records"] and table[1].split()[-3:] == ["100.0", "%", "3"]
    finally:
        METRICS.unregister("brevity")
    assert METRICS.names()[0] == "tool_name_accuracy" and METRICS.names()[-1] == "integration"


def test_files_hold_every_model_side_by_side(tokenizer, tmp_path):
    good, bad = evaluate(tokenizer, FULL, gold), evaluate(tokenizer, FULL, "<script>")
    write_evaluation(tmp_path / "evaluation.json", {"teacher": {"unseen_values": good.metrics}})
    assert json.loads((tmp_path / "evaluation.json").read_text())["teacher"]["unseen_values"]["exact_arguments"] == 1.0
    write_cases(tmp_path / "cases.jsonl", {"teacher": {"a": good.cases, "b": good.cases}, "student": {"a": bad.cases}})
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert lines[0]["models"]["teacher"]["correct"] and lines[0]["models"]["student"]["output"] == "<script>"
    assert list(lines[-1]["models"]) == ["teacher"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.jsonl", "evaluation.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_evaluation(tmp_path / "e.json", {"teacher": {}})
    with pytest.raises(ValueError):
        write_evaluation(tmp_path / "e.json", {"teacher": {"s": {"x": float("nan")}}})
    assert json.loads((tmp_path / "e.json").read_text()) == {"teacher": {}}


def test_prompts_are_in_the_form_that_training_renders(tokenizer):
    """A template that takes arguments as text only, as DeepSeek-V3's does."""
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = TEMPLATE.replace(
        "c.function | tojson", "'{\"name\": \"' + c.function.name + '\", \"arguments\": ' + c.function.arguments + '}'"
    )
    later = [case for case in build_cases(FULL, picky) if case.turn > 1]
    assert later and all("<tool_call>{" in case.prompt for case in later)


def test_a_record_the_template_refuses_is_named(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        DataError, match=rf"record {FULL[0].id}: messages\[1\]: the chat template refuses it: roles must alternate"
    ):
        build_cases(FULL, strict)


def test_the_command_evaluates_saved_models_and_writes_both_files(tokenizer, tmp_path, capsys):
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "held_out.jsonl"
    data.write_text(
        "".join(json.dumps({"id": one.id, "messages": one.messages, "tools": one.tools}) + "\n" for one in FULL)
    )
    command = [
        "--model",
        f"untrained={tmp_path / 'model'}",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--max-new-tokens",
        "8",
    ]
    evaluate_command.main(command)
    written_metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())["untrained"]["held_out"]
    assert written_metrics["num_records"] == 3 and written_metrics["exact_arguments"] == 0
    assert len((tmp_path / "out" / "cases.jsonl").read_text().splitlines()) == 4
    assert "held_out" in capsys.readouterr().out
    for wrong, said in ((["--data", str(data)], "name them apart"), (["--data", "x=absent"], "no such file")):
        with pytest.raises(SystemExit):
            evaluate_command.main(command + wrong)
        assert said in capsys.readouterr().err
