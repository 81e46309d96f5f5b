"""One run, start to end: check, build, train, export, evaluate, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import psutil
import torch
import torch.distributed as dist

from kd.checkpoints.export_hf import export_student
from kd.checkpoints.identity import run_identity
from kd.checkpoints.store import Checkpoints, list_checkpoints
from kd.config.derived import quarantine_file, run_folder, uses_teacher
from kd.config.load import dump_config
from kd.config.schema import RunConfig
from kd.distributed.collectives import on_rank_0
from kd.distributed.deepspeed_json import resolve_ds_config
from kd.distributed.ranks import Ranks
from kd.distributed.start import start_distributed
from kd.dtypes import multiplies_bf16
from kd.evaluation.files import format_table
from kd.evaluation.held_out import evaluate_candidates, explain_missing_teacher, list_candidates, read_held_out
from kd.models.load import count_parameters, read_model_config
from kd.models.student import build_run_student
from kd.models.tokenizer import load_tokenizer
from kd.preflight.plan import Plan, check_fits, format_plan, plan_run
from kd.reports.run_page import write_report
from kd.sources.stages import Sources, describe, run_sources, sources_to_look_at
from kd.teacher.cache.identity import cache_spec
from kd.teacher.cached import require_captured
from kd.teacher.capture.size import CacheSize, estimate_size
from kd.teacher.open import open_teacher
from kd.teacher.source import OpenTeacher
from kd.training.curriculum import Curriculum
from kd.training.engine import StudentEngine
from kd.training.log import RunLog
from kd.training.tally import REFUSED
from kd.training.trainer import Trainer, TrainingResult

_STOPPED = {"signal": "a signal", "budget": "training.time_budget_seconds"}


class Outcome(NamedTuple):
    """End of a run, as its report tells it."""

    result: TrainingResult
    wall_seconds: float
    sources: Sources
    no_teacher: str | None  # why the evaluation leaves the teacher out


def plan_here(
    config: RunConfig, world_size: int, ranks_per_host: int | None = None, *, cache: CacheSize | None = None
) -> Plan:
    """Plan `config` for this machine's memory (kd/preflight/plan.py)."""
    student = config.student
    width_unknown = student.init == "scratch" and student.vocab_size is None and config.teacher is None
    length = len(load_tokenizer(config.tokenizer, config.teacher, config.student)) if width_unknown else None
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return plan_run(
        config,
        world_size,
        gpu,
        psutil.virtual_memory().total,
        ranks_per_host=ranks_per_host,
        tokenizer_length=length,
        cache=cache,
    )


def dry_run(config: RunConfig, world_size: int) -> str:
    """Return the text of `--dry-run`: the plan, and the size of the teacher's cache from a sample of the data.

    The tokenizer is loaded where the teacher's signal is of some of its tokens, or cached.

    Raises:
        PlanError, DataError, TokenizerError: something that the configuration names is not there.
    """
    size = tokenizer = None
    if config.teacher is not None and (config.teacher.cache is not None or config.teacher.targets != "dense"):
        tokenizer = load_tokenizer(config.tokenizer, config.teacher, config.student)
    if config.teacher is not None and config.teacher.cache is not None:
        spec = cache_spec(config.teacher.cache, len(tokenizer), has_entropy=config.teacher.endpoint is None)
        size = estimate_size(spec, config.data, tokenizer, sources_to_look_at(config.data), seed=config.run.seed)
    return format_plan(plan_here(config, world_size, cache=size))


def execute(config: RunConfig, *, fresh: bool = False) -> Path:
    """Runs `config` on all ranks and returns the run folder. Every rank of the launcher calls it.

    A run that was stopped or killed goes on from its newest good checkpoint; `fresh` begins again instead. A run that
    was finished begins again.

    Raises:
        PlanError: this machine cannot hold the run; nothing was loaded.
        NotCaptured: the teacher's cache is not there yet; nothing was loaded.
        DataError, TokenizerError, StudentError, CheckpointError, TrainingError: each says where and what to do.
    """
    rank, world = start_distributed()
    check_fits(plan_here(config, world))
    if uses_teacher(config.teacher, config.loss) and config.teacher.cache is not None:
        require_captured(config.teacher.cache)
    started = time.monotonic()
    run_dir = run_folder(config.run)
    tokenizer = load_tokenizer(config.tokenizer, config.teacher, config.student)
    splits = read_held_out(config.data, config.evaluation.num_records)
    no_teacher = on_rank_0(lambda: explain_missing_teacher(config.evaluation, config.teacher) if splits else None)
    # Every line is checked before a model is loaded.
    sources: Sources = on_rank_0(lambda: run_sources(config.data, config.run))
    on_rank_0(lambda: _prepare(run_dir, config, fresh))
    log = RunLog(run_dir, config.training.steps, rank=rank)
    _warn_of_emulation(config, log)
    try:
        if no_teacher:
            log.say(f"evaluation: {no_teacher}")
        if sources.num_refused:
            log.say(f"data: {sources.num_refused} lines are refused; they are in {sources.quarantine}")
        result, device = _train(config, tokenizer, run_dir, log, sources)
        if result.stopped == "signal":
            log.say("the same command goes on from here")
            return run_dir
        metrics = None
        if splits:
            evaluation, teacher = config.evaluation, None if no_teacher else config.teacher
            candidates = list_candidates(
                run_dir / "student", teacher, baselines=evaluation.baselines, seed=config.run.seed
            )
            metrics = evaluate_candidates(
                candidates, tokenizer, splits, run_dir, evaluation, device=device, say=log.say
            )
        outcome = Outcome(result, time.monotonic() - started, sources, no_teacher)
        on_rank_0(lambda: _finish(config, run_dir, outcome, metrics, log.say))
    finally:
        log.close()
    dist.barrier()
    return run_dir


