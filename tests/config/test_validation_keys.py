"""Keys of validation: what they need of one another, and what a run refuses to choose by."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD, problems
from kd.config.load import load_config
from kd.evaluation.held_out import read_held_out, read_validation
from kd.evaluation.while_training import ChoiceError, check_choice, explain_no_best
from kd.records.checks import DataError
from kd.records.files import write_records
from kd.sources.demo import corpus as demo
from kd.training.validation import Best


def test_what_is_measured_on_is_not_chosen_by(tmp_path, write):
    records = list(demo.records("validation", 6, seed=2))
    write_records(tmp_path / "choose.jsonl", records[:4])
    write_records(tmp_path / "measure.jsonl", records[3:])
    config = load_config(
        write(GOOD),
        [f"data.validation={{v: {tmp_path}/choose.jsonl}}", f"data.evaluation={{e: {tmp_path}/measure.jsonl}}"],
    )
    with pytest.raises(DataError, match=rf"data\.validation\.v: record {records[3].id} .*data\.evaluation\.e.*take it"):
        read_validation(config.data, 10, read_held_out(config.data, 10))
    found = read_validation(config.data, 3, read_held_out(config.data, 3))
    assert [record.id for record in found["v"]] == [record.id for record in records[:3]]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.every=5"], "evaluation.every: needs data.validation"),
        (["training.keep_best=truth"], "training.keep_best: needs data.validation"),
        (["data.validation={v: v.jsonl}", "training.patience=2"], "training.patience: needs training.keep_best"),
        (["data.validation={v: same.jsonl}", "data.evaluation={e: same.jsonl}"], "same.jsonl is held out in"),
        (["data.validation={validation: demo}"], "needs the demo corpus"),
        (
            ["run.name=x", "run.output_dir=a/b", "evaluation.compare_with={old: a/../a/b/x/student}"],
            "which would be compared with itself",
        ),
    ],
)
def test_keys_that_need_one_another(write, overrides, said):
    assert any(said in problem for problem in problems(write(GOOD), overrides))


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(write):
    def check(*overrides):
        config = load_config(write(GOOD), ["data.validation={v: v.jsonl}", *overrides])
        check_choice(config.training, config.evaluation, config.teacher, config.loss)

    check("training.keep_best=kd")
    cached = "teacher.cache={path: c, temperatures: [2.0]}"
    no_teacher = "loss.weights={kd: 0, hard: 0, truth: 1}"
    for metric in ("kd", "loss"):
        with pytest.raises(ChoiceError, match=rf"training\.keep_best: {metric} .*choose one of truth, tool, args"):
            check(f"training.keep_best={metric}", cached)
    check("training.keep_best=loss", no_teacher)
    check("training.keep_best=loss", cached, no_teacher)
    with pytest.raises(ChoiceError, match=r"training\.keep_best: hard .*choose one of loss, truth, tool"):
        check("training.keep_best=hard", no_teacher)
    with pytest.raises(ChoiceError, match="exact_arguments is not measured.*evaluation.generate_every"):
        check("training.keep_best=exact_arguments")
    check("training.keep_best=exact_arguments", "evaluation.generate_every=10")


def test_a_metric_that_no_record_gave_is_told_at_the_end(write):
    overrides = ["data.validation={v: v.jsonl}", "training.keep_best=integration_accuracy"]
    training = load_config(write(GOOD), overrides).training
    assert "integration_accuracy was not measured at any step" in (explain_no_best(training, None) or "")
    assert explain_no_best(training, Best(4, 1.0)) is None
    assert explain_no_best(load_config(write(GOOD)).training, None) is None
