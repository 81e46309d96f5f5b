"""DeepSpeed JSONs, our own and those written for other trainers: filled in from the YAML, or refused by key."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from helpers.config_cases import GOOD, changed, problems
from kd.config.deepspeed.fill import resolve_ds_config, teacher_ds_config
from kd.config.load import load_config

ADAM = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}
# The shape of transformers' and accelerate's examples for ZeRO-3.
TRANSFORMERS = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": ADAM,
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"), "auto"),
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "none", "pin_memory": True},
        "offload_param": {"device": "none", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
ACCELERATE = {
    "bf16": {"enabled": True},
    "optimizer": ADAM,
    "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": "auto",
        "contiguous_gradients": True,
    },
    "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None},
    "amp": {"enabled": False, "opt_level": "O1"},
    "gradient_accumulation_steps": 1,
    "gradient_clipping": "auto",
    "steps_per_print": "inf",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}  # fmt: skip


@pytest.fixture
def faults(write, tmp_path):
    """Load GOOD with a JSON, and return what is said about it, from the JSON's line on."""

    def faults(settings, overrides=(), key: str = "training") -> list[str]:
        file = tmp_path / "mine.json"
        file.write_text(settings if isinstance(settings, str) else json.dumps(settings, indent=1))
        found = problems(write(GOOD), [f"{key}.deepspeed=mine.json", *overrides])
        start = f"--set {key}.deepspeed: {key}.deepspeed: {file}"
        assert all(line.startswith(start) for line in found), found
        return [line.removeprefix(start) for line in found]

    return faults


@pytest.fixture
def resolve(write, tmp_path):
    def resolve(settings, overrides=()) -> dict:
        (tmp_path / "mine.json").write_text(json.dumps(settings))
        config = load_config(write(GOOD), ["training.deepspeed=mine.json", *overrides])
        return resolve_ds_config(config.training, config.optimizer, config.student)

    return resolve


@pytest.mark.parametrize(
    ("settings", "schedule"), [(TRANSFORMERS, "linear"), (ACCELERATE | {"steps_per_print": 10}, "constant")]
)
def test_public_forms_are_filled_in_from_the_yaml(resolve, settings, schedule):
    before = copy.deepcopy(settings)
    done = resolve(settings, [f"optimizer.schedule={schedule}", "training.micro_batch_size=3", "optimizer.clip=2"])
    assert settings == before and "auto" not in json.dumps(done)
    assert not done.keys() & {"optimizer", "scheduler", "train_batch_size"}
    assert (done["train_micro_batch_size_per_gpu"], done["gradient_accumulation_steps"]) == (3, 1)
    assert done["gradient_clipping"] == 2 and done["bf16"]["enabled"] and not done["fp16"]["enabled"]
    zero = done["zero_optimization"]
    assert zero["reduce_bucket_size"] == 64 * 64 and not zero.keys() & {"offload_optimizer", "offload_param"}
    if settings is TRANSFORMERS:
        assert (zero["stage3_prefetch_bucket_size"], zero["stage3_param_persistence_threshold"]) == (3686, 640)
        assert done["fp16"]["initial_scale_power"] == 16


def test_a_public_form_is_refused_where_the_yaml_says_nothing_or_another_thing(faults):
    found = faults(TRANSFORMERS, ["student={init: checkpoint, path: x/y}"])
    said = 'is "auto", and student.hidden_size, which it stands for, is not in the YAML: write a number, or remove'
    for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"):
        assert any(f": zero_optimization.{name}: {said}" in line for line in found)
    assert len(found) == 4 and any(
        line.startswith(":23: scheduler.type: is WarmupDecayLR, and optimizer.schedule in the YAML is cosine: remove")
        for line in found
    )
    (said,) = faults(ACCELERATE | {"train_batch_size": 7}, ["optimizer.schedule=constant"])[:1]
    assert "train_batch_size: is 7, and each rank trains 4 x 1 rows a step" in said


ZERO = {"zero_optimization": {"stage": 3}}


