"""The optimizer, the steps, the checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kd.config.fields import Choice, Count, Fraction, NotNegative, Place, Positive, Section
from kd.config.registries import CHECKPOINT_FORMATS

CheckpointFormat = Annotated[str, Choice(CHECKPOINT_FORMATS.names)]


class Optimizer(Section):
    """AdamW, with weight decay on matrices alone."""

    lr: Positive = 2e-4
    """Peak learning rate, above 0; usual 1e-5 to 1e-3."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay of the running mean and square of the gradient; from 0, below 1."""
    eps: Positive = 1e-8
    """Added to the root of the running square; above 0."""
    weight_decay: NotNegative = 0.1
    """Decoupled decay per step, times the learning rate; 0 or more."""
    clip: Positive = 1.0
    """Largest gradient norm, above 0; a larger gradient is scaled down to it."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps from 0 to lr, linear; fewer than training.steps."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """Learning rate after warm-up; wsd: constant, then a linear decay over the last decay_fraction of the run."""
    final_lr_fraction: Fraction | None = None
    """Learning rate at the last step as a fraction of lr, from 0 to 1; 0.1 by default; not with schedule: constant."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the run that decays, above 0, at most 1; 0.2 by default; only with schedule: wsd."""


class Training(Section):
    steps: Count = Field(examples=[2000])
    """Optimizer steps of the whole run; all schedules span them."""
    micro_batch_size: Count = 4
    """Rows per GPU in one forward: records, or with data.packing sequences of several."""
    gradient_accumulation: Count = 1
    """Micro-batches per optimizer step on each GPU."""
    log_every: Count = 50
    """Optimizer steps between two lines of metrics."""
    save_every: Count = 2000
    """Optimizer steps between two checkpoints."""
    deepspeed: Place = "ds_configs/zero3.json"
    """DeepSpeed JSON, of ZeRO stage 1, 2 or 3: looked for from the working directory, then beside this YAML, then in
    the repository. Batch sizes, accumulation, clipping and precision are filled in from this YAML and need not be in
    it."""
    max_skipped_fraction: Fraction = 0.01
    """Part of the run's optimizer steps, from 0 to 1, that may be skipped as their gradient is not finite; with more,
    and at least 10, training stops. fp16 skips steps to find its loss scale, and is exempt."""
    time_budget_seconds: Positive | None = None
    """Stop, save and export after this many seconds of training; above 0."""
    checkpoint_format: CheckpointFormat = "deepspeed"
    """Format of checkpoints; others come from run.extensions."""
