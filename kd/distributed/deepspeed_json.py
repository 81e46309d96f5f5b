"""TODO docstring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd.config.schema import RunConfig


def resolved_ds_config(config: RunConfig) -> dict[str, Any]:
    """The DeepSpeed JSON of the run, with what the YAML decides filled in: batches, accumulation, clipping,
    precision.
    """
    settings = json.loads(Path(config.training.deepspeed).read_text())
    training, student = config.training, config.student
    settings.pop("train_batch_size", None)
    settings["train_micro_batch_size_per_gpu"] = training.micro_batch_size
    settings["gradient_accumulation_steps"] = training.gradient_accumulation
    settings["gradient_clipping"] = config.optimizer.clip
    for name in ("bf16", "fp16"):
        settings[name] = {**settings.get(name, {}), "enabled": student.dtype == name}
    return settings


def teacher_settings(config: RunConfig, ds_config: dict) -> dict:
    """DeepSpeed settings of the teacher's own engine: its JSON's, else the student's."""
    return json.loads(Path(config.teacher.deepspeed).read_text()) if config.teacher.deepspeed else ds_config
