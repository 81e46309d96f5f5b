"""The loss: divergence, temperature, weights of the terms and of the spans."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kd.config.fields import Choice, Fraction, Pair, Section, Weight
from kd.config.registries import SCHEDULES
from kernels import divergences

Divergence = Annotated[str, Choice(divergences.names)]
Schedule = Annotated[str, Choice(SCHEDULES.names)]
MovingSchedule = Annotated[str, Choice(lambda: (name for name in SCHEDULES.names() if name != "constant"))]


class Temperature(Section):
    schedule: Schedule = "constant"
    """constant: start; linear and cosine: from start at the first optimizer step to end at the last."""
    start: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Temperature of both softmaxes in the distillation term; above 0, at most 100, usual 1 to 4."""
    end: Annotated[float, Field(gt=0, le=100)] | None = None
    """Temperature at the last step; above 0, at most 100, and not start; required by linear and cosine, and by them
    alone."""


class Weights(Section):
    kd: Weight = 0.0
    """Weight of the divergence from the teacher's distribution; from 0 to 1e6, as is every weight: a larger one leaves
    nothing of the other terms in bf16."""
    hard: Weight = 0.0
    """Weight of cross-entropy against the teacher's own choice; from 0 to 1e6."""
    truth: Weight = 0.0
    """Weight of cross-entropy against the record's text; from 0 to 1e6."""


class TeacherShare(Section):
    """Scheduled weights: truth = 1 - share, and the share is split 60/40 into kd and hard."""

    schedule: MovingSchedule = "linear"
    """Path from start at the first optimizer step to end at the last."""
    start: Fraction = 0.7
    """The teacher's share at the first step, from 0 to 1."""
    end: Fraction = 0.3
    """The teacher's share at the last step, from 0 to 1."""


class EntropyWeighting(Section):
    """Weights per token by the teacher's entropy: from the first value at h_min to the second at h_max. Each end's
    triple is divided by its sum when the file is loaded."""

    h_min: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Entropy in nats at and below which the first values hold; from 0 to 100 (a million tokens have 14)."""
    h_max: Annotated[float, Field(gt=0, le=100)] = 8.0
    """Entropy in nats at and above which the second values hold; more than h_min, at most 100."""
    kd: Pair = (0.4, 0.6)
    """Weights of the divergence at the two ends; from 0 to 1e6."""
    hard: Pair = (0.2, 0.2)
    """Weights of the teacher's own choice at the two ends; from 0 to 1e6."""
    truth: Pair = (0.4, 0.2)
    """Weights of the record's text at the two ends; from 0 to 1e6."""


class Loss(Section):
    divergence: Divergence = "forward_kl"
    """Divergence of the student from the teacher; jsd needs beta. Others come from run.extensions."""
    beta: Fraction | None = None
    """For a divergence that takes it, and required by it: of jsd the teacher's share of the mixture, from 0 (forward
    KL) to 1 (reverse KL)."""
    temperature: Temperature = Temperature()
    """Temperature of the distillation term; truth and spans always use 1."""
    weights: Weights | None = None
    """Constant weights. Give one of weights, teacher_share, entropy_weighting; by default kd .5, hard .3, truth .2 with
    a teacher, truth 1 without."""
    teacher_share: TeacherShare | None = None
    """Weights that move from the teacher to the truth over the run."""
    entropy_weighting: EntropyWeighting | None = None
    """Weights by the teacher's entropy at each token."""
    w_tool: Weight = 0.15
    """Weight of the tool's name; from 0 to 1e6."""
    w_args: Weight = 0.15
    """Weight of the call's JSON arguments; from 0 to 1e6."""
    w_integr: Weight = 0.10
    """Weight of text in the answer that carries a value from a tool's result; from 0 to 1e6."""
    chunk_rows: Annotated[int, Field(ge=1, le=16_777_216)] | None = None
    """Rows whose logits exist at once (memory: rows x vocabulary), from 1 to 16,777,216, more than a micro-batch has;
    by default the kernel chooses."""
