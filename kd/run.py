"""One run, start to end: check, build, train, export, evaluate, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist

from kd.batching.check_lengths import check_lengths, describe_step, describe_unseen
from kd.checkpoints.export_hf import export_student
from kd.checkpoints.identity import run_identity
from kd.checkpoints.store import Checkpoints, Found, find_resumable
from kd.config.deepspeed.fill import resolve_ds_config
from kd.config.deepspeed.read import read_ds_config
from kd.config.derived import quarantine_file, reads_teacher, run_folder, uses_teacher
from kd.config.load import dump_config
from kd.config.schema import RunConfig, Training
from kd.distributed.collectives import on_rank_0
from kd.distributed.console import say
from kd.distributed.ranks import Ranks
from kd.distributed.start import start_distributed
from kd.dtypes import multiplies_bf16
from kd.evaluation.answerers.local_model import count_positions
from kd.evaluation.held_out import (
    HeldOut,
    evaluate_candidates,
    explain_missing_teacher,
    list_candidates,
    prepare_held_out,
)
from kd.evaluation.while_training import BEST, check_choice, explain_no_best, open_validator
from kd.hashing import hash_text
from kd.models.model_files import find_file
from kd.models.student import build_run_student, run_student_config
from kd.models.tokenizer import check_run_tokenizer, load_tokenizer, name_tokenizer
from kd.models.weight_files import weights_fingerprint
from kd.models.whole_copy import WholeCopy
from kd.preflight.plan import Plan, check_fits, find_capture_problems, flops_a_token, plan_run, refuse
from kd.preflight.published import published_config
from kd.records.conversation import describe_notes
from kd.records.record import Record
from kd.rollouts.readiness import check_rollouts
from kd.run_end import Outcome, after_training, finish
from kd.run_folder import RunFolder, RunFolderError
from kd.sources.inputs import find_shared, list_data_files, list_models, name_absent
from kd.sources.stages import Sources, run_sources, sources_to_look_at
from kd.teacher.cache.identity import cache_spec, template_hash, tokenizer_hash
from kd.teacher.cache.manifest import MANIFEST, content_of
from kd.teacher.cache.manifest import read as read_manifest
from kd.teacher.cached import require_captured
from kd.teacher.capture.size import CacheSize, estimate_size
from kd.teacher.open import open_teacher
from kd.teacher.source import OpenTeacher
from kd.training.curriculum import Curriculum
from kd.training.engine import StudentEngine
from kd.training.log import RunLog
from kd.training.process import ProcessInputs, open_process
from kd.training.trackers import Trackers, check_trackers
from kd.training.trainer import Beside, Trainer, TrainingResult

_STOPPED = {"signal": "a signal", "budget": "training.time_budget_seconds", "patience": "training.patience"}


class Memory(NamedTuple):
    """Bytes of one GPU (None: ranks run on the CPU) and of a host."""

    gpu: int | None
    host: int


class Start(NamedTuple):
    """Beginning of a run, decided before any model is loaded."""

    identity: dict[str, Any]
    resume: Found | None
    validation: dict[str, list[Record]]


def plan_here(
    config: RunConfig,
    world_size: int,
    ranks_per_host: int | None = None,
    *,
    cache: CacheSize | None = None,
    memory: Memory | None = None,
) -> Plan:
    """Plan `config` (kd/preflight/plan.py) for `memory`, by default this machine's."""
    gpu, host = memory or memory_here()
    length = tokenizer_length(config)
    return plan_run(config, world_size, gpu, host, ranks_per_host=ranks_per_host, tokenizer_length=length, cache=cache)


def tokenizer_length(config: RunConfig) -> int | None:
    """Return len(tokenizer) where the width of the student's vocabulary depends on it, else None."""
    student = config.student
    width_unknown = student.init == "scratch" and student.vocab_size is None and config.teacher is None
    return len(load_tokenizer(config.tokenizer, config.teacher, config.student)) if width_unknown else None


def check_capture_fits(config: RunConfig, world_size: int) -> None:
    """Check that this machine can hold the teacher of a capture, before anything is loaded.

    Raises:
        PlanError: it cannot.
    """
    refuse(f"capture of {config.run.name}", find_capture_problems(config, world_size, *memory_here()))


