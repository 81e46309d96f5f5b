"""Contradictions in the loss, the optimizer and their schedules."""

from __future__ import annotations

from collections.abc import Iterator

from kd.config.problems import Conflict
from kd.config.schema import RunConfig
from kernels import divergences


def loss_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield contradictions of the divergence, the temperature and the weights."""
    loss, temperature = config.loss, config.loss.temperature
    needs_beta = divergences.find(loss.divergence).needs_beta
    if needs_beta and loss.beta is None:
        ends = " (forward KL) to 1 (reverse KL)" if loss.divergence == "jsd" else " to 1"
        yield Conflict(
            ("loss.beta", "loss.divergence"),
            f"required with divergence: {loss.divergence}, from 0{ends}, for example 0.5",
        )
    if not needs_beta and loss.beta is not None:
        takers = " or ".join(name for name in divergences.names() if divergences.find(name).needs_beta)
        yield Conflict(
            ("loss.beta", "loss.divergence"),
            f"only with divergence: {takers} (here {loss.divergence}): remove it, or use {takers}",
        )
    if temperature.schedule == "constant" and temperature.end is not None:
        yield Conflict(
            ("loss.temperature.end", "loss.temperature.schedule"),
            "a constant temperature has no end: remove it, or use linear or cosine",
        )
    if temperature.schedule != "constant" and temperature.end is None:
        yield Conflict(
            ("loss.temperature.end", "loss.temperature.schedule"),
            f"required with schedule: {temperature.schedule}, for example 1.0",
        )
    if temperature.schedule != "constant" and temperature.end == temperature.start:
        yield Conflict(
            ("loss.temperature.end", "loss.temperature.start", "loss.temperature.schedule"),
            f"{temperature.end:g} is the start as well, so that nothing moves: use schedule: constant without end, or "
            "another end",
        )
    given = [name for name in ("weights", "teacher_share", "entropy_weighting") if getattr(loss, name) is not None]
    for name in given[1:]:
        yield Conflict(
            (f"loss.{name}", f"loss.{given[0]}"), f"loss.{given[0]} sets the same weights: keep one of the two"
        )
    entropy = loss.entropy_weighting
    if entropy is not None:
        if entropy.h_min >= entropy.h_max:
            keys = ("loss.entropy_weighting.h_min", "loss.entropy_weighting.h_max")
            yield Conflict(
                keys, f"h_min ({entropy.h_min:g}) must be below h_max ({entropy.h_max:g}): lower it, or raise h_max"
            )
        for end, name in enumerate(("first", "second")):
            if entropy.kd[end] + entropy.hard[end] + entropy.truth[end] <= 0:
                yield Conflict(
                    ("loss.entropy_weighting", *(f"loss.entropy_weighting.{n}" for n in ("kd", "hard", "truth"))),
                    f"the {name} values of kd, hard and truth are all 0: give one of them a value above 0",
                )
    spans = loss.w_tool + loss.w_args + loss.w_integr
    if loss.weights is not None and loss.weights.kd + loss.weights.hard + loss.weights.truth + spans <= 0:
        yield Conflict(
            ("loss.weights", "loss.w_tool", "loss.w_args", "loss.w_integr"),
            "every weight of the loss is 0, so that nothing would be learned: give one of them a value above 0",
        )


def schedule_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield contradictions of the optimizer's schedule and the number of steps."""
    optimizer, steps = config.optimizer, config.training.steps
    if optimizer.warmup_steps >= steps:
        yield Conflict(
            ("optimizer.warmup_steps", "training.steps"),
            f"{optimizer.warmup_steps} is not below training.steps ({steps}), so that the rate would never be reached: "
            "lower the one or raise the other",
        )
    if optimizer.lr * optimizer.weight_decay >= 1:
        yield Conflict(
            ("optimizer.weight_decay", "optimizer.lr"),
            f"times lr is {optimizer.lr * optimizer.weight_decay:g}, and a step takes this part of each weight away: "
            "lower one of the two until the product is below 1",
        )
    if optimizer.schedule == "constant" and optimizer.final_lr_fraction is not None:
        yield Conflict(
            ("optimizer.final_lr_fraction", "optimizer.schedule"),
            "a constant learning rate has no end: remove it, or use another schedule",
        )
    if optimizer.schedule != "wsd" and optimizer.decay_fraction is not None:
        yield Conflict(
            ("optimizer.decay_fraction", "optimizer.schedule"),
            f"only with schedule: wsd (here {optimizer.schedule}): remove it, or use wsd",
        )
    decay = 0.2 if optimizer.decay_fraction is None else optimizer.decay_fraction
    if (
        optimizer.schedule == "wsd"
        and optimizer.warmup_steps < steps
        and optimizer.warmup_steps + decay * steps > steps
    ):
        yield Conflict(
            ("optimizer.decay_fraction", "optimizer.warmup_steps", "training.steps"),
            f"warm-up ({optimizer.warmup_steps} steps) and decay ({decay:g} of {steps} steps) overlap: shorten one",
        )
