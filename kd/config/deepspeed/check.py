"""Check of a DeepSpeed JSON against the YAML: each key is filled in, passed on, or refused by name.

JSONs written for other trainers hold "auto" where those fill in a value. Here the YAML gives it; where it has none,
and where the JSON says another value than the YAML, the key is refused. Nothing is ignored: sections for what this
program does itself, or does not do, must agree with the YAML or ask for nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from kd.config.deepspeed.read import Settings, read_settings
from kd.config.deepspeed.zero import check_zero
from kd.config.problems import dotted
from kd.config.schema import RunConfig
from kd.config.yaml import Path

ASKED_OF_THE_YAML = ("train_batch_size", "optimizer", "scheduler")
"""Sections that are held to the YAML and then dropped."""
_PASSED_ON = (
    *("zero_optimization", "data_types", "bf16", "fp16", "communication_data_type", "prescale_gradients"),
    *("gradient_predivide_factor", "seq_parallel_communication_data_type", "steps_per_print", "wall_clock_breakdown"),
    *("memory_breakdown", "dump_state", "comms_logger", "flops_profiler", "timers", "tensorboard", "wandb", "comet"),
    *("csv_monitor", "aio", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "disable_python_gc"),
    *("disable_allgather", "log_level"),
)
_NOT_DONE = {
    "activation_checkpointing": "set student.gradient_checkpointing: true in the YAML",
    "amp": "student.dtype decides the precision",
    "torch_autocast": "student.dtype decides the precision",
    "bfloat16": "write bf16, its name today",
    "checkpoint": "training.save_every and training.checkpoint_format decide about checkpoints",
    "curriculum_learning": "data.stages are the curriculum",
    "data_efficiency": "data.stages are the curriculum",
    "dataloader_drop_last": "a short last step is trained with its own count",
    "elasticity": "training.micro_batch_size and gradient_accumulation decide",
    **dict.fromkeys(
        (
            *("autotuning", "compile", "compression_training", "datastates", "eigenvalue", "expert_parallel"),
            *("hybrid_engine", "managed_gradient_accumulation", "nebula", "pipeline", "progressive_layer_drop"),
            *("quantize_training", "sparse_attention", "sparse_gradients", "tensor_parallel", "weight_quantization"),
            *("use_data_before_expert_parallelism", "data_parallel_group", "vocabulary_size"),
        ),
        "this program has no part that reads it",
    ),
}
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_ZERO = "zero_optimization"
_AUTO_AS_WELL = (("bf16", "enabled"), ("fp16", "enabled"), ("train_batch_size",))
_ACCUMULATED_IN = ("fp32", "bf16", "fp16")
_OBJECTS = (
    *("optimizer", "scheduler", "bf16", "fp16", "data_types", "comms_logger", "flops_profiler", "timers"),
    *("tensorboard", "wandb", "comet", "csv_monitor", "aio"),
)
_TRUTHS = (
    *("prescale_gradients", "wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_python_gc"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "disable_allgather"),
)
_NUMBERS = ("gradient_predivide_factor", "steps_per_print")
_SENT_IN = ("communication_data_type", "seq_parallel_communication_data_type")


class Fault(NamedTuple):
    """One thing wrong with a DeepSpeed JSON, its place in the message, and the keys of the YAML that it contradicts."""

    message: str
    yaml_keys: tuple[str, ...] = ()


class _Filled(NamedTuple):
    """Value that the YAML gives to a key of the JSON."""

    value: Any
    yaml_key: str


def check_ds_config(file: str, config: RunConfig, *, trains: bool) -> Iterator[Fault]:
    """Yield what is wrong with a DeepSpeed JSON, of the student (`trains`) or of the teacher's own engine."""
    settings = read_settings(file)
    if isinstance(settings, list):
        yield from map(Fault, settings)
        return
    for path, message, yaml_keys in _faults(settings, config, trains):
        yield Fault(f"{settings.locate(path)}: {dotted(path)}: {message}", yaml_keys)


def auto_sizes(hidden_size: int | None) -> dict[str, int]:
    """Return the sizes that "auto" stands for in zero_optimization, as transformers' Trainer has them."""
    if hidden_size is None:
        return {}
    return {
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": hidden_size**2 * 9 // 10,
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }


