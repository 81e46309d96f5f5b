"""Registries behind the schema's choices, and the user's own modules that add to them (run.extensions).

What is built in stands here by import path, so that this room imports none of those above it. To add one of your own:

    FORMATS.register("mine", Format(...))       in a module that run.extensions names

Divergences have a registry of their own in `kernels`, which imports nothing of kd.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from kd.registry import Registry

FORMATS: Registry[Any] = Registry(
    "record format",
    {name: f"kd.records.formats.{name}:FORMAT" for name in ("chat", "chatml", "sharegpt", "xlam", "bfcl", "flat")},
)
"""kd.records.formats.format.Format by the name that data.stages.*.train.*.format takes."""

SCHEDULES: Registry[Callable[[float], float]] = Registry(
    "schedule", {name: f"kd.config.schedules:{name}" for name in ("constant", "linear", "cosine")}
)
"""Path of a value over the run: from the part of the run that is done, in [0, 1], to the part of the way from start to
end that is made."""

TEACHER_SOURCES: Registry[Any] = Registry(
    "teacher source", {"live": "kd.teacher.live:open_live", "cache": "kd.teacher.cached:open_cache"}
)
"""Functions from kd.teacher.source.OpenTeacher to a TeacherSource, by the name that teacher.source takes."""

CHECKPOINT_FORMATS: Registry[Any] = Registry(
    "checkpoint format",
    {"partitions": "kd.checkpoints.partitions:FORMAT", "deepspeed": "kd.checkpoints.deepspeed_format:FORMAT"},
)
"""How a checkpoint's folder is written and read, by the name that training.checkpoint_format takes."""

REWARDS: Registry[Any] = Registry(
    "reward",
    {
        name: f"kd.rewards.{name}:{name}"
        for name in (
            "exact_call",
            "json_valid",
            "schema_valid",
            "tool_choice",
            "argument_names",
            "argument_values",
            "grounded_answer",
            "refrains",
            "caws_compliance",
            "caws_structure",
        )
    },
)
"""kd.rewards.reward.RewardFunction by the name that data.stages.*.rollouts.rewards takes."""

ROLLOUT_ENGINES: Registry[Any] = Registry(
    "rollout engine", {"local": "kd.rollouts.sampler:open_local", "vllm": "kd.rollouts.vllm_sampler:open_vllm"}
)
"""Functions from kd.rollouts.sampler.OpenSampler to a Sampler, by the name that data.stages.*.rollouts.engine takes."""

_imported: list[str] = []


def import_extension(module: str) -> str | None:
    """Import a user's module, once a process, for what it registers; return why it cannot be imported, or None."""
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module is the user's: whatever it raises is told, with its key
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            return f"no module {error.name!r}: install it, or put the folder that holds it in PYTHONPATH"
        return f"importing {module} failed: {type(error).__name__}: {error}"
    if module not in _imported:
        _imported.append(module)
    return None


def imported_extensions() -> tuple[str, ...]:
    """List the user's modules that this process imported; its worker processes import them too."""
    return tuple(_imported)
