"""Readiness check of a run: the models that it names agree, and one real step has a gradient for every term.

Each check is {"name", "ok", "detail"}; ok is None where it was not run, and the detail says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from kd.config.derived import longest_length, reads_teacher
from kd.config.schema import RunConfig, Student, Teacher
from kd.evaluation.answerers.local_model import count_positions
from kd.evaluation.held_out import prepare_held_out
from kd.models.load import DTYPES, count_parameters, read_model_config
from kd.models.student import run_student_config
from kd.preflight.agreement import check_templates, check_tokenizers, check_vocabulary, read_other_tokenizers
from kd.preflight.one_step import STEP_CHECK, check_one_step
from kd.rollouts.readiness import judge_records
from kd.sources.stages import stage_source

_USABLE = 0.8  # of the memory that is free now
_QUICK = 20_000_000  # parameters whose step takes seconds


def check_run(config: RunConfig, tokenizer, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Check a run whose configuration and tokenizer (kd/models/tokenizer.py) could be loaded; yields each check.

    say: told before what may take minutes.
    """
    max_length, student_config = longest_length(config.data), partial(run_student_config, config, tokenizer)
    others = list(read_other_tokenizers(config.tokenizer.path, config.teacher, config.student))
    yield run_check("tokenizers agree", lambda: check_tokenizers(others, tokenizer))
    yield run_check("chat templates agree", lambda: check_templates(others, tokenizer))
    yield run_check("vocabulary fits", lambda: check_vocabulary(student_config(), config.teacher, len(tokenizer)))
    yield run_check("held-out records can be asked", lambda: _check_held_out(config, tokenizer, student_config()))
    for number, stage in enumerate(config.data.stages):
        if stage.rollouts is not None:
            ask = partial(_judge_records, config, number, tokenizer)
            yield run_check(f"answers of stage {stage.name} can be asked for and judged", ask)
    teacher = config.teacher if reads_teacher(config) else None
    try:
        needed = _memory_needed(
            student_config(), config.student, teacher, config.training.micro_batch_size * max_length
        )
    except (ValueError, OSError) as error:
        yield {"name": STEP_CHECK, "ok": None, "detail": str(error)}
        return
    free = int(psutil.virtual_memory().available * _USABLE)
    if needed > free:
        why = f"it needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free"
        yield {"name": STEP_CHECK, "ok": None, "detail": why}
        return
    num_parameters = count_parameters(student_config())
    if num_parameters > _QUICK:
        say(
            f"trying one step of a student of {num_parameters / 1e6:.0f} M parameters on the CPU: this may take minutes"
        )
    try:
        yield from check_one_step(config, tokenizer)
    except (ValueError, OSError, RuntimeError) as error:
        yield {"name": STEP_CHECK, "ok": False, "detail": str(error)}


def _judge_records(config: RunConfig, number: int, tokenizer) -> str:
    return judge_records(config.data.stages[number], stage_source(config.data, number), tokenizer)


def _check_held_out(config: RunConfig, tokenizer, student_config: PreTrainedConfig) -> str:
    held_out = prepare_held_out(config.data, config.evaluation, tokenizer, count_positions(student_config))
    asked = [f"{name}: {len(cases)} turns" for name, cases in held_out.cases.items()]
    return "; ".join([*asked, *held_out.notes]) or "no split is named"


def run_check(name: str, check: Callable[[], str]) -> dict[str, Any]:
    """Make a check of a function that returns a detail, or raises ValueError or OSError."""
    try:
        return {"name": name, "ok": True, "detail": check()}
    except (ValueError, OSError) as error:
        return {"name": name, "ok": False, "detail": str(error)}


def _memory_needed(student_config: PreTrainedConfig, student: Student, teacher: Teacher | None, num_tokens: int) -> int:
    """Estimate the bytes of weights, gradients, and one micro-batch of `num_tokens`; `teacher`: where it is run.

    Raises:
        StudentError: the teacher's configuration cannot be read.
    """
    needed = count_parameters(student_config) * 3 * DTYPES[student.dtype].itemsize
    if teacher is not None and teacher.cache is None:
        teacher_config = read_model_config(teacher.path, teacher.revision, key="teacher.path")
        saved = teacher_config.dtype if isinstance(teacher_config.dtype, torch.dtype) else torch.float32
        dtype = DTYPES[teacher.dtype] if teacher.dtype != "auto" else saved
        needed += count_parameters(teacher_config) * dtype.itemsize
    text = student_config.get_text_config()
    return needed + num_tokens * (text.hidden_size * text.num_hidden_layers * 40 + text.vocab_size * 8)