def _faults(settings: Settings, config: RunConfig, trains: bool) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    data, filled = settings.data, _filled(config)
    known = {str(path[0]) for path in filled} | {*_PASSED_ON, *_NOT_DONE, *ASKED_OF_THE_YAML}
    for key, value in data.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {close[0]}?" if close else "remove it"
            yield (key,), f"unknown key, which DeepSpeed would ignore: {meant}", ()
        elif key in _NOT_DONE and _asks(value):
            yield (key,), f"is not done here: {_NOT_DONE[key]}; remove it", ()
    yield from _sections(settings, config)
    known_sizes = auto_sizes(config.student.hidden_size if trains else None)
    for path, value in _leaves(data):
        if path[0] not in known or path[0] in _NOT_DONE:
            continue
        if value == "auto":
            if path not in filled and path not in _AUTO_AS_WELL and (path[0] != _ZERO or path[-1] not in known_sizes):
                yield path, _explain_auto(path, trains), ()
        elif path in filled and not _equal(value, filled[path].value):
            wanted, key = filled[path]
            message = f"is {_show(value)}, and {key} in the YAML gives {_show(wanted)}: keep one, or remove it here"
            yield path, message, (key,)
    yield from ((path, message, ()) for path, message in check_zero(data, trains))


def _filled(config: RunConfig) -> dict[Path, _Filled]:
    training, optimizer = config.training, config.optimizer
    final = optimizer.final_lr_fraction
    adam, schedule = ("optimizer", "params"), ("scheduler", "params")
    return {
        ("train_micro_batch_size_per_gpu",): _Filled(training.micro_batch_size, "training.micro_batch_size"),
        ("gradient_accumulation_steps",): _Filled(training.gradient_accumulation, "training.gradient_accumulation"),
        ("gradient_clipping",): _Filled(optimizer.clip, "optimizer.clip"),
        (*adam, "lr"): _Filled(optimizer.lr, "optimizer.lr"),
        (*adam, "betas"): _Filled(list(optimizer.betas), "optimizer.betas"),
        (*adam, "eps"): _Filled(optimizer.eps, "optimizer.eps"),
        (*adam, "weight_decay"): _Filled(optimizer.weight_decay, "optimizer.weight_decay"),
        (*schedule, "warmup_num_steps"): _Filled(optimizer.warmup_steps, "optimizer.warmup_steps"),
        (*schedule, "warmup_max_lr"): _Filled(optimizer.lr, "optimizer.lr"),
        (*schedule, "warmup_min_lr"): _Filled(0, "optimizer.warmup_steps"),
        (*schedule, "warmup_min_ratio"): _Filled(0, "optimizer.warmup_steps"),
        (*schedule, "warmup_type"): _Filled("linear", "optimizer.warmup_steps"),
        (*schedule, "cos_min_ratio"): _Filled(0.1 if final is None else final, "optimizer.final_lr_fraction"),
        (*schedule, "total_num_steps"): _Filled(training.steps, "training.steps"),
    }


