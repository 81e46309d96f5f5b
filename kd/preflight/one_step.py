"""One real step of a run, on the CPU, with whole models and no DeepSpeed: its loss, and each term's gradient.

The step is the first one that the run would take whose rows have every span that has a weight. The student and its loss
are the module that DeepSpeed wraps in training (kd/objective/student_loss.py).
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kd.batching.fit import FitPolicy
from kd.batching.micro_batch import MicroBatch, count_rows
from kd.batching.steps import StepBatches, StepShape
from kd.config.derived import uses_teacher
from kd.config.schema import Loss, RunConfig, Stage
from kd.models.student import build_run_student
from kd.objective.loss import row_weights
from kd.objective.student_loss import StudentWithLoss
from kd.objective.terms import TERMS, TermWeights, weights_at
from kd.rendering.encode import TurnsChoice
from kd.rendering.spans import ARGS, BIT_NAMES, INTEGRATION, TOOL
from kd.sources.source import Source
from kd.sources.stages import sources_to_look_at, stage_source
from kd.teacher.open import open_teacher
from kd.teacher.source import OpenTeacher
from kernels import DenseTeacher, SparseTeacher

STEP_CHECK = "forward, loss and gradient of one step"
MAX_STEPS_LOOKED_AT = 64
_SPAN_BITS = {"tool": TOOL, "args": ARGS, "integration": INTEGRATION}


def find_first_batch(
    source: Source,
    stage: Stage,
    tokenizer,
    *,
    loss: Loss,
    micro_batch_size: int,
    seed: int,
    missing: frozenset[bytes] = frozenset(),
    turns: TurnsChoice = "auto",
) -> tuple[MicroBatch, int]:
    """Find a micro-batch of a stage with rows for each weighted span, or else the first one with rows; and its step.

    Args:
        source: the stage's records.
        loss: has the weights of the spans.
        missing: keys of records without targets of the teacher, which are left out, as in training.
        turns: data.turns.

    Raises:
        ValueError: no record fits the stage's max_length.
    """
    steps = StepBatches(
        source,
        tokenizer,
        FitPolicy(stage.max_length, missing=missing, turns=turns),
        StepShape(micro_batch_size),
        seed=seed,
    )
    wanted = [
        bit for bit, weight in ((TOOL, loss.w_tool), (ARGS, loss.w_args), (INTEGRATION, loss.w_integr)) if weight > 0
    ]
    best = None
    for step, micro_batches in enumerate(itertools.islice(steps, MAX_STEPS_LOOKED_AT)):
        for micro in micro_batches:
            has = sum(bool((micro.bits & bit).any()) for bit in wanted)
            if len(micro.rows) and (best is None or has > best[0]):
                best = has, micro, step
        if best is not None and best[0] == len(wanted):
            break
    if best is None:
        raise ValueError(
            f"no record of stage {stage.name} fits max_length ({stage.max_length} tokens); raise it, or cut the records"
        )
    return best[1], best[2]


def check_one_step(config: RunConfig, tokenizer) -> Iterator[dict[str, Any]]:
    """Take one step of the run, and yield its checks: the whole loss, each term alone, and their sum.

    Raises:
        ValueError, OSError, RuntimeError: the step cannot be taken; the message says why.
    """
    source = None
    if uses_teacher(config.teacher, config.loss):
        sources = [] if config.teacher is None or config.teacher.cache is None else sources_to_look_at(config.data)
        source = open_teacher(
            OpenTeacher.for_run(_whole_teacher(config), {}, tokenizer, torch.device("cpu"), lambda text: None, sources)
        )
    micro, step = find_first_batch(
        stage_source(config.data, 0),
        config.data.stages[0],
        tokenizer,
        loss=config.loss,
        micro_batch_size=config.training.micro_batch_size,
        seed=config.run.seed,
        missing=source.missing if source is not None else frozenset(),
        turns=config.data.turns,
    )
    with tempfile.TemporaryDirectory() as folder:
        student = build_run_student(config, tokenizer, work_dir=folder)
    student.train()
    module = StudentWithLoss(student, config.loss, len(tokenizer))
    teacher, terms = None, weights_at(config.loss, 0, config.training.steps, has_teacher=source is not None)
    if source is not None:
        terms = terms._replace(temperature=source.temperature(terms.temperature))
        teacher = source.targets(micro, terms.temperature)
        source.close()
    counts = count_rows([micro])
    total, norm = _gradient(module, micro, teacher, counts, terms)
    rows = ", ".join(f"{name} {int(((micro.bits & bit) != 0).sum())}" for name, bit in BIT_NAMES.items())
    finite = math.isfinite(total) and math.isfinite(norm) and norm > 0
    yield {
        "name": STEP_CHECK,
        "ok": finite,
        "detail": f"loss {total:.4f}, gradient norm {norm:.4g} on {len(micro.record_ids)} records (rows: {rows}) "
        f"of step {step}",
    }
    added = 0.0
    for name in TERMS:
        weight = getattr(terms, name)
        if weight == 0:
            continue
        alone = terms._replace(**{other: 0.0 for other in TERMS if other != name})
        value, norm = _gradient(module, micro, teacher, counts, alone)
        added += value
        detail = f"weight {weight:g}, loss {value:.4f}, gradient norm {norm:.4g}"
        if name in _SPAN_BITS and not counts[list(BIT_NAMES).index(name)]:
            detail = (
                f"weight {weight:g}, and none of the first {MAX_STEPS_LOOKED_AT} steps has a row for it: the "
                "data has nothing it learns from; set the weight to 0"
            )
        yield {"name": f"term {name} has a gradient", "ok": math.isfinite(norm) and norm > 0, "detail": detail}
    yield {
        "name": "the terms add up to the loss",
        "ok": math.isclose(added, total, rel_tol=1e-3, abs_tol=1e-6),
        "detail": f"{added:.6f} and {total:.6f}",
    }


def _whole_teacher(config: RunConfig) -> RunConfig:
    """Return the configuration with a teacher that needs no DeepSpeed."""
    assert config.teacher is not None, "a run that uses a teacher has one"
    return config.model_copy(
        update={"teacher": config.teacher.model_copy(update={"placement": "replicated", "deepspeed": None})}
    )


def _gradient(
    module: StudentWithLoss,
    micro: MicroBatch,
    teacher: DenseTeacher | SparseTeacher | None,
    counts: Tensor,
    terms: TermWeights,
) -> tuple[float, float]:
    """Return (loss, L2 norm of its gradient over all of the student's parameters)."""
    module.zero_grad(set_to_none=True)
    used = teacher if terms.kd or terms.hard or terms.entropy is not None else None
    out = module(micro, row_weights(micro.bits, micro.weight, counts, terms), terms, used, 1.0)
    out.loss.backward()
    norms = [parameter.grad.float().norm() for parameter in module.parameters() if parameter.grad is not None]
    return float(out.loss.detach()), float(torch.stack(norms).norm()) if norms else 0.0
