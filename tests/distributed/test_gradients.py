"""The gradient of one optimizer step does not depend on how the step is split, and is that of the textbook's loss.

Real DeepSpeed ZeRO-3 processes, the real Trainer, a live sharded teacher, every term on. SGD stands in for AdamW with a
learning rate that is a power of two, so the change of the weights is the gradient (clipping and division included).
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import LlamaConfig

from distributed.plain import SHARES, plain_step
from kd.preflight.records import verify_records
from kd.preflight.tally import Tally
from kd.records.files import expand, read_all

LR = 1024
TOLERANCE = 1e-5  # of the largest value of a parameter's gradient


def gradients(run: dict) -> dict[str, torch.Tensor]:
    assert "error" not in run, run.get("error")
    before, after = run["weights"][:2]
    return {name: (before[name].double() - after[name].double()) / LR for name in before}


def assert_same(one: dict, other: dict, tolerance: float = TOLERANCE) -> None:
    assert one.keys() == other.keys()
    for name in one:
        scale = other[name].abs().max()
        assert scale > 0, f"{name} has no gradient"
        error = (one[name] - other[name]).abs().max() / scale
        assert error < tolerance, f"{name}: {error:.1e} of its largest value"


@pytest.fixture(scope="module")
def plain(runs, records, teacher_folder, tokenizer):
    def plain(world, name, chosen=slice(0, 4), step=0, **options):
        weights = runs(world, name)["weights"][step]
        config = LlamaConfig(
            vocab_size=612,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings="lm_head.weight" not in weights,
            max_position_embeddings=4096,
        )
        if name == "checkpoint":
            config = LlamaConfig.from_pretrained(teacher_folder)
        return plain_step(weights, config, teacher_folder, tokenizer, records[chosen], **{"shares": SHARES} | options)

    return plain


def logged(run: dict, line: int = 0) -> dict[str, float]:
    return {term: run["lines"][line][term] for term in SHARES}


def test_the_student_is_partitioned_and_the_same_at_both_world_sizes(runs):
    one, two = runs(1, "split"), runs(2, "split")
    assert two["world"] == 2 and set(two["partitioned"]) == set(two["weights"][0])
    assert all(torch.equal(one["weights"][0][name], two["weights"][0][name]) for name in one["weights"][0])


@pytest.mark.parametrize("tied", ["", "_tied"])
@pytest.mark.parametrize("world, split", [(1, "split"), (2, "split"), (2, "wide")])
def test_every_split_has_the_gradient_and_the_terms_of_the_plain_loss(runs, plain, world, split, tied):
    """1 rank x accumulation 4, 2 ranks x 2, and 2 ranks x 1 with the doubled micro-batch."""
    run = runs(world, split + tied)
    terms, expected = plain(1, "split" + tied)
    assert ("lm_head.weight" in expected) == (not tied)
    assert_same(gradients(run), expected)
    assert_same(gradients(run), gradients(runs(1, "split" + tied)))
    assert logged(run) == pytest.approx(terms, rel=1e-5)
    assert run["lines"][0]["loss"] == pytest.approx(sum(terms.values()), rel=1e-5)
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt()
    assert run["lines"][0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_a_student_under_zero_2_learns_from_a_sharded_teacher(runs, plain, world):
    """The teacher's own engine is then of ZeRO-3 all the same."""
    run = runs(world, "zero2")
    terms, expected = plain(world, "zero2")
    assert run["partitioned"] == []
    assert_same(gradients(run), expected)
    assert logged(run) == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_a_rank_with_no_supervised_row(runs, plain, world):
    """Of two records one is too long: on two ranks one has nothing to train, and the step is that of the other."""
    terms, expected = plain(world, "lonely", slice(1, 2))
    assert_same(gradients(runs(world, "lonely")), expected)
    assert logged(runs(world, "lonely")) == pytest.approx(terms, rel=1e-5)
    assert runs(world, "lonely")["result"]["num_too_long"] == 1


