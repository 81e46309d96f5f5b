"""The plan's arithmetic against numbers worked by hand, and the refusal of a machine that is too small."""

from __future__ import annotations

import json

import pytest
from transformers import Qwen3Config

from kd.config.load import load_config
from kd.preflight.memory import Job, Shape, count_flops, estimate_memory
from kd.preflight.plan import PlanError, check_fits, format_plan, plan_run
from kd.teacher.cache.spec import CacheSpec
from kd.teacher.capture.size import CacheSize, row_bytes

GIB = 1 << 30

# One layer, so that each number can be worked out: V=100, H=8, 2 heads of 4 (A=8), 1 kv head (K=4), MLP 16, untied.
# embeddings and head 2*800; q 64, k 32, v 32, o 64, q/k norms 8; MLP 3*128; norms 2*8 + 8
PARAMETERS = 1600 + 64 + 32 + 32 + 64 + 8 + 384 + 24
TINY = dict(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=100,
)
SHAPE = Shape(PARAMETERS, 8, 16, 1, 8, 4, 2, 100, False)


@pytest.fixture
def configure(tmp_path):
    def configure(zero: dict, extra: str = "", overrides=()):
        (tmp_path / "ds.json").write_text(
            json.dumps({"data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": zero})
        )
        path = tmp_path / "run.yaml"
        sizes = ", ".join(f"{key}: {value}" for key, value in TINY.items())
        path.write_text(
            f"run: {{name: tiny}}\ntokenizer: {{path: unused}}\nstudent: {{architecture: qwen3, {sizes}}}\n"
            "data:\n  stages:\n    - {name: a, train: [x], max_length: 10, until: {steps: 30}}\n    - {name: b, "
            "train: [x], max_length: 20}\n"
            f"training: {{steps: 100, micro_batch_size: 3, gradient_accumulation: 5, deepspeed: ds.json}}\n{extra}"
        )
        return load_config(path, overrides)

    return configure


def job(**changes) -> Job:
    zero = {"stage": 3, "reduce_bucket_size": 50, "stage3_max_live_parameters": 1000, "overlap_comm": True}
    values = dict(
        student=SHAPE,
        teacher=None,
        world_size=4,
        student_dtype="bf16",
        teacher_dtype="bf16",
        teacher_sharded=True,
        ds_config={"data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": zero},
        micro_batch_size=3,
        max_length=10,
        gradient_checkpointing=False,
        eager_attention=False,
        chunk_rows=7,
        on_cpu=False,
    )
    return Job(**{**values, **changes})


def test_memory_by_hand():
    device, host = estimate_memory(job())
    assert host == {}
    share = 552  # 2208 parameters on 4 ranks
    # bytes a token and layer: 2 * (2*8 + 2*(8 + 2*4) + 8 + 4*16) in bf16, and 20*8 for the norms
    layer = 2 * (16 + 32 + 8 + 64) + 160
    expected = {
        "student weights": share * 2,
        "student gradients": share * 4,
        "fp32 master and Adam moments": share * 12,
        "gathered student weights": 1000 * 2,
        "gradient reduction buckets": 2 * 50 * 2,
        "student activations": 30 * layer,
        "gradient of the student's head": 100 * 8 * 6,
        "logits of one chunk": 7 * 100 * 2,
    }
    assert PARAMETERS == 2208 and device == expected


def test_memory_by_stage_offload_and_precision():
    def states(stage: int, dtype: str = "bf16", **zero):
        settings = {
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 50, **zero},
        }
        device, host = estimate_memory(job(ds_config=settings, student_dtype=dtype))
        names = ("student weights", "student gradients", "fp32 master and Adam moments")
        return [device.get(name, 0) for name in names], host

    assert states(0)[0] == [2208 * 2, 2208 * 4, 2208 * 12]
    assert states(1)[0] == [2208 * 2, 2208 * 4, 552 * 12]
    assert states(2)[0] == [2208 * 2, 552 * 4, 552 * 12]
    assert states(3)[0] == [552 * 2, 552 * 4, 552 * 12]
    assert states(3, "fp32")[0] == [552 * 4, 552 * 4, 552 * 12]
    device, host = states(3, offload_optimizer={"device": "cpu"})
    assert device == [552 * 2, 0, 0]
    assert host == {
        "student gradients": 552 * 4,
        "fp32 master and Adam moments": 552 * 12,
        "fp32 gradients of the optimizer step": 552 * 4,
    }
    assert states(3, offload_param={"device": "cpu"})[1] == {"student weights": 552 * 2}
    assert states(3, offload_optimizer={"device": "none"})[1] == {}


