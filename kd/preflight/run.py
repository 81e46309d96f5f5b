"""The readiness check of a run: what its configuration names agrees, and one real step has a gradient for every term.

Each check is {"name", "ok", "detail"}; ok is None where it was not run, and the detail says why. The step is the first
one that the run would take whose rows have every span that has a weight, on the CPU, with whole models and no
DeepSpeed: hidden states, head and loss are put together as kd/training/engine.py does.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from kd.batching.fit import FitPolicy
from kd.batching.micro_batch import MicroBatch, count_rows
from kd.batching.steps import StepBatches, StepShape
from kd.config.derived import longest_length, uses_teacher
from kd.config.schema import RunConfig
from kd.models.hidden_states import hidden_rows
from kd.models.lm_head import head_of
from kd.models.load import DTYPES, count_parameters, read_model_config
from kd.models.student import build_student, student_model_config
from kd.models.tokenizer import first_difference, read_tokenizer_if_any
from kd.objective.loss import combined_kd_loss, row_weights
from kd.objective.terms import TERMS, TermWeights, weights_at
from kd.rendering.spans import ARGS, BIT_NAMES, INTEGRATION, TOOL
from kd.sources.stages import sources_to_look_at, stage_source
from kd.teacher.open import open_teacher
from kd.teacher.source import OpenTeacher

MAX_STEPS_LOOKED_AT = 64
_SPAN_BITS = {"tool": TOOL, "args": ARGS, "integration": INTEGRATION}
_USABLE = 0.8  # of the memory that is free now


def check_run(config: RunConfig, tokenizer) -> Iterator[dict[str, Any]]:
    """The checks of a run whose configuration and tokenizer (kd/models/tokenizer.py) could be loaded."""
    yield _result("tokenizers agree", _tokenizers_agree, config, tokenizer)
    yield _result("chat templates agree", _templates_agree, config, tokenizer)
    yield _result("vocabulary fits", _vocabulary_fits, config, tokenizer)
    needed = _memory_needed(config, tokenizer)
    free = int(psutil.virtual_memory().available * _USABLE)
    if isinstance(needed, str) or needed > free:
        why = (
            needed
            if isinstance(needed, str)
            else f"it needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free"
        )
        yield {"name": "forward, loss and gradient of one step", "ok": None, "detail": why}
        return
    try:
        yield from _one_step(config, tokenizer)
    except (ValueError, OSError, RuntimeError) as error:
        yield {"name": "forward, loss and gradient of one step", "ok": False, "detail": str(error)}


def _result(name: str, check: Callable[..., str], *arguments) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": check(*arguments)}
    except (ValueError, OSError) as error:
        return {"name": name, "ok": False, "detail": str(error)}


def _others(config: RunConfig) -> Iterator[tuple[str, str, str | None]]:
    """(whose, folder or hub id, revision) of the models that bring a tokenizer of their own."""
    run = config.tokenizer.path or (config.teacher.path if config.teacher else config.student.path)
    if config.teacher is not None and config.teacher.path != run:
        yield "the teacher", config.teacher.path, config.teacher.revision
    if config.student.init == "checkpoint" and config.student.path != run:
        yield "the student", config.student.path, None


def _tokenizers_agree(config: RunConfig, tokenizer) -> str:
    compared = []
    for whose, path, revision in _others(config):
        other = read_tokenizer_if_any(path, revision)
        difference = first_difference(other, tokenizer) if other is not None else None
        if difference:
            raise ValueError(
                f"{whose}'s tokenizer ({path}) is not the run's: {difference.replace('the teacher', whose)}"
            )
        compared.append(f"{whose}'s is the run's" if other is not None else f"{whose} brings none")
    return "; ".join(compared) or "there is one, and teacher and student share it"


def _templates_agree(config: RunConfig, tokenizer) -> str:
    for whose, path, revision in _others(config):
        other = read_tokenizer_if_any(path, revision)
        if other is not None and other.chat_template and other.chat_template != tokenizer.chat_template:
            raise ValueError(
                f"{whose} ({path}) was trained with another chat template than the run renders with: leave "
                "tokenizer.path out, "
                "or copy its chat_template.jinja"
            )
    return "one template"


def _student_model_config(config: RunConfig, tokenizer) -> PreTrainedConfig:
    return student_model_config(
        config.student, config.teacher, max_length=longest_length(config.data), tokenizer_length=len(tokenizer)
    )


def _vocabulary_fits(config: RunConfig, tokenizer) -> str:
    widths = {"student": _student_model_config(config, tokenizer).get_text_config().vocab_size}
    if config.teacher is not None:
        teacher = read_model_config(config.teacher.path, config.teacher.revision, key="teacher.path")
        widths["teacher"] = teacher.get_text_config().vocab_size
    if min(widths.values()) < len(tokenizer):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the teacher's vocabulary is {widths['teacher']} wide: it "
            "is another model's tokenizer"
        )
    return f"{len(tokenizer)} tokens; " + ", ".join(f"{name} {width} wide" for name, width in widths.items())


def _memory_needed(config: RunConfig, tokenizer) -> int | str:
    """Bytes of weights, gradients, and one micro-batch; or why that is not known."""
    try:
        model_config = _student_model_config(config, tokenizer)
        needed = count_parameters(model_config) * 3 * DTYPES[config.student.dtype].itemsize
        if uses_teacher(config.teacher, config.loss) and config.teacher.cache is None:
            teacher = read_model_config(config.teacher.path, config.teacher.revision, key="teacher.path")
            dtype = DTYPES[config.teacher.dtype] if config.teacher.dtype != "auto" else teacher.dtype or torch.float32
            needed += count_parameters(teacher) * dtype.itemsize
    except (ValueError, OSError) as error:
        return str(error)
    text = model_config.get_text_config()
    tokens = config.training.micro_batch_size * longest_length(config.data)
    return needed + tokens * (text.hidden_size * text.num_hidden_layers * 40 + text.vocab_size * 8)


def first_batch(config: RunConfig, tokenizer, missing: frozenset[bytes] = frozenset()) -> tuple[MicroBatch, int]:
    """A micro-batch of the run's first stage that has rows for each weighted span, or the first one with rows; and its
    step. Records of the keys in `missing` are left out, as in training."""
    stage = config.data.stages[0]
    steps = StepBatches(
        stage_source(config.data, 0),
        tokenizer,
        FitPolicy(stage.max_length, missing=missing),
        StepShape(config.training.micro_batch_size),
        seed=config.run.seed,
    )
    wanted = [
        bit
        for bit, weight in ((TOOL, config.loss.w_tool), (ARGS, config.loss.w_args), (INTEGRATION, config.loss.w_integr))
        if weight > 0
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


def _one_step(config: RunConfig, tokenizer) -> Iterator[dict[str, Any]]:
    source = None
    if uses_teacher(config.teacher, config.loss):
        sources = [] if config.teacher.cache is None else sources_to_look_at(config.data)
        source = open_teacher(
            OpenTeacher.for_run(_whole_teacher(config), {}, tokenizer, torch.device("cpu"), lambda text: None, sources)
        )
    micro, step = first_batch(config, tokenizer, source.missing if source is not None else frozenset())
    token_ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with tempfile.TemporaryDirectory() as folder:
        student = build_student(
            config.student,
            config.teacher,
            work_dir=folder,
            seed=config.run.seed,
            max_length=longest_length(config.data),
            tokenizer_length=len(tokenizer),
            token_ids=token_ids,
        )
    student.train()
    teacher, terms = None, weights_at(config.loss, 0, config.training.steps, has_teacher=source is not None)
    if source is not None:
        terms = terms._replace(temperature=source.temperature(terms.temperature))
        teacher = source.targets(micro, terms.temperature)
        source.close()
    counts = count_rows([micro])
    total, norm = _gradient(config, student, micro, teacher, counts, terms, len(tokenizer))
    rows = ", ".join(f"{name} {int(((micro.bits & bit) != 0).sum())}" for name, bit in BIT_NAMES.items())
    finite = math.isfinite(total) and math.isfinite(norm) and norm > 0
    yield {
        "name": "forward, loss and gradient of one step",
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
        value, norm = _gradient(config, student, micro, teacher, counts, alone, len(tokenizer))
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
    """The same configuration with a teacher that needs no DeepSpeed."""
    return config.model_copy(
        update={"teacher": config.teacher.model_copy(update={"placement": "replicated", "deepspeed": None})}
    )


def _gradient(
    config: RunConfig, student, micro: MicroBatch, teacher, counts, terms: TermWeights, vocab_size: int
) -> tuple[float, float]:
    """(loss, L2 norm of its gradient over all of the student's parameters)."""
    student.zero_grad(set_to_none=True)
    used = teacher if terms.kd or terms.hard or terms.entropy is not None else None
    out = combined_kd_loss(
        hidden_rows(student, micro),
        head_of(student),
        used,
        micro.labels,
        row_weights(micro.bits, micro.weight, counts, terms),
        terms,
        divergence=config.loss.divergence,
        beta=config.loss.beta,
        vocab_size=vocab_size,
        chunk_rows=config.loss.chunk_rows,
    )
    out.loss.backward()
    norms = [parameter.grad.float().norm() for parameter in student.parameters() if parameter.grad is not None]
    return float(out.loss.detach()), float(torch.stack(norms).norm()) if norms else 0.0