def memory_here(gpu: int | None = None, host: int | None = None) -> Memory:
    """Measure the memory of this machine, but for what is given, in bytes."""
    if gpu is None and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0).total_memory
    return Memory(gpu, host or psutil.virtual_memory().total)


def dry_run(config: RunConfig, world_size: int, memory: Memory | None = None) -> Plan:
    """Make the plan of `--dry-run`, with the size of the teacher's cache from a sample of the data.

    The tokenizer is loaded where the teacher's signal is of some of its tokens, or cached. Of a model whose sizes are
    published, and of data sets of the hub, nothing is downloaded for it: a note says what is then not estimated.

    memory: of the machine that is planned for; by default this one's.

    Raises:
        PlanError, DataError, TokenizerError: something that the configuration names is not there.
    """
    size, teacher, absent = None, config.teacher, None
    if teacher is not None and (teacher.cache is not None or teacher.targets != "dense"):
        absent = _name_absent(config)
        tokenizer = load_tokenizer(config.tokenizer, teacher, config.student) if absent is None else None
        if teacher.cache is not None and tokenizer is not None:
            spec = cache_spec(teacher.cache, len(tokenizer), has_entropy=teacher.endpoint is None)
            size = estimate_size(spec, config.data, tokenizer, sources_to_look_at(config.data), seed=config.run.seed)
    plan = plan_here(config, world_size, cache=size, memory=memory)
    if absent is None:
        return plan
    note = f"{absent} is not on this machine yet, so the cache's size is not estimated"
    return replace(plan, notes=(*plan.notes, note))


def _name_absent(config: RunConfig) -> str | None:
    """Name the tokenizer or the data set that a cache's size needs and that would have to be downloaded, or None."""
    _, path, revision = name_tokenizer(config.tokenizer, config.teacher, config.student)
    if published_config(path) is not None and find_file(path, "tokenizer_config.json", revision) is None:
        return path
    return name_absent(config.data)


def execute(config: RunConfig, *, fresh: bool = False) -> Path:
    """Run `config` on all ranks and return the run folder. Every rank of the launcher calls it.

    A run that was stopped or killed resumes from its newest good checkpoint, also with a larger time budget or number
    of steps; one that is finished is left as it is. `fresh` begins again instead: what an earlier run left is set aside
    in previous-N/ once the new one has taken its first step.

    Raises:
        PlanError: this machine cannot hold the run; nothing was loaded.
        NotCaptured: the teacher's cache is not there yet; nothing was loaded.
        RunFolderError, CheckpointError: the folder is another's, or its checkpoints are of another run; nothing was
            loaded.
        DataError, TokenizerError, StudentError, TrainingError, CallSyntaxError: each says where and what to do.
        JudgingError: training is done and the student exported, and evaluation or report failed.
    """
    _, world = start_distributed()
    check_trackers(config.run.trackers)
    check_fits(plan_here(config, world))
    if config.teacher is not None and config.teacher.cache is not None and uses_teacher(config.teacher, config.loss):
        require_captured(config.teacher.cache)
    folder = RunFolder(run_folder(config.run))
    try:
        on_rank_0(lambda: _take(config, folder))
        return _run(config, folder, fresh)
    finally:
        folder.release()


def _take(config: RunConfig, folder: RunFolder) -> None:
    folder.take()
    inputs = [*list_data_files(config.data), *list_models(config.tokenizer, config.student, config.teacher)]
    folder.check_apart(inputs, quarantine_file(config.data, config.run))


