"""The optimizer, the steps, the checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kd.config.fields import MOST_STEPS, Choice, Fraction, Place, Positive, Section, Steps, Text
from kd.config.registries import CHECKPOINT_FORMATS

CheckpointFormat = Annotated[str, Choice(CHECKPOINT_FORMATS.names)]


class Optimizer(Section):
    """AdamW, with weight decay on matrices alone."""

    lr: Annotated[float, Field(gt=0, le=10_000)] = 2e-4
    """Peak learning rate, above 0; usual 1e-5 to 1e-3; at most 10,000: a step moves a weight by about this, and fp16
    ends at 65,504."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay of the running mean and square of the gradient; from 0, below 1."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the running square; above 0, at most 1, which drowns any gradient."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.1
    """Decoupled decay per step, times the learning rate; from 0 to 1000. The product stays below 1, where one step
    leaves nothing of a weight."""
    clip: Positive = 1.0
    """Largest gradient norm, above 0, at most 1e9, which clips nothing; a larger gradient is scaled down to it."""
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0
    """Optimizer steps from 0 to lr, linear; fewer than training.steps."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """Learning rate after warm-up; wsd: constant, then a linear decay over the last decay_fraction of the run."""
    final_lr_fraction: Fraction | None = None
    """Learning rate at the last step as a fraction of lr, from 0 to 1; 0.1 by default; not with schedule: constant."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the run that decays, above 0, at most 1; 0.2 by default; only with schedule: wsd."""


class Training(Section):
    steps: Steps = Field(examples=[2000])
    """Optimizer steps of the whole run, from 1 to 1,000,000,000 (a year has 31 million seconds); all schedules span
    them."""
    micro_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 4
    """Rows per GPU in one forward: records, or with data.packing sequences of several; from 1 to 1,048,576, more than
    any GPU holds."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Micro-batches per optimizer step on each GPU, from 1 to 65,536: each is a forward and a backward, one after
    another."""
    log_every: Steps = 50
    """Optimizer steps between two lines of metrics, from 1 to 1,000,000,000, the most steps of a run."""
    save_every: Steps = 2000
    """Optimizer steps between two checkpoints, from 1 to 1,000,000,000, the most steps of a run."""
    deepspeed: Place = "ds_configs/zero3.json"
    """DeepSpeed JSON, of ZeRO stage 1, 2 or 3: looked for from the working directory, then beside this YAML, then in
    the repository. What this YAML says is filled in and need not be there: batch sizes, accumulation, clipping,
    precision, optimizer, scheduler, and "auto" in their places. A value there that contradicts this YAML is an
    error."""
    max_skipped_fraction: Fraction = 0.01
    """Part of the run's optimizer steps, from 0 to 1, that may be skipped as their gradient is not finite, or by
    loss_spike_factor; with more, and at least 10, training stops. fp16 skips steps to find its loss scale, and is
    exempt."""
    loss_spike_factor: Annotated[float, Field(gt=1, le=1e6)] | None = None
    """Skip an optimizer step whose loss is more than so many times the running mean of its stage (of about 50 steps,
    from the 20th on), and name its worst records; above 1, at most 1e6; usual 2 to 5. In fp16 it also lowers the loss
    scale. None skips nothing for its loss."""
    peak_tflops: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """TFLOP/s of one device in the run's precision, as its maker states it (989 of an H100 in bf16, dense); above 0,
    at most 1e6. It gives the metric mfu, the model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B)."""
    keep_best: Text | None = None
    """Metric of data.validation by which the best step is exported to best/, beside the last one in student/: loss, kd,
    hard, truth, tool, args or integration (mean nats a token, the least is best), one of the last four with _accuracy,
    or with evaluation.generate_every a metric of evaluation.json. The mean of several splits counts."""
    patience: Steps | None = None
    """Stop after this many measurements of keep_best in a row, from 1 to 1,000,000,000, that were no better than the
    best one."""
    time_budget_seconds: Positive | None = None
    """Stop, save and export after this many seconds of training; above 0, at most 1e9 (31 years)."""
    checkpoint_format: CheckpointFormat = "partitions"
    """Format of checkpoints. partitions: safetensors that any number of ranks and any ZeRO stage resumes; deepspeed:
    DeepSpeed's own, for an optimizer on NVMe, resumed by as many ranks as wrote it. Others come from run.extensions.
    What is resumed is read in the format that it was written in."""