def zero(**settings) -> dict:
    return {"zero_optimization": {"stage": 3, **settings}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (zero(stge=3), ":4: zero_optimization.stge: unknown key: did you mean stage?"),
        (zero(stage="3"), ":3: zero_optimization.stage: is the text '3' and no number: write it without quotes"),
        (zero(stage=True), ":3: zero_optimization.stage: is true: use 1, 2 or 3"),
        (zero(stage=3.0), ":3: zero_optimization.stage: is 3.0: use 1, 2 or 3"),
        (zero(overlap_comm="false"), ":4: zero_optimization.overlap_comm: is the text 'false': write it without"),
        (zero(reduce_bucket_size=-1), ":4: zero_optimization.reduce_bucket_size: input should be greater than 0, got "),
        (zero(reduce_bucket_size=True), ":4: zero_optimization.reduce_bucket_size: expected a number, got true"),
        (zero(sub_group_size="auto"), ':4: zero_optimization.sub_group_size: is "auto", and the YAML has no key for i'),
        (zero(compute_grad_norm=False, stage=2), ":4: zero_optimization.compute_grad_norm: is false, and every step's"),
        (zero(offload_param="cpu"), ':4: zero_optimization.offload_param: expected an object, for example {"device"'),
        (zero(offload_param={"device": "gpu"}), ":5: zero_optimization.offload_param.device: is 'gpu': use cpu, nvme"),
        (zero(offload_optimizer={"device": "nvme"}), ":5: zero_optimization.offload_optimizer.device: is nvme, and th"),
        (zero(stage=2, offload_param={"device": "cpu"}), ":4: zero_optimization.offload_param: needs ZeRO stage 3"),
        (ZERO | {"train_micro_batch_size_per_gpu": 8}, ":5: train_micro_batch_size_per_gpu: is 8, and training.micro_"),
        (ZERO | {"gradient_accumulation_steps": 2}, ":5: gradient_accumulation_steps: is 2, and training.gradient_acc"),
        (ZERO | {"gradient_clipping": 0.5}, ":5: gradient_clipping: is 0.5, and optimizer.clip in the YAML gives 1.0:"),
        (ZERO | {"train_batch_size": 6}, ":5: train_batch_size: is 6, and each rank trains 4 x 1 rows a step"),
        (ZERO | {"train_batch_size": "8"}, ":5: train_batch_size: is the text '8', and each rank trains 4 x 1"),
        (ZERO | {"optimizer": {"type": "Lamb", "params": {}}}, ":6: optimizer.type: is the text 'Lamb', and this prog"),
        (
            ZERO | {"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}},
            ":8: optimizer.params.lr: is 1e-05, and optimizer.lr in the YAML gives 0.0003: keep one, or remove it here",
        ),
        (
            ZERO | {"optimizer": {"type": "AdamW", "params": {"amsgrad": True}}},
            ":8: optimizer.params.amsgrad: is true, which the YAML has no key for: remove it",
        ),
        (ZERO | {"scheduler": {"type": "OneCycle"}}, ":6: scheduler.type: is the text 'OneCycle': remove this section"),
        (ZERO | {"fp16": {"enabled": True}, "bf16": {"enabled": True}}, ":6: fp16.enabled: is true, and bf16's as wel"),
        (ZERO | {"fp16": {"enabled": "yes"}}, ':6: fp16.enabled: expected true, false or "auto", got the text \'yes\''),
        (ZERO | {"fp16": {"scale": 1}}, ":6: fp16.scale: unknown key"),
        (ZERO | {"fp16": {"loss_scale": "auto"}}, ':6: fp16.loss_scale: is "auto", and the YAML has no key for it'),
        (ZERO | {"bf16": {"check_grad_overflow": False}}, ":6: bf16.check_grad_overflow: is false, and steps that are"),
        (ZERO | {"data_types": {"grad_accum_dtype": "fp8"}}, ":6: data_types.grad_accum_dtype: is the text 'fp8': use"),
        (ZERO | {"amp": {"enabled": True}}, ":5: amp: is not done here: student.dtype decides the precision; remove i"),
        (
            ZERO | {"activation_checkpointing": {"partition_activations": True}},
            ":5: activation_checkpointing: is not done here: set student.gradient_checkpointing: true in the YAML",
        ),
        (ZERO | {"gradient_cliping": 1.0}, ":5: gradient_cliping: unknown key, which DeepSpeed would ignore: did you "),
        (ZERO | {"dump_state": "yes"}, ":5: dump_state: expected true or false, got the text 'yes': mend or remove it"),
        (ZERO | {"communication_data_type": "fp8"}, ":5: communication_data_type: expected one of fp32, bf16"),
        (ZERO | {"steps_per_print": 0}, ":5: steps_per_print: expected a number above 0, got 0"),
        (ZERO | {"flops_profiler": True}, ":5: flops_profiler: expected an object, got true"),
        (ZERO | {"tensorboard": {"enabled": True, "path": "x"}}, ":7: tensorboard.path: unknown key: remove it"),
        (ZERO | {"optimizer": 3}, ":5: optimizer: expected an object, got 3"),
        ('{"zero_optimization": {"stage": 3},\n "zero_optimization": {"stage": 2}}', ":2: zero_optimization: given tw"),
        ('{"zero_optimization": {"stage": ' + "1" * 5000 + "}}", ": cannot be read (Exceeds the limit"),
        ("[" * 100_000, ": nested too deeply to be settings"),
        ("\ufeff{", ":1: not valid JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled_in_or_honoured_is_refused_by_key(faults, settings, expected):
    (found,) = faults(settings)
    assert found.startswith(expected)


def test_every_fault_of_a_json_is_listed(faults):
    assert len(faults(zero(stge=3, overlap_com=True) | {"gradient_clipping": 3, "nonsense": 1})) == 4


def test_the_teachers_own_json_is_held_to_the_same_rules(faults, write, tmp_path):
    (found,) = faults({"zero_optimization": {"stge": 3}}, key="teacher")
    assert ": zero_optimization.stge: unknown key" in found
    (found,) = faults({"zero_optimization": {"reduce_bucket_size": "auto"}}, key="teacher")
    assert 'is "auto", and the YAML has no such size: write a number' in found
    (tmp_path / "teacher.json").write_text(json.dumps(zero(offload_param={"device": "none"}) | {"optimizer": ADAM}))
    config = load_config(write(GOOD), ["teacher.deepspeed=teacher.json"])
    assert teacher_ds_config(config.teacher, {}) == ZERO


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "ds_configs").iterdir()), ids=lambda file: file.name
)
def test_our_own_files_are_passed_on_whole(write, file):
    config = load_config(write(changed("ds_configs/zero3_cpu.json", f"ds_configs/{file.name}")))
    done, written = resolve_ds_config(config.training, config.optimizer, config.student), json.loads(file.read_text())
    assert {key: done[key] for key in written} == written
    assert done.keys() - written.keys() == {
        "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "fp16"
    }  # fmt: skip