def _sections(settings: Settings, config: RunConfig) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """Check sections whose types and values have rules of their own."""
    data, training = settings.data, config.training
    for name, expected in _find_misfits(data):
        yield (name,), f"expected {expected}, got {_show(data[name])}: mend or remove it", ()
    optimizer, scheduler = _object(data, "optimizer"), _object(data, "scheduler")
    if optimizer and optimizer.get("type") not in ("AdamW", "Adam"):
        yield ("optimizer", "type"), f"is {_show(optimizer.get('type'))}, and this program has AdamW: remove it", ()
    yield from _own_values(optimizer, "optimizer", _filled(config))
    if scheduler:
        named, wanted = scheduler.get("type"), config.optimizer.schedule
        if named not in _SCHEDULES:
            message = f"is {_show(named)}: remove this section, and set optimizer.schedule in the YAML"
            yield ("scheduler", "type"), message, ()
        elif _SCHEDULES[named] != wanted:
            message = (
                f"is {named}, and optimizer.schedule in the YAML is {wanted}: remove this section, or set "
                f"optimizer.schedule: {_SCHEDULES[named]}"
            )
            yield ("scheduler", "type"), message, ("optimizer.schedule",)
    yield from _own_values(scheduler, "scheduler", _filled(config))
    batch, step = data.get("train_batch_size", "auto"), training.micro_batch_size * training.gradient_accumulation
    if batch != "auto" and (type(batch) is not int or batch < 1 or batch % step):
        yield (
            ("train_batch_size",),
            f"is {_show(batch)}, and each rank trains {training.micro_batch_size} x {training.gradient_accumulation} "
            "rows a step (training.micro_batch_size, gradient_accumulation): remove it, or change the YAML",
            ("training.micro_batch_size", "training.gradient_accumulation"),
        )
    asked = [name for name in ("bf16", "fp16") if _object(data, name).get("enabled") is True]
    if len(asked) == 2:
        yield ("fp16", "enabled"), "is true, and bf16's as well: keep one; student.dtype decides", ()
    for name in ("bf16", "fp16"):
        enabled = _object(data, name).get("enabled", "auto")
        if enabled != "auto" and not isinstance(enabled, bool):
            yield (name, "enabled"), f'expected true, false or "auto", got {_show(enabled)}: mend it', ()
    accumulated = _object(data, "data_types").get("grad_accum_dtype", "fp32")
    if accumulated not in (*_ACCUMULATED_IN, None):
        message = f"is {_show(accumulated)}: use one of {', '.join(_ACCUMULATED_IN)}"
        yield ("data_types", "grad_accum_dtype"), message, ()
    for key in _object(data, "data_types"):
        if key != "grad_accum_dtype":
            yield ("data_types", key), "is not done here: student.dtype decides the precision; remove it", ()


def _find_misfits(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key at the top whose value is of another kind than DeepSpeed reads there, and the kind."""
    for name, value in data.items():
        if value is None or value == "auto":
            continue
        if name in _OBJECTS and not isinstance(value, dict):
            yield name, "an object"
        elif name in _TRUTHS and not isinstance(value, bool):
            yield name, "true or false"
        elif (
            name in _NUMBERS
            and value != "inf"
            and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0)
        ):
            yield name, "a number above 0"
        elif name in _SENT_IN and str(value).lower() not in _ACCUMULATED_IN:
            yield name, f"one of {', '.join(_ACCUMULATED_IN)}"


def _own_values(section: dict[str, Any], name: str, filled: dict[Path, _Filled]) -> Iterator[tuple[Path, str, tuple]]:
    """Refuse what a section asks of an optimizer or scheduler of DeepSpeed's beyond what the YAML can say."""
    params = section.get("params", {})
    if not isinstance(params, dict):
        yield (name, "params"), f"expected an object, got {_show(params)}: mend or remove it", ()
        return
    harmless = {"torch_adam": True, "adam_w_mode": True, "bias_correction": True, "amsgrad": False, "fused": True}
    for key, value in params.items():
        if (name, "params", key) not in filled and (key not in harmless or value is not harmless[key]):
            yield (name, "params", key), f"is {_show(value)}, which the YAML has no key for: remove it", ()
    for key in section:
        if key not in ("type", "params"):
            yield (name, key), "the YAML has no key for this: remove it", ()


def _explain_auto(path: Path, trains: bool) -> str:
    sizes = auto_sizes(1)
    if path[0] == "zero_optimization" and path[-1] in sizes:
        why = "student.hidden_size, which it stands for, is not in the YAML" if trains else "the YAML has no such size"
        return f'is "auto", and {why}: write a number, or remove the line for DeepSpeed\'s own'
    return 'is "auto", and the YAML has no key for it: write a value, or remove the line for DeepSpeed\'s own'


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and value of all that is no object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _asks(value: Any) -> bool:
    """Tell whether a section asks for anything: it is not off, not empty, and has more in it than false and null."""
    if isinstance(value, dict):
        return value.get("enabled", True) is not False and any(_asks(inner) for inner in value.values())
    return value not in (False, None, 0, "", [], "auto")


def _object(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _equal(one: Any, other: Any) -> bool:
    return one == other and not isinstance(one, bool)


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"the text {value!r}"[:80] if isinstance(value, str) else str(value)[:80]
