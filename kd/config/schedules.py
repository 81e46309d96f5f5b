"""Schedules: a value that goes from its start to its end over the optimizer steps of a run."""

from __future__ import annotations

import math

from kd.config.registries import SCHEDULES


def scheduled(schedule: str, start: float, end: float | None, step: int, num_steps: int) -> float:
    """Return `start` at step 0, `end` at step num_steps - 1, and between them what `schedule`, a name of SCHEDULES,
    makes of the part that is done; clamped outside.

    Raises:
        ValueError: an unknown schedule, or an end missing where one is needed.
    """
    if schedule == "constant":
        return start
    if schedule not in SCHEDULES or end is None:
        others = " or ".join(name for name in SCHEDULES.names() if name != "constant")
        raise ValueError(f"schedule {schedule!r} with end {end}: use constant, or {others} with an end")
    return start + (end - start) * SCHEDULES[schedule](min(max(step / max(num_steps - 1, 1), 0.0), 1.0))


def constant(done: float) -> float:
    """Stay at the start."""
    return 0.0


def linear(done: float) -> float:
    """Go the same way in each step."""
    return done


def cosine(done: float) -> float:
    """Leave the start and reach the end slowly: half a period of a cosine."""
    return 0.5 - 0.5 * math.cos(math.pi * done)


def adaptive_temperature(
    step: int, num_steps: int, *, start: float = 3.0, end: float = 1.5, schedule: str = "linear"
) -> float:
    """Return the distillation term's temperature at a step, never outside [min(start, end), max(start, end)]."""
    return scheduled(schedule, start, end, step, num_steps)
