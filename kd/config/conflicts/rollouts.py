"""Contradictions in a stage's rollouts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kd.config.defaults import teacher_source
from kd.config.derived import count_step
from kd.config.problems import Conflict
from kd.config.schema import Rollouts, RunConfig, Stage
from kd.paths import identify
from kernels import divergences


def rollout_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield contradictions of every stage that has rollouts."""
    for number, stage in enumerate(config.data.stages):
        if stage.rollouts is not None:
            yield from _of_stage(config, stage, stage.rollouts, f"data.stages.{number}")


def _of_stage(config: RunConfig, stage: Stage, rollouts: Rollouts, at: str) -> Iterator[Conflict]:
    key = f"{at}.rollouts"
    if rollouts.distill + rollouts.repair + rollouts.reward <= 0:
        yield Conflict(
            (key, *(f"{key}.{name}" for name in ("distill", "repair", "reward"))),
            "nothing is learned from the answers: give distill, repair or reward a weight above 0",
        )
    if rollouts.reward > 0:
        if rollouts.samples < 2:
            yield Conflict(
                (f"{key}.samples", f"{key}.reward"),
                "an answer's reward is compared with those of the prompt's other answers: give samples: 2 or more",
            )
        for name in ("temperature", "top_p"):
            if getattr(rollouts, name) != 1:
                yield Conflict(
                    (f"{key}.{name}", f"{key}.reward"),
                    "reward needs answers of the student's own distribution: set it to 1, or reward to 0",
                )
        if sum(rollouts.rewards.values()) <= 0:
            yield Conflict((f"{key}.rewards",), "all weights are 0: give at least one reward a weight above 0")
    yield from _divergence(config, rollouts, key)
    if rollouts.max_new_tokens >= stage.max_length:
        yield Conflict(
            (f"{key}.max_new_tokens", f"{at}.max_length"),
            f"{rollouts.max_new_tokens} tokens of answer leave no prompt room in max_length ({stage.max_length}): "
            "lower the one or raise the other",
        )
    if (rollouts.engine == "vllm") != (rollouts.server is not None):
        yield Conflict(
            (f"{key}.engine", f"{key}.server"),
            "engine: vllm needs `server: {url: ..., model: ..., weights: ...}`, and server needs engine: vllm",
        )
    if rollouts.server is not None:
        yield from _weights(config, rollouts.server.weights, f"{key}.server.weights")
    training = config.training
    if count_step(training, 1, rollouts).answers == 0:
        size = training.micro_batch_size * training.gradient_accumulation
        yield Conflict(
            (f"{key}.share", f"{key}.samples", "training.micro_batch_size"),
            f"a step of one rank has {size} sequences, of which {rollouts.share:g} is no whole group of "
            f"{rollouts.samples} samples: raise share, micro_batch_size or gradient_accumulation, or lower samples",
        )


def _weights(config: RunConfig, weights: str, key: str) -> Iterator[Conflict]:
    """Check that the folder, whose content each round replaces, is none that the run needs, nor holds one."""
    folder = identify(weights)
    if _holds(folder, os.getcwd()):
        yield Conflict((key,), "each round replaces this folder, and the program works in it: name a folder of its own")
        return
    used = {"teacher.path": config.teacher and config.teacher.path, "student.path": config.student.path}
    used |= {"tokenizer.path": config.tokenizer.path, "run.output_dir": config.run.output_dir}
    for name, path in used.items():
        if path is not None and _holds(folder, path):
            yield Conflict(
                (key, name), f"each round replaces this folder, and {name} is it, or is in it: name a folder of its own"
            )


def _holds(folder: tuple, path: str) -> bool:
    place = Path(os.path.realpath(path))
    return any(identify(one) == folder for one in (place, *place.parents))


def _divergence(config: RunConfig, rollouts: Rollouts, key: str) -> Iterator[Conflict]:
    needs_beta = divergences.find(rollouts.divergence).needs_beta
    if needs_beta != (rollouts.beta is not None):
        yield Conflict(
            (f"{key}.beta", f"{key}.divergence"),
            f"required with divergence: {rollouts.divergence}, from 0 to 1"
            if needs_beta
            else f"divergence: {rollouts.divergence} takes none: remove it",
        )
    if rollouts.distill <= 0:
        return
    teacher = config.teacher
    if teacher is None:
        yield Conflict((f"{key}.distill", "teacher"), "needs a teacher: add one, or set distill to 0")
    elif teacher_source(teacher) != "live" or teacher.targets not in (None, "dense"):
        yield Conflict(
            (f"{key}.distill", "teacher.cache", "teacher.targets", "teacher.source"),
            "the student's own words are in no cache: it needs a live teacher with targets: dense; remove the others, "
            "or set distill to 0",
        )
