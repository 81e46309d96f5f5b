"""The end of a run: teacher, student and an untrained student answer the held-out records, shared out over the ranks.

Models are loaded whole from their folders on every rank: generation on partitioned weights hangs when ranks need
different numbers of tokens.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch
import torch.distributed as dist

from kd.config.schema import RunConfig
from kd.evaluation.cases import build_cases
from kd.evaluation.evaluate import evaluate_cases, merge
from kd.evaluation.files import write_cases, write_evaluation
from kd.models.load import load_whole_model
from kd.models.weight_files import weight_files
from kd.records.checks import DataError
from kd.records.files import read_records
from kd.records.record import Record
from kd.sources.demo import corpus as demo
from kd.training.log import RunLog


def held_out_records(config: RunConfig) -> dict[str, list[Record]]:
    """Split name -> its first evaluation.num_records records; `demo` in place of a file is the demo corpus's split.

    Raises:
        DataError: a split's file is missing or empty, or the demo corpus has no split of that name.
    """
    splits = {}
    for name, source in config.data.evaluation.items():
        if source == "demo":
            if name not in demo.SPLITS or name == "train":
                raise DataError(
                    f"data.evaluation.{name}: the demo corpus's held-out splits are {', '.join(demo.SPLITS[1:])}"
                )
            splits[name] = list(demo.records(name, config.evaluation.num_records, seed=config.data.demo.seed))
        else:
            splits[name] = [r for r, _ in zip(read_records(source), range(config.evaluation.num_records))]
    return splits


def missing_teacher(config: RunConfig) -> str | None:
    """Why the teacher cannot be evaluated beside the student, where it should be; None where it can, or need not be.

    With a cache the teacher's weights need not be on this machine. A live teacher has loaded them by then.
    """
    teacher = config.teacher
    if not (
        config.data.evaluation and config.evaluation.baselines and teacher is not None and teacher.cache is not None
    ):
        return None
    if weight_files(teacher.path, teacher.revision):
        return None
    return (
        f"the teacher is not evaluated beside the student: its weights ({teacher.path}) are not on this machine, and "
        "training from a cache "
        "does not need them; put them there, or set evaluation.baselines: false, which leaves out all baselines and "
        "this line"
    )


def evaluate_run(
    config: RunConfig,
    tokenizer,
    student: Path,
    run_dir: Path,
    splits: dict[str, list[Record]],
    log: RunLog,
    device: torch.device,
    *,
    teacher: bool = True,
) -> dict | None:
    """Evaluates, and writes evaluation.json and cases.jsonl into `run_dir`. All ranks call it; rank 0 gets the metrics.

    teacher: whether it can be loaded, where it is one of the baselines.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    models: dict[str, tuple[str, str | None]] = {"student": (str(student), None)}
    if config.evaluation.baselines:
        if config.teacher is not None and teacher:
            models = {"teacher": (config.teacher.path, config.teacher.revision), **models}
        models["untrained"] = (str(student), None)
    cases = {name: build_cases(records, tokenizer) for name, records in splits.items()}
    metrics: dict = {}
    outcomes: dict = {}
    for name, (source, revision) in models.items():
        model = _load(source, revision, trained=name != "untrained", seed=config.run.seed).to(device).eval()
        for split in cases:
            mine = evaluate_cases(
                model,
                tokenizer,
                cases[split][rank::world],
                batch_size=config.evaluation.batch_size,
                max_new_tokens=config.evaluation.max_new_tokens,
            )
            parts = [None] * world if rank == 0 else None
            dist.gather_object(mine, parts)
            if rank == 0:
                result = merge(*parts)
                metrics.setdefault(name, {})[split] = result.metrics
                outcomes.setdefault(name, {})[split] = result.cases
                log.say(
                    f"evaluated {name} on {split}: {len(result.cases)} turns of {result.metrics['num_records']} records"
                )
        del model
        gc.collect()
    if rank != 0:
        return None
    write_evaluation(run_dir / "evaluation.json", metrics)
    write_cases(run_dir / "cases.jsonl", outcomes)
    return metrics


def _load(source: str, revision: str | None, *, trained: bool, seed: int):
    if not trained:
        torch.manual_seed(seed)
    return load_whole_model(source, revision, trained=trained)