def test_sampling_takes_a_whole_copy_a_cache_and_the_corrections(configure):
    """bf16: the copy 2 bytes a parameter; keys and values of 16 answers of 20 tokens, one layer of width 4; a second
    gradient of the head, and half the micro-batch again.
    """
    rollouts = "data.stages.1.rollouts={max_new_tokens: 8, samples: 2, repair: 1, reward: 1, share: 0.4}"
    with_answers, without = (
        plan_run(configure({"stage": 3}, overrides=("student.dtype=bf16", *one)), 2, GIB, GIB).device_bytes
        for one in ((rollouts,), ())
    )
    assert with_answers["whole copy of the student"] == 2 * PARAMETERS and "whole copy of the student" not in without
    assert with_answers["key/value cache of sampled answers"] == 16 * 20 * 2 * 1 * 4 * 2
    head = "gradient of the student's head"
    assert with_answers[head] == 2 * without[head]
    # 12 of a step's 30 sequences are answers: two in the fullest of ten micro-batches of three
    assert with_answers["student activations"] * 3 == without["student activations"] * 5


def test_checkpointing_keeps_each_layers_input_and_one_layer():
    deep = Shape(PARAMETERS, 8, 16, 6, 8, 4, 2, 100, False)
    layer = 2 * (16 + 32 + 8 + 64) + 160
    assert estimate_memory(job(student=deep))[0]["student activations"] == 30 * 6 * layer
    assert estimate_memory(job(student=deep, gradient_checkpointing=True))[0]["student activations"] == 30 * (
        6 * 16 + layer
    )
    assert estimate_memory(job(eager_attention=True))[0]["student activations"] == 30 * (layer + 8 * 2 * 10)


def test_packed_records_need_a_mask_unless_flash_attention_keeps_them_apart(configure):
    mask = "mask of packed records"
    assert mask not in estimate_memory(job())[0]
    assert estimate_memory(job(packing_mask=True))[0][mask] == 3 * 10 * 10 * (2 + 1)
    teacher = Shape(4000, 12, 24, 2, 12, 12, 3, 120, True)
    assert estimate_memory(job(packing_mask=True, teacher=teacher, teacher_dtype="fp32"))[0][mask] == 3 * 10 * 10 * (
        4 + 1
    )
    assert plan_run(configure({"stage": 3}, overrides=["data.packing=length"]), 2).device_bytes[mask] == 3 * 20 * 20 * (
        2 + 1
    )
    flash = configure(
        {"stage": 3}, overrides=["data.packing=length", "student.attention_implementation=flash_attention_2"]
    )
    assert mask not in plan_run(flash, 2).device_bytes


def test_teacher_memory():
    teacher = Shape(4000, 12, 24, 2, 12, 12, 3, 120, True)
    device, _ = estimate_memory(job(teacher=teacher))
    assert device["teacher weights"] == 1000 * 2
    assert device["teacher head, whole"] == 120 * 12 * 2
    assert device["gathered teacher weights"] == 1000 * 2
    assert device["teacher hidden states"] == 30 * 12 * 2
    assert device["logits of one chunk"] == 7 * 2 * (100 + 120)
    replicated, _ = estimate_memory(job(teacher=teacher, teacher_sharded=False))
    assert replicated["teacher weights"] == 4000 * 2 and "teacher head, whole" not in replicated


def test_operations_by_hand():
    # all but the embedding's 800 are multiplied: 1408. Attention of one causal forward: 2 * 1 layer * 8 wide * 10 long.
    forward = 2 * 1408 + 160
    assert count_flops(SHAPE, None, 10, False) == 3 * forward
    assert count_flops(SHAPE, None, 10, True) == 4 * forward
    teacher = Shape(4000, 12, 24, 2, 12, 12, 3, 120, True)  # tied: its one matrix is multiplied too
    assert count_flops(SHAPE, teacher, 10, False) == 3 * forward + 2 * 4000 + 2 * 2 * 12 * 10


def test_tokens_and_time(configure):
    plan = plan_run(configure({"stage": 3}, overrides=["training.peak_tflops=1"]), 4, 80 * GIB)
    assert plan.student_parameters == PARAMETERS
    assert [(stage.steps, stage.tokens_per_step) for stage in plan.stages] == [
        (30, 4 * 3 * 5 * 10),
        (70, 4 * 3 * 5 * 20),
    ]
    assert plan.tokens == 30 * 600 + 70 * 1200
    assert plan.flops == 30 * 600 * 3 * (2816 + 160) + 70 * 1200 * 3 * (2816 + 320)
    assert plan.tokens_per_second == pytest.approx(plan.tokens * 4 * 1e12 * 0.4 / plan.flops)
    text = format_plan(plan)
    assert "assumes 40% of 1 TFLOP/s on each of 4 devices" in text and "no problem found" in text
    assert "time      not estimated" in format_plan(plan_run(configure({"stage": 3}), 4, 80 * GIB))


def test_a_plan_that_fits_passes(configure):
    check_fits(plan_run(configure({"stage": 3}), 1, 80 * GIB, 64 * GIB))
    check_fits(plan_run(configure({"stage": 3, "reduce_bucket_size": 1000}), 2, None, GIB))


