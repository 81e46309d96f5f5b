"""Evaluation at the end of a run: made ready before the first step, and what ends it leaves the answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.scripted_model import call, make_tokenizer, record, tool
from kd.config.schema import Data, Evaluation
from kd.errors import SpanwiseError
from kd.evaluation.answerers.local_model import EvaluationError, LocalModel
from kd.evaluation.answerers.opening import Asking, make_ready
from kd.evaluation.evaluate import evaluate_cases
from kd.evaluation.files import format_table
from kd.evaluation.held_out import Candidate, describe_command, evaluate_candidates, list_candidates, prepare_held_out
from kd.evaluation.metrics import METRICS, Metric
from kd.models.model_files import StudentError
from kd.records.checks import DataError
from kd.records.files import write_records

GOOD = record("good", "Weather?", [call("get_weather", city="Oslo")])
WEATHER = tool("get_weather", city={"type": "string"})


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """Prepare a run's evaluation of the given records."""

    def prepare(*records, positions: int | None = None, template: str | None = None):
        write_records(tmp_path / "held_out.jsonl", records)
        other = make_tokenizer() if template else tokenizer
        other.chat_template = template or other.chat_template
        return prepare_held_out(data_of(tmp_path), Evaluation(), other, positions)

    return prepare


def data_of(folder: Path) -> Data:
    stages = ({"name": "a", "mix": {"single": 1}, "max_length": 64},)
    return Data.model_validate(
        {"demo": {"num_records": 4}, "stages": stages, "evaluation": {"mine": str(folder / "held_out.jsonl")}}
    )


def with_tools(*tools: dict):
    return record("bad", "Weather?", [call("get_weather", city="Oslo")], tools=tools)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([record("r", "Hi", ("say", "Hello"), tools=())], " nothing to ask in its 1 records"),
        ([GOOD, with_tools(tool("get_weather", city={"type": "dict"}))], "2: tools: .*not a JSON Schema"),
        ([GOOD, with_tools(WEATHER, tool("get_weather", town={}))], "2: tools: .*is defined twice"),
        ([GOOD, with_tools(tool("get_weather", city={"pattern": "("}))], "2: tools: .*city/pattern"),
    ],
)
def test_what_cannot_be_asked_is_found_before_the_first_step(bad, said, prepare, tmp_path):
    with pytest.raises(DataError, match=rf"data.evaluation.mine: {tmp_path}/held_out.jsonl:{said}"):
        prepare(*bad)


def test_a_template_that_refuses_one_record_is_found_with_its_name(prepare, tokenizer):
    picky = "{% if messages[0].content == 'Bad?' %}{{ raise_exception('never') }}{% endif %}" + tokenizer.chat_template
    with pytest.raises(DataError, match=r"data.evaluation.mine: .*record bad: messages\[1\]: .*refuses it: never"):
        prepare(GOOD, record("bad", "Bad?", [call("get_weather", city="x")]), template=picky)


def test_prompts_too_long_for_the_student_are_counted_beforehand(prepare):
    long = record("long", "Weather? " + "word " * 100, [call("get_weather", city="x")])
    held_out = prepare(GOOD, long, positions=300)
    assert len(held_out.cases["mine"]) == 2
    assert held_out.notes == [
        "data.evaluation.mine: 1 of 2 prompts leave no room for an answer in the student's 300 positions; they count "
        "as not answered"
    ]


def test_calls_that_the_template_does_not_write_are_told_beforehand(prepare, tokenizer):
    """No answer to them can be right: the table alone would show a student that fails."""
    dropping = tokenizer.chat_template.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    two = record("two", "Weather?", [call("get_weather", city="Oslo"), call("get_weather", city="Rome")])
    assert prepare(GOOD, two).notes == []
    (note,) = prepare(GOOD, two, template=dropping).notes
    assert note.startswith("data.evaluation.mine: 1 of 2 records, such as two, call in a way that the chat template ")


@pytest.fixture(scope="module")
def babbling(tokenizer, tmp_path_factory) -> Path:
    """A model with learnt positions, that never stops."""
    folder = tmp_path_factory.mktemp("model")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=96, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 50.0
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[65, 0] = 1
    model.save_pretrained(folder)
    return folder


def test_a_model_that_never_stops_ends_with_its_positions(prepare, babbling, tokenizer):
    """Asked for a thousand million tokens; the longer prompt leaves no room, and is not given to the model."""
    bare = [record(name, text, [call("go")], tools=[tool("go")]) for name, text in (("a", "Go"), ("b", "Go " * 99))]
    cases = prepare(*bare).cases["mine"]
    model = GPT2LMHeadModel.from_pretrained(babbling)
    lengths = [len(tokenizer(case.prompt)["input_ids"]) for case in cases]
    assert [len(case.prompt_ids) for case in cases] == lengths
    assert all(case.prompt_ids.itemsize == 4 for case in cases)  # of 3,000 turns they take memory by the gigabyte
    short, long = evaluate_cases(LocalModel(model, tokenizer, max_new_tokens=10**9), cases)
    assert short["num_tokens"] == 96 - lengths[0] and not short["finished"]
    assert long["num_tokens"] == 0 and long["output"] == "" and not long["finished"] and not long["correct"]
    assert f"not asked: the prompt has {lengths[1]} tokens, the model 96 positions" in long["problems"]


