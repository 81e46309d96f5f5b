"""TODO docstring."""

from __future__ import annotations

import math


def scheduled(schedule: str, start: float, end: float | None, step: int, num_steps: int) -> float:
    """`start` at step 0, `end` at step num_steps - 1, clamped outside; schedule: constant, linear or cosine.

    Raises:
        ValueError: an unknown schedule, or an end missing where one is needed.
    """
    if schedule == "constant":
        return start
    if schedule not in ("linear", "cosine") or end is None:
        raise ValueError(f"schedule {schedule!r} with end {end}: use constant, or linear or cosine with an end")
    done = min(max(step / max(num_steps - 1, 1), 0.0), 1.0)
    if schedule == "cosine":
        done = 0.5 - 0.5 * math.cos(math.pi * done)
    return start + (end - start) * done


def adaptive_temperature(
    step: int, num_steps: int, *, start: float = 3.0, end: float = 1.5, schedule: str = "linear"
) -> float:
    """Temperature of the distillation term at an optimizer step; never outside [min(start, end), max(start, end)]."""
    return scheduled(schedule, start, end, step, num_steps)