def test_a_machine_that_is_too_small_is_refused_with_what_to_change():
    config = load_config("configs/student_9b_gqa.yaml")
    with pytest.raises(PlanError, match="student_9b_gqa does not fit this machine") as caught:
        check_fits(plan_run(config, 1, 80 * GIB, 500 * GIB))
    assert "each GPU needs" in str(caught.value)
    with pytest.raises(PlanError, match="no GPU here: run it on GPUs"):
        check_fits(plan_run(config, 2, None, 24 * GIB))
    assert plan_run(config, 64, 80 * GIB, 500 * GIB, ranks_per_host=8).problems == ()


def test_what_is_advised_is_enough():
    config = load_config(
        "configs/student_8b_gqa.yaml",
        ["student.gradient_checkpointing=false", "training.micro_batch_size=1", "training.gradient_accumulation=36"],
    )
    (problem,) = plan_run(config, 8, 80 * GIB, 2000 * GIB).problems
    assert "any one of these makes it fit: student.gradient_checkpointing: true" in problem
    mended = load_config(
        "configs/student_8b_gqa.yaml", ["training.micro_batch_size=1", "training.gradient_accumulation=36"]
    )
    assert plan_run(mended, 8, 80 * GIB, 2000 * GIB).problems == ()


def test_a_teacher_on_this_machine_is_counted_and_another_is_noted(configure, tmp_path):
    Qwen3Config(**TINY).save_pretrained(tmp_path / "teacher")
    config = configure({"stage": 3}, f"teacher: {{path: {tmp_path / 'teacher'}}}\n")
    plan = plan_run(config, 2, 80 * GIB)
    assert (
        plan.teacher_parameters == PARAMETERS
        and plan.notes == ()
        and plan.device_bytes["teacher weights"] == PARAMETERS // 2 * 2
    )
    config = configure(
        {"stage": 2}, f"teacher: {{path: {tmp_path / 'teacher'}}}\n"
    )  # the teacher's own engine is of ZeRO-3 all the same
    assert plan_run(config, 2, 80 * GIB).device_bytes["teacher weights"] == PARAMETERS // 2 * 2
    plan = plan_run(configure({"stage": 3}, "teacher: {path: nobody/nothing}\n"), 2, 80 * GIB)
    assert plan.teacher_parameters is None and "nobody/nothing is not on this machine" in plan.notes[0]
    assert "note      the teacher nobody/nothing" in format_plan(plan)


def test_a_teacher_in_host_memory_or_read_from_a_cache_takes_no_gpu(configure, tmp_path):
    Qwen3Config(**TINY).save_pretrained(tmp_path / "teacher")
    path = f"path: {tmp_path / 'teacher'}"
    plan = plan_run(configure({"stage": 3}, f"teacher: {{{path}, placement: offloaded}}\n"), 2, 80 * GIB)
    assert (
        plan.host_bytes == {"teacher weights": PARAMETERS} and plan.device_bytes["teacher head, whole"] == 100 * 8 * 2
    )
    plan = plan_run(
        configure({"stage": 3}, f"teacher: {{{path}, cache: {{path: c, temperatures: [2.0]}}}}\n"),
        2,
        80 * GIB,
        cache=CacheSize(10**9, 41.5),
    )
    assert plan.teacher_parameters == PARAMETERS and not any(name.startswith("teacher") for name in plan.device_bytes)
    assert plan.flops == plan_run(configure({"stage": 3}), 2, 80 * GIB).flops
    assert "cache     about 38.6 GiB on disk: 1,000,000,000 rows of 42 bytes, if the teacher" in format_plan(plan)
    assert "the teacher runs at capture alone" in format_plan(plan)


def test_a_teacher_too_large_may_be_offloaded(configure, tmp_path):
    Qwen3Config(**{**TINY, "num_hidden_layers": 400}).save_pretrained(tmp_path / "teacher")
    config = configure(
        {"stage": 3, "reduce_bucket_size": 50, "stage3_max_live_parameters": 1000},
        f"teacher: {{path: {tmp_path / 'teacher'}}}\n",
    )
    (problem,) = plan_run(config, 1, 400_000, GIB).problems
    assert "teacher.placement: offloaded" in problem


@pytest.mark.parametrize(("vocab_size", "limit"), [(151_936, 41), (262_144, 41)])
def test_bytes_a_row(vocab_size, limit):
    assert row_bytes(CacheSpec("sampled", vocab_size, (1.0,), num_draws=50)) == 12 * 3 + 2 <= limit
    assert row_bytes(CacheSpec("sampled", vocab_size, (1.0, 2.0), num_draws=50)) == 12 * 3 + 2 + 38 * 3 + 2
    assert row_bytes(CacheSpec("sampled", vocab_size, (4.0,), num_draws=50)) == 50 * 3 + 4
    assert row_bytes(CacheSpec("topk", vocab_size, (1.0,), top_k=32)) == 32 * 18 // 8 + 64 + 4 + 2 <= 150
