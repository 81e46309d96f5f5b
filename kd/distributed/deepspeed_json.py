"""DeepSpeed settings: the JSON files of student and teacher, opened here alone, completed from the YAML.

kd/config/load.py has found the files and checked them when the YAML was loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd.config.schema import Optimizer, Student, Teacher, Training


def read_ds_config(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON as it is. Raises OSError and json.JSONDecodeError."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def resolve_ds_config(training: Training, optimizer: Optimizer, student: Student) -> dict[str, Any]:
    """Read the student's DeepSpeed JSON (training.deepspeed) and fill in what the YAML decides.

    That is micro-batch size, gradient accumulation, gradient clipping, and bf16 or fp16.
    """
    settings = read_ds_config(training.deepspeed)
    settings.pop("train_batch_size", None)
    settings["train_micro_batch_size_per_gpu"] = training.micro_batch_size
    settings["gradient_accumulation_steps"] = training.gradient_accumulation
    settings["gradient_clipping"] = optimizer.clip
    for name in ("bf16", "fp16"):
        settings[name] = {**settings.get(name, {}), "enabled": student.dtype == name}
    return settings


def teacher_ds_config(teacher: Teacher, student_ds_config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the teacher's own engine: those of teacher.deepspeed, else the student's."""
    return read_ds_config(teacher.deepspeed) if teacher.deepspeed else student_ds_config