@pytest.mark.parametrize("world", [1, 2])
def test_fewer_records_than_ranks_or_micro_batches(runs, plain, world):
    terms, expected = plain(world, "one", slice(1, 2))
    assert_same(gradients(runs(world, "one")), expected)
    assert logged(runs(world, "one")) == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("world, name", [(1, "packed"), (1, "packed_eager"), (2, "packed")])
def test_packed_records_have_the_gradient_and_the_terms_of_records_apart(runs, plain, world, name):
    """Two rows of two records: two micro-batches, one of two rows, a rank each."""
    run = runs(world, name)
    terms, expected = plain(1, "packed")
    assert_same(gradients(run), expected)
    assert logged(run) == pytest.approx(terms, rel=1e-5)
    assert run["result"]["num_too_long"] == 4 and any(
        "8 records of 988 tokens, packed into sequences of 560" in text for text in run["said"]
    )


def test_a_conversation_turn_by_turn_is_the_same_step_at_both_world_sizes(runs, records):
    """data.turns: auto splits what tokenizer.template_variables makes of the template."""
    one, two = runs(1, "turns"), runs(2, "turns")
    assert_same(gradients(one), gradients(two))
    assert logged(one) == pytest.approx(logged(two), rel=1e-5) and logged(one) != pytest.approx(
        logged(runs(1, "split"))
    )
    num_turns = sum(message["role"] == "assistant" for record in records[:4] for message in record.messages)
    assert [run["lines"][0]["sequences"] for run in (one, two, runs(2, "split"))] == [num_turns, num_turns, 4]
    for run in (one, two):
        assert any(f"turn by turn, {num_turns} sequences in all" in said for said in run["said"])


def test_truncated_records_are_counted(runs):
    result = runs(2, "truncated")["result"]
    assert (result["num_truncated"], result["num_too_long"], result["tokens"]) == (1, 0, 191 + 273 + 99 + 369)


def test_a_stage_without_any_record_that_fits_stops_all_ranks(runs):
    assert all("longer than max_length" in runs(2, "toolong", rank)["error"] for rank in (0, 1))


@pytest.mark.parametrize("world, name", [(1, "replicated"), (2, "offloaded")])
def test_a_teacher_teaches_the_same_wherever_its_weights_are(runs, world, name):
    assert_same(gradients(runs(world, name)), gradients(runs(1, "split")))


@pytest.mark.parametrize("world", [1, 2])
def test_every_token_of_a_sparse_teacher_is_the_dense_one(runs, plain, world):
    run, terms = runs(world, "live_topk"), plain(1, "split")[0]
    assert_same(gradients(run), gradients(runs(world, "split")))
    assert logged(run) == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_a_cache_of_every_token_is_the_dense_teacher(runs, plain, world):
    """Temperature 2 from fp32 log-probabilities at 1; on two ranks the schedule's 2.04 is snapped to it, everywhere."""
    run, terms = runs(world, "cached_topk"), plain(1, "split")[0]
    assert_same(gradients(run), gradients(runs(world, "split")))
    assert logged(run) == pytest.approx(terms, rel=1e-5)
    assert {
        name: run["lines"][0][name] for name in ("teacher_entropy", "teacher_agreement", "temperature")
    } == pytest.approx(
        {
            name: runs(world, "split")["lines"][0][name]
            for name in ("teacher_entropy", "teacher_agreement", "temperature")
        },
        rel=1e-5,
    )


def test_a_cache_read_ahead_follows_the_schedule(runs):
    one, other = runs(2, "cached_two_steps"), runs(2, "two_steps")
    for step in (0, 1):
        assert one["lines"][step]["temperature"] == (3.0, 1.5)[step]
        assert logged(one, step) == pytest.approx(logged(other, step), rel=1e-5)
        changes = [
            {name: before[name].double() - after[name].double() for name in before}
            for before, after in (run["weights"][step : step + 2] for run in (one, other))
        ]
        assert_same(*changes, 2e-3)


