"""Weights of the loss's terms: configuration and optimizer step in, numbers out.

All schedules run over the optimizer steps of the whole run and are clamped at both ends, so a resumed or lengthened run
can never reach a temperature of zero or a negative weight.
"""

from __future__ import annotations

from typing import NamedTuple

from kd.config.schedules import scheduled
from kd.config.schema import Loss
from kernels import EntropyWeighting

SOFT_SHARE = 0.6  # of the teacher's share; the rest goes to its own choice (hard)
TERMS = ("kd", "hard", "truth", "tool", "args", "integration")


class TermWeights(NamedTuple):
    """Weights of the terms at one step; `entropy`, where set, replaces kd, hard and truth token by token (they are then
    1).
    """

    temperature: float
    kd: float
    hard: float
    truth: float
    tool: float
    args: float
    integration: float
    entropy: EntropyWeighting | None = None


def loss_weight_schedule(
    step: int, num_steps: int, *, start: float = 0.7, end: float = 0.3, schedule: str = "linear"
) -> tuple[float, float, float]:
    """Return (kd, hard, truth) at optimizer step `step` (from 0) of `num_steps`.

    The teacher's share goes from `start` to `end` by `schedule` and is split 60/40 into kd and hard; truth has the
    rest.
    """
    share = scheduled(schedule, start, end, step, num_steps)
    return share * SOFT_SHARE, share * (1 - SOFT_SHARE), 1 - share


def weights_at(loss: Loss, step: int, num_steps: int, *, has_teacher: bool) -> TermWeights:
    """Return the weights of optimizer step `step` (from 0) of `num_steps` under a run's loss section."""
    t = loss.temperature
    temperature = scheduled(t.schedule, t.start, t.end, step, num_steps)
    entropy = None
    if not has_teacher:
        kd, hard, truth = 0.0, 0.0, 1.0 if loss.weights is None else loss.weights.truth
    elif loss.entropy_weighting is not None:
        e = loss.entropy_weighting
        entropy = EntropyWeighting(e.h_min, e.h_max, kd=e.kd, truth=e.truth, hard=e.hard)  # load_config normalised them
        kd = hard = truth = 1.0
    elif loss.teacher_share is not None:
        s = loss.teacher_share
        kd, hard, truth = loss_weight_schedule(step, num_steps, start=s.start, end=s.end, schedule=s.schedule)
    else:
        w = loss.weights
        kd, hard, truth = (0.5, 0.3, 0.2) if w is None else (w.kd, w.hard, w.truth)
    return TermWeights(temperature, kd, hard, truth, loss.w_tool, loss.w_args, loss.w_integr, entropy)