def _run(config: RunConfig, folder: RunFolder, fresh: bool) -> Path:
    started = time.monotonic()
    run_dir = folder.path
    log = RunLog(run_dir, config.training.steps, rank=dist.get_rank(), trackers=_trackers(config, run_dir))
    try:
        tokenizer = load_tokenizer(config.tokenizer, config.teacher, config.student)
        identity = on_rank_0(lambda: _identify(config, tokenizer))
        resume = on_rank_0(lambda: _find_start(folder, identity, fresh, log.say))
        if resume is not None and (ended := on_rank_0(lambda: _how_ended(folder, config.training, resume.step))):
            log.say(
                f"{run_dir} is finished, {resume.step} steps: its report is {run_dir / 'report.html'}. Raise {ended} "
                "to lengthen it, or give --fresh to begin again (this run is then set aside)"
            )
            return run_dir
        shared = on_rank_0(lambda: find_shared(config.data))
        check_choice(config.training, config.evaluation, config.teacher, config.loss)
        # All that the end needs is made before the first step; every line is checked before a model is loaded.
        held_out: HeldOut = on_rank_0(lambda: _prepare_held_out(config, tokenizer))
        no_teacher = on_rank_0(lambda: _find_missing_teacher(config, held_out))
        sources: Sources = on_rank_0(lambda: run_sources(config.data, config.run))
        on_rank_0(lambda: check_lengths(config.data, sources.stages, tokenizer))
        for sentence in on_rank_0(lambda: list(describe_unseen(config.data, sources.stages, tokenizer))):
            log.say(sentence)
        for sentence in describe_step(config.data, sources.stages, config.training, dist.get_world_size()):
            log.say(sentence)
        on_rank_0(
            lambda: check_run_tokenizer(tokenizer, sources.stages, config.tokenizer, config.teacher, config.student)
        )
        for sentence in on_rank_0(lambda: check_rollouts(config.data, sources.stages, tokenizer)):
            log.say(sentence)
        _warn_of_emulation(config, log)
        for note in [*shared, *held_out.notes, *filter(None, [no_teacher])]:
            log.say(f"evaluation: {note}")
        if sources.num_refused:
            log.say(f"data: {sources.num_refused} lines are refused; they are in {sources.quarantine}")
        for line in describe_notes(sources.notes):
            log.say(f"data: {line}")
        result, device = _train(config, tokenizer, folder, log, sources, Start(identity, resume, held_out.validation))
        if result.stopped == "signal":
            log.say("the same command resumes the run")
            return run_dir
        with after_training(config.data, run_dir):
            metrics = None
            if held_out.cases:
                evaluation, teacher = config.evaluation, None if no_teacher else config.teacher
                best = run_dir / BEST if result.best and result.best.step != result.steps else None
                candidates = list_candidates(
                    run_dir / "student",
                    teacher,
                    held_out.further,
                    baselines=evaluation.baselines,
                    seed=config.run.seed,
                    best=best,
                )
                metrics = evaluate_candidates(
                    candidates,
                    tokenizer,
                    held_out.cases,
                    run_dir,
                    evaluation,
                    device=device,
                    say=log.say,
                    conversations=held_out.conversations,
                )
            outcome = Outcome(result, time.monotonic() - started, sources, no_teacher, shared)
            on_rank_0(lambda: finish(config, run_dir, outcome, metrics, log.say))
    finally:
        log.close()
    dist.barrier()
    return run_dir


def _trackers(config: RunConfig, run_dir: Path) -> Trackers:
    settings = config.model_dump(mode="json", exclude={"teacher": {"endpoint"}})
    return Trackers(config.run.trackers, config.run.name, run_dir / "trackers", settings, say)


def _prepare_held_out(config: RunConfig, tokenizer) -> HeldOut:
    positions = count_positions(run_student_config(config, tokenizer))
    return prepare_held_out(config.data, config.evaluation, tokenizer, positions)


def _find_missing_teacher(config: RunConfig, held_out: HeldOut) -> str | None:
    return explain_missing_teacher(config.evaluation, config.teacher) if held_out.cases else None


def _identify(config: RunConfig, tokenizer) -> dict[str, Any]:
    """Return what a checkpoint must match, by name and by content, before any model is loaded."""
    teacher = config.teacher if reads_teacher(config) else None
    cache = content_of(read_manifest(Path(teacher.cache.path) / MANIFEST)) if teacher and teacher.cache else None
    contents: dict[str, str | None] = {
        "tokenizer": tokenizer_hash(tokenizer),
        "chat template": template_hash(tokenizer),
        "training.deepspeed": hash_text(json.dumps(read_ds_config(config.training.deepspeed), sort_keys=True)),
    }
    if teacher is not None and teacher.cache is None:
        contents["teacher.path"] = weights_fingerprint(teacher.path, teacher.revision)
    return run_identity(config, cache, contents)