def test_a_cache_of_draws_teaches_the_same_at_both_world_sizes_and_packed(runs):
    one, two, dense = runs(1, "cached_sampled"), runs(2, "cached_sampled"), logged(runs(1, "split"))
    assert_same(gradients(one), gradients(two))
    assert_same(gradients(runs(1, "cached_packed")), gradients(two))
    assert {**logged(one), "kd": 0} == pytest.approx({**dense, "kd": 0}, rel=1e-5)
    assert logged(one)["kd"] == pytest.approx(dense["kd"], rel=0.1)
    files = [
        {path.name: path.read_bytes() for path in (runs.folder / f"world{world}" / "cached_sampled_cache").iterdir()}
        for world in (1, 2)
    ]
    assert files[0] == files[1] and len(files[0]) > 1


def test_draws_are_of_the_step_and_the_record_and_not_of_the_split(runs):
    one = runs(1, "sampled")
    for name in ("sampled", "sampled_packed"):
        assert_same(gradients(runs(2, name)), gradients(one))
        assert logged(runs(2, name)) == pytest.approx(logged(one), rel=1e-5)
    dense = logged(runs(1, "split"))
    assert {**logged(one), "kd": 0} == pytest.approx({**dense, "kd": 0}, rel=1e-5)
    assert logged(one)["kd"] == pytest.approx(dense["kd"], rel=0.1) and logged(one)["kd"] != pytest.approx(
        dense["kd"], rel=1e-4
    )
    # The second step has the same records and weights, and new draws.
    first, second = (logged(runs(2, "sampled_twice"), step) for step in (0, 1))
    assert first == pytest.approx(logged(one), rel=1e-5)
    assert {**first, "kd": 0} == pytest.approx({**second, "kd": 0}, rel=1e-5) and first["kd"] != pytest.approx(
        second["kd"], rel=1e-4
    )


def test_jsd_is_another_gradient_of_the_same_step(runs, plain):
    run, terms = runs(2, "jsd"), plain(2, "jsd")[0]
    assert "error" not in run
    assert 0 < logged(run)["kd"] < terms["kd"]  # JSD is below KL times beta, and not 0
    assert {**logged(run), "kd": 0} == pytest.approx({**terms, "kd": 0}, rel=1e-5)


def test_entropy_weights_reach_the_loss(runs, plain):
    ends = {"kd": (0.2, 0.6), "hard": (0.3, 0.2), "truth": (0.5, 0.2)}
    shares = SHARES | dict.fromkeys(ends, 1.0)
    terms, expected = plain(1, "entropy", shares=shares, entropy=(0.5, 5.0, ends))
    assert_same(gradients(runs(1, "entropy")), expected)
    assert logged(runs(1, "entropy")) == pytest.approx(terms, rel=1e-5)


def test_without_a_teacher_only_the_truth_is_learned(runs, plain):
    shares = SHARES | {"kd": 0.0, "hard": 0.0, "truth": 1.0}
    terms, expected = plain(2, "truth", shares=shares)
    assert_same(gradients(runs(2, "truth")), expected)
    assert logged(runs(2, "truth")) == pytest.approx(terms, rel=1e-5)


def test_a_student_from_a_checkpoint_is_in_training_mode_and_recomputes(runs, plain):
    """A loaded model comes in evaluation mode, in which gradient checkpointing silently does nothing."""
    run = runs(2, "checkpoint")
    terms, expected = plain(2, "checkpoint", shares=SHARES | {"kd": 0.0, "hard": 0.0, "truth": 1.0})
    assert_same(gradients(run), expected)
    assert logged(run) == pytest.approx(terms, rel=1e-5)
    assert run["training"]


def test_schedules_reach_student_teacher_and_both_ranks(runs, plain):
    """Two steps with a temperature from 3 to 1.5 and a teacher's share from .7 to .3: each step is that of its own
    numbers.
    """
    run = runs(2, "two_steps")
    for step, (temperature, share) in enumerate([(3.0, 0.7), (1.5, 0.3)]):
        shares = SHARES | {"kd": 0.6 * share, "hard": 0.4 * share, "truth": 1 - share}
        terms, expected = plain(2, "two_steps", step=step, temperature=temperature, shares=shares)
        assert run["lines"][step]["temperature"] == temperature
        assert logged(run, step) == pytest.approx(terms, rel=1e-5)
        before, after = run["weights"][step : step + 2]
        assert_same({name: (before[name].double() - after[name].double()) / 0.5 for name in before}, expected, 2e-3)


