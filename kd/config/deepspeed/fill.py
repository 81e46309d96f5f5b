"""DeepSpeed settings of a run: its JSONs, completed from the YAML.

kd/config/load.py has found the files and held them to the YAML (check.py), so that whatever is dropped here agrees with
what the YAML says, or asks for nothing.
"""

from __future__ import annotations

from typing import Any

from kd.config.deepspeed.check import ASKED_OF_THE_YAML, auto_sizes
from kd.config.deepspeed.read import read_ds_config
from kd.config.schema import Optimizer, Student, Teacher, Training


def resolve_ds_config(training: Training, optimizer: Optimizer, student: Student) -> dict[str, Any]:
    """Read the student's DeepSpeed JSON (training.deepspeed) and fill in what the YAML decides.

    That is micro-batch size, gradient accumulation, gradient clipping, bf16 or fp16, and "auto" sizes of buckets.
    Optimizer and scheduler are this program's own, so that their sections go.
    """
    settings = _used(read_ds_config(training.deepspeed), student.hidden_size)
    settings["train_micro_batch_size_per_gpu"] = training.micro_batch_size
    settings["gradient_accumulation_steps"] = training.gradient_accumulation
    settings["gradient_clipping"] = optimizer.clip
    for name in ("bf16", "fp16"):
        settings[name] = {**settings.get(name, {}), "enabled": student.dtype == name}
    return settings


def teacher_ds_config(teacher: Teacher, student_ds_config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the teacher's own engine: those of teacher.deepspeed, else the student's."""
    return _used(read_ds_config(teacher.deepspeed), None) if teacher.deepspeed else student_ds_config


def _used(settings: dict[str, Any], hidden_size: int | None) -> dict[str, Any]:
    """Drop what the YAML decides, and offloads to nowhere; fill in sizes that are "auto"."""
    settings = {key: value for key, value in settings.items() if key not in ASKED_OF_THE_YAML}
    if "zero_optimization" in settings:
        sizes = auto_sizes(hidden_size)
        settings["zero_optimization"] = {
            key: sizes.get(key, value) if value == "auto" else value
            for key, value in settings["zero_optimization"].items()
            if not (key in ("offload_optimizer", "offload_param") and offload_device(value) == "none")
        }
    return settings


def offload_device(section: Any) -> str:
    """Return the device of an offload section of ZeRO: cpu, nvme, or none where there is no section."""
    return (section or {}).get("device", "none")