def _find_start(folder: RunFolder, identity: dict[str, Any], fresh: bool, say: Callable[[str], None]) -> Found | None:
    """Find the checkpoint to resume, or None to begin."""
    if fresh:
        return None
    found = find_resumable(folder.path / "checkpoints", identity, dist.get_world_size(), say)
    if found is None and folder.finished() is not None:
        raise RunFolderError(
            f"{folder.path} is finished and its checkpoints are gone: give --fresh to begin again (it is then set "
            "aside), or choose another run.name"
        )
    for note in filter(None, (found.lengthened, found.other_ranks) if found is not None else ()):
        say(note)
    return found


def _how_ended(folder: RunFolder, training: Training, step: int) -> str | None:
    """Return the key that ended the run in this folder, or None where it has more to do or lost student or report."""
    facts = folder.finished()
    if facts is None or not all((folder.path / name).exists() for name in ("student", "report.html")):
        return None
    if step >= training.steps:
        return "training.steps"
    waited = (facts.get("best") or {}).get("num_since", 0)
    is_out = facts.get("stopped") == "patience" and training.patience is not None and waited >= training.patience
    return "training.patience" if is_out else None


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
    config: RunConfig, tokenizer, folder: RunFolder, log: RunLog, sources: Sources, start: Start
) -> tuple[TrainingResult, torch.device]:
    """Train, and export the student unless a signal stopped the run; returns the device that it was trained on too."""
    run_dir = folder.path
    ds_config = resolve_ds_config(config.training, config.optimizer, config.student)
    model = build_run_student(config, tokenizer, work_dir=run_dir, ds_config=ds_config)
    packed = config.data.packing != "none"
    engine = StudentEngine(model, config.loss, config.optimizer, ds_config, len(tokenizer), packed=packed)
    targets = None
    if reads_teacher(config):
        targets = open_teacher(
            OpenTeacher.for_run(config, ds_config, tokenizer, engine.device, log.say, sources.stages)
        )
    teacher = targets if uses_teacher(config.teacher, config.loss) else None
    ranks = Ranks.over_cpu()
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        engine,
        ranks,
        start.identity,
        format=config.training.checkpoint_format,
        resume=start.resume,
    )
    copy = WholeCopy(model, engine.device)
    validator = open_validator(config, start.validation, engine, teacher, tokenizer, log, ranks, copy)
    export = partial(export_student, model, tokenizer)
    given = ProcessInputs(
        sources.stages, tokenizer, model, copy, targets, ranks, export, say=log.say, show=log.rollouts
    )
    process = open_process(config, given)
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

    def begin(resumed: bool) -> None:
        aside = on_rank_0(lambda: folder.begin(dump_config(config), resumed=resumed))
        if aside is not None:
            log.say(f"what an earlier run left is set aside in {aside}")

    beside = Beside(validator, process, flops_a_token(config, len(tokenizer)))
    try:
        trainer = Trainer(config, engine, teacher, curriculum, log, checkpoints, beside=beside, begin=begin)
        result = trainer.run()
        if result.stopped != "signal":
            export(run_dir / "student")
    finally:
        if process is not None:
            process.close()
        if targets is not None:
            targets.close()
    skipped = f"{result.num_skipped} of them skipped, as their gradient was not finite" if result.num_skipped else None
    done = f"trained {result.steps} steps, {result.tokens:,} tokens in {result.seconds:.0f} s"
    stopped = f"stopped before its end by {_STOPPED[result.stopped]}" if result.stopped else None
    log.say("; ".join(filter(None, [done, skipped, stopped, *result.tally.describe()])))
    if result.stopped != "signal":
        log.say(f"student exported to {run_dir / 'student'}")
        if (reason := explain_no_best(config.training, result.best)) is not None:
            log.say(reason)
    engine.close()
    return result, engine.device