def test_two_ranks_train_on_files_of_any_form_and_keep_each_refused_line_once(runs, tokenizer):
    run = runs(2, "formats")
    assert_same(gradients(run), gradients(runs(2, "split")), 1e-12)
    (refused,) = map(json.loads, (runs.folder / "formats" / "refused.jsonl").read_text().splitlines())
    assert refused["file"].endswith("formats3.jsonl") and refused["line"] == 1
    assert not list((runs.folder / "formats").glob("records-*"))
    tally = Tally()
    for found in verify_records(read_all(expand([runs.folder / "formats?.*"])), tokenizer):
        tally.add(found)
    assert [runs(2, "formats", rank)["notes"] for rank in (0, 1)] == [{"joined": 1}, {"joined": 1}] == [tally.notes] * 2


def test_one_bad_line_stops_every_rank_with_its_place(runs):
    for rank in (0, 1):
        assert re.match(
            r"DataError: .*formats3\.jsonl:1: not a line of JSON.*max_bad_fraction 0 allows",
            runs(2, "refused", rank)["error"],
        )


def test_a_record_that_cannot_be_rendered_is_left_out_where_it_may_be_and_kept_once(runs):
    for rank in (0, 1):
        assert (
            runs(2, "left_out", rank)["result"]["num_refused"] == 1
            and runs(2, "left_out", rank)["result"]["steps"] == 3
        )
        assert re.match(
            r"TrainingError: stage a: \S*spoiled\.jsonl:\d: record spoiled: .*1 of its 5 records are refused, more "
            r"than data\.max_bad_fraction 0\.1 allows",
            runs(2, "too_many", rank)["error"],
        )
    for name in ("left_out", "too_many"):
        (refused,) = map(json.loads, (runs.folder / name / "refused.jsonl").read_text().splitlines())
        assert refused["stage"] == "a" and "holds '<|end|>'" in refused["reason"]


@pytest.mark.parametrize("split", ["answers", "answers_wide"])
def test_the_students_own_answers_and_their_gradient_depend_on_no_split(runs, split):
    """1 rank x accumulation 4 against 2 ranks x 2 and 2 x 1: the same answers, terms and gradient."""
    one, other = runs(1, "answers"), runs(2, split)
    assert "error" not in other, other.get("error")
    shown = [(line["prompt"], line["sample"], line["tokens"], line["advantage"]) for line in one["shown"]]
    assert shown == [(line["prompt"], line["sample"], line["tokens"], line["advantage"]) for line in other["shown"]]
    assert len(shown) == 2 and not runs(2, split, rank=1)["shown"]
    assert shown[0][3] == pytest.approx(-shown[1][3]) and shown[0][3] != 0
    for name in ("distill", "repair", "reward"):
        assert one["lines"][0][name] and other["lines"][0][name] == pytest.approx(one["lines"][0][name], rel=1e-5)
    assert_same(gradients(other), gradients(one))
    plain, with_answers = gradients(runs(1, "split")), gradients(one)
    assert any((plain[name] - with_answers[name]).abs().max() > 1e-4 for name in plain)


def test_answers_under_zero2(runs):
    run = runs(2, "answers_zero2")
    assert "error" not in run, run.get("error")
    assert all(run["lines"][0][name] for name in ("distill", "repair", "reward"))


def test_answers_stand_beside_packed_records(runs):
    packed, padded = runs(1, "answers_packed"), runs(1, "answers")
    assert "error" not in packed, packed.get("error")
    assert [len(line["tokens"]) for line in packed["shown"]] == [len(line["tokens"]) for line in padded["shown"]]
    assert packed["lines"][0]["distill"] and packed["lines"][0]["sequences"] >= 1