@pytest.mark.usefixtures("one_rank")
def test_answers_are_kept_where_a_metric_or_a_later_model_fails(prepare, babbling, tokenizer, tmp_path):
    twice = record("a", "Hi", ("say", "Hi"), tools=[tool("go")])  # of the same id, asked for something else
    cases = prepare(record("a", "Go", [call("go")], tools=[tool("go")]), twice).cases
    student, options = [Candidate("student", str(babbling))], dict(device=torch.device("cpu"), say=lambda text: None)
    METRICS.register("broken", Metric("broken", lambda cases: 1 / 0))
    try:
        with pytest.raises(Exception, match="rank 0: ZeroDivisionError"):
            evaluate_candidates(student, tokenizer, cases, tmp_path, Evaluation(), **options)
    finally:
        METRICS.unregister("broken")
    answers = json.loads((tmp_path / "cases.jsonl").read_text().splitlines()[0])["models"]
    assert len(answers["student"]["output"]) > 10
    (tmp_path / "cases.jsonl").unlink()
    both = [Candidate("teacher", str(babbling)), Candidate("student", str(tmp_path / "absent"))]
    with pytest.raises(Exception, match="absent"):
        evaluate_candidates(both, tokenizer, cases, tmp_path, Evaluation(), **options)
    kept = json.loads((tmp_path / "cases.jsonl").read_text().splitlines()[0])["models"]
    assert kept == {"teacher": answers["student"]}
    both = [*both[:1], *student]
    found = evaluate_candidates(both, tokenizer, cases, tmp_path, Evaluation(), **options)
    written = json.loads((tmp_path / "evaluation.json").read_text())["teacher"]["mine"]
    assert written["exact_arguments"] == found["student"]["mine"]["exact_arguments"] == 0
    assert format_table(found)


def test_further_models_are_looked_at_before_training_and_asked_beside_the_student(
    prepare, babbling, tokenizer, tmp_path
):
    run = tmp_path / "runs" / "other"
    shutil.copytree(babbling, run / "student")
    tokenizer.save_pretrained(run / "student")
    prepare(GOOD)

    def look(**models: Path):
        evaluation = Evaluation(compare_with={name: str(path) for name, path in models.items()})
        return prepare_held_out(data_of(tmp_path), evaluation, tokenizer).further

    (found,) = look(plain=run)
    assert found == Candidate("plain", str(run / "student")) == look(plain=run / "student")[0]
    names = [one.name for one in list_candidates(run / "student", None, [found], baselines=True, seed=1)]
    assert names == ["student", "plain", "untrained"]
    for taken in ("student", "teacher", "best", "untrained"):
        with pytest.raises(EvaluationError, match=rf"compare_with.{taken}: .*another name"):
            look(**{taken: run})
    with pytest.raises(SpanwiseError, match=r"evaluation.compare_with.gone: "):
        look(gone=tmp_path / "gone")
    file = run / "student" / "config.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | {"vocab_size": 20}))  # an IndexError, after the training
    with pytest.raises(StudentError, match=r"compare_with.plain: .*its vocabulary is 20 wide and its tokenizer has"):
        look(plain=run)
    with pytest.raises(StudentError, match=r"--model: .*its vocabulary is 20 wide and its tokenizer has"):
        make_ready("student", str(run / "student"), Asking(4, None, 8, torch.device("cpu")))
    file.write_text(whole)
    (run / "student" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StudentError, match="model.safetensors"):
        look(plain=run)
    other = make_tokenizer()
    other.chat_template += "{# another #}"
    other.save_pretrained(run / "student")
    with pytest.raises(EvaluationError, match=r"compare_with.plain: .*another tokenizer or chat template"):
        look(plain=run)


def test_splits_of_one_kind_of_turn_alone_are_evaluated(prepare, babbling, tokenizer):
    for records, missing in (([GOOD], "no_tool_turns"), ([record("n", "Hi", ("say", "Hi"))], "call_turns")):
        (split,) = prepare(*records).cases.values()
        assert split and missing not in {f"{case.kind}_turns" for case in split}


def test_the_command_that_evaluates_the_student_alone_is_whole(tmp_path):
    command = describe_command(Path("runs/my run"), data_of(tmp_path))
    assert command == (
        f"spanwise evaluate --model 'student=runs/my run/student' --data mine={tmp_path}/held_out.jsonl "
        "--out 'runs/my run'"
    )
    demo = data_of(tmp_path).model_copy(update={"evaluation": {"unseen_values": "demo"}})
    assert describe_command(Path("runs/x"), demo) is None


@pytest.mark.usefixtures("one_rank")
def test_records_are_held_as_conversations_where_the_run_asks_for_it(prepare, babbling, tokenizer, tmp_path):
    assert prepare(GOOD).conversations == {}
    held_out = prepare_held_out(data_of(tmp_path), Evaluation(conversations=True), tokenizer)
    options = dict(device=torch.device("cpu"), say=lambda text: None, conversations=held_out.conversations)
    evaluation = Evaluation(max_new_tokens=2)
    found = evaluate_candidates(
        [Candidate("student", str(babbling))], tokenizer, held_out.cases, tmp_path, evaluation, **options
    )["student"]["mine"]
    assert found["counts"]["conversations"] == 1 and found["counts"]["call_turns"] == 1
    assert found["conversations_right"] == 0