def _warn_of_emulation(config: RunConfig, log: RunLog) -> None:
    keys = [
        key
        for key, section in (("student.dtype", config.student), ("teacher.dtype", config.teacher))
        if section and section.dtype == "bf16"
    ]
    if keys and not multiplies_bf16():
        log.say(
            "this machine has no bf16 instructions, and emulates them tens of times slower than fp32: set "
            f"{' and '.join(keys)} to auto"
        )


def _train(
    config: RunConfig, tokenizer, run_dir: Path, log: RunLog, sources: Sources
) -> tuple[TrainingResult, torch.device]:
    """Train, and export the student unless a signal stopped the run; returns the device that it was trained on too."""
    ds_config = resolve_ds_config(config.training, config.optimizer, config.student)
    model = build_run_student(config, tokenizer, work_dir=run_dir, ds_config=ds_config)
    packed = config.data.packing != "none"
    engine = StudentEngine(model, config.loss, config.optimizer, ds_config, len(tokenizer), packed=packed)
    teacher = None
    if uses_teacher(config.teacher, config.loss):
        teacher = open_teacher(
            OpenTeacher.for_run(config, ds_config, tokenizer, engine.device, log.say, sources.stages)
        )
    ranks = Ranks.over_cpu()
    identity = run_identity(config, teacher.content if teacher is not None else None)
    written_as = config.training.checkpoint_format
    checkpoints = Checkpoints(run_dir / "checkpoints", engine, ranks, identity, log.say, format=written_as)
    missing = teacher.missing if teacher is not None else frozenset()
    curriculum = Curriculum(
        config.data,
        config.training,
        sources.stages,
        tokenizer,
        seed=config.run.seed,
        missing=missing,
        ranks=ranks,
        say=log.say,
    )
    quarantine = quarantine_file(config.data, config.run)
    try:
        trainer = Trainer(
            config, engine, teacher, curriculum, log, ranks, quarantine=quarantine, checkpoints=checkpoints
        )
        result = trainer.run()
    finally:
        if teacher is not None:
            teacher.close()
    done = f"trained {result.steps} steps, {result.tokens:,} tokens in {result.seconds:.0f} s"
    stopped = f"stopped before its end by {_STOPPED[result.stopped]}" if result.stopped else None
    log.say("; ".join(filter(None, [done, stopped, *result.tally.describe()])))
    if result.stopped != "signal":
        export_student(model, tokenizer, run_dir / "student")
    engine.close()
    return result, engine.device


def _prepare(run_dir: Path, config: RunConfig, fresh: bool) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    if fresh or (run_dir / "run.json").exists() or not list_checkpoints(run_dir / "checkpoints"):
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
        for name in ("metrics.jsonl", "run.json", "evaluation.json", "cases.jsonl", "report.html"):
            (run_dir / name).unlink(missing_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")


def _finish(
    config: RunConfig, run_dir: Path, outcome: Outcome, metrics: dict | None, say: Callable[[str], None]
) -> None:
    """Write run.json and the report, and say where they are."""
    result = outcome.result
    facts: dict[str, Any] = {
        "student_parameters": count_parameters(read_model_config(run_dir / "student")),
        "wall_seconds": outcome.wall_seconds,
        "training_seconds": result.seconds,
        "steps": result.steps,
        "tokens": result.tokens,
        "stopped": result.stopped,
        "data": "; ".join(f"{stage.name}: {describe(stage)}" for stage in config.data.stages),
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__},
        "world_size": dist.get_world_size(),
        "notes": _write_notes(config, outcome),
    }
    if config.teacher is not None:
        model_config = read_model_config(config.teacher.path, config.teacher.revision, key="teacher.path")
        facts["teacher_parameters"] = count_parameters(model_config)
    (run_dir / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    report = write_report(run_dir)
    if metrics:
        say(format_table(metrics))
    say(f"student  {run_dir / 'student'}\nreport   {report}")


def _write_notes(config: RunConfig, outcome: Outcome) -> list[str]:
    """Write what a reader of the report must know to read its numbers."""
    notes = []
    if config.student.init == "teacher_layers":
        notes.append(
            "The student started from layers of the teacher (student.init: teacher_layers), not from random weights."
        )
    if outcome.no_teacher:
        notes.append(f"{outcome.no_teacher[0].upper()}{outcome.no_teacher[1:]}.")
    sources, tally = outcome.sources, outcome.result.tally
    if sources.num_refused:
        notes.append(f"{sources.num_refused} lines of the data were refused.")
    notes += [f"{sentence}." for sentence in tally.describe()]
    if sources.num_refused or tally.count(REFUSED):
        notes.append(f"All that was refused is in {sources.quarantine}.")
    return notes
