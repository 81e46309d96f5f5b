"""What one rank of a distributed test runs: scenarios one after another in one process, results into files.

    python scenarios.py JOB.json

JOB.json: {"out": folder, "scenarios": [{"name", "config": path, "overrides": [...], "optimizer": "sgd" | "adamw",
"poison": [rank, record id] | null, "export": bool}]}. Each scenario is a run of the real Trainer over StudentEngine and
its teacher; rank 0 writes <out>/<name>.pt with the student's weights before and after every step and the lines that
would be logged.

"capture" writes the run's cache first, with so many rows a shard. "sgd" replaces AdamW, so that a step's change of
weights is -lr times the gradient. "poison" turns the teacher's targets into NaN on one rank, in the micro-batch that
holds the record. "export" writes <out>/<name>_student when trained. An error is a result too: it is kept as text, by
rank.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

import kd.training.engine
import kd.training.trainer
from kd.checkpoints.export_hf import export_student
from kd.config.deepspeed.fill import resolve_ds_config
from kd.config.derived import longest_length
from kd.config.load import load_config
from kd.config.registries import ROLLOUT_ENGINES
from kd.distributed.collectives import on_rank_0
from kd.distributed.ranks import Ranks
from kd.distributed.start import start_distributed
from kd.evaluation.held_out import read_held_out, read_validation
from kd.evaluation.while_training import open_validator
from kd.models.student import build_student
from kd.models.tokenizer import load_tokenizer
from kd.models.whole_copy import WholeCopy
from kd.rewards.reward import Reward
from kd.rollouts.decode import Sampled
from kd.rollouts.sampler import LocalSampler
from kd.sources.stages import run_sources
from kd.teacher.capture.capture import capture
from kd.teacher.open import open_teacher
from kd.teacher.source import OpenTeacher
from kd.training.curriculum import Curriculum
from kd.training.engine import StudentEngine
from kd.training.process import ProcessInputs, open_process
from kd.training.tally import NO_TARGETS, REFUSED, TOO_LONG, TRUNCATED
from kd.training.trainer import Beside, Trainer

COUNTED = {"too_long": TOO_LONG, "no_signal": NO_TARGETS, "refused": REFUSED, "truncated": TRUNCATED}


class Lines:
    """Stands in for RunLog and keeps what it is told; on every rank."""

    def __init__(self):
        self.rows, self.said, self.seen, self.shown = [], [], [], []
        self.say, self.line = self.said.append, self.rows.append

    def advance(self) -> None:
        pass

    def validation(self, step: int, values: dict) -> None:
        self.seen.append((step, values))


class Ending(LocalSampler):
    """The local sampler, its answers ended by a stop: a student of random weights hardly ever says one."""

    def __init__(self, request):
        super().__init__(request)
        self._stop = request.stop_ids[0]

    def sample(self, prompts, seeds):
        drawn = super().sample(prompts, seeds)
        return [Sampled([*ids[:-1], self._stop], known) for ids, known in drawn]


ROLLOUT_ENGINES.register("ending", Ending)


def by_text(record, turn, text, calls):
    """A reward that two answers of random words do not share."""
    return Reward(zlib.crc32(text.encode()) % 1009 / 1009)


class Poisoned:
    """A teacher whose targets are NaN for the micro-batch that holds one record, on one rank."""

    def __init__(self, teacher, rank: int, record_id: str):
        self._teacher, self._rank, self._record_id = teacher, rank, record_id

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def targets(self, micro, temperature, step):
        targets = self._teacher.targets(micro, temperature, step)
        if dist.get_rank() == self._rank and self._record_id in micro.record_ids:
            hidden = targets.hidden.clone()
            hidden[micro.record == micro.record_ids.index(self._record_id)] = float("nan")
            targets = targets._replace(hidden=hidden)
        return targets


def weights_of(model) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: p.detach().clone() for name, p in parameters.items()}


def run(scenario: dict, out: Path) -> dict:
    config = load_config(scenario["config"], scenario["overrides"])
    build = kd.training.engine.build_optimizer
    if scenario["optimizer"] == "sgd":
        kd.training.engine.build_optimizer = lambda model, optimizer, ds: torch.optim.SGD(
            model.parameters(), lr=optimizer.lr
        )
    try:
        tokenizer = load_tokenizer(config.tokenizer, config.teacher, config.student)
        settings = resolve_ds_config(config.training, config.optimizer, config.student)
        model = build_student(
            config.student,
            config.teacher,
            work_dir=out,
            seed=config.run.seed,
            max_length=longest_length(config.data),
            ds_config=settings,
            tokenizer_length=len(tokenizer),
        )
        packed = config.data.packing != "none"
        engine = StudentEngine(model, config.loss, config.optimizer, settings, len(tokenizer), packed=packed)
    finally:
        kd.training.engine.build_optimizer = build
    partitioned = [name for name, p in model.named_parameters() if p.numel() == 0]
    read = on_rank_0(lambda: run_sources(config.data, config.run))
    sources = read.stages
    if scenario.get("capture"):
        capture(config, shard_rows=scenario["capture"])
        torch.set_num_threads(1)
    teacher = None
    if config.teacher is not None:
        request = OpenTeacher.for_run(config, settings, tokenizer, engine.device, print, sources)
        teacher = open_teacher(request)
    if scenario.get("poison"):
        teacher = Poisoned(teacher, *scenario["poison"])
    snapshots = [weights_of(model)]
    step = engine.train_step

    def train_step(*args, **kwargs):
        report = step(*args, **kwargs)
        snapshots.append(weights_of(model))
        reports.append((report.skipped, report.suspects))
        refusals.append(report.refused)
        return report

    reports: list = []
    refusals: list = []
    engine.train_step = train_step
    log = Lines()
    ranks, missing = Ranks(), teacher.missing if teacher is not None else frozenset()
    curriculum = Curriculum(
        config.data,
        config.training,
        sources,
        tokenizer,
        seed=config.run.seed,
        missing=missing,
        ranks=ranks,
        say=log.say,
    )
    held_out = read_held_out(config.data, config.evaluation.num_records)
    validation = read_validation(config.data, config.evaluation.num_records, held_out)
    validator = open_validator(config, validation, engine, teacher, tokenizer, log, ranks)
    given = ProcessInputs(
        sources,
        tokenizer,
        model,
        WholeCopy(model, engine.device),
        teacher,
        ranks,
        export=lambda path: None,
        say=log.say,
        show=log.shown.extend,
    )
    process = open_process(config, given)
    after = kd.training.trainer.SPIKES_AFTER
    if scenario.get("spikes_after") is not None:
        kd.training.trainer.SPIKES_AFTER = scenario["spikes_after"]
    result = Trainer(config, engine, teacher, curriculum, log, beside=Beside(validator, process)).run()
    kd.training.trainer.SPIKES_AFTER = after
    counts = {f"num_{name}": result.tally.count(reason) for name, reason in COUNTED.items()}
    if scenario.get("export"):
        export_student(model, tokenizer, out / f"{scenario['name']}_student")
    return {
        "weights": snapshots,
        "lines": log.rows,
        "said": log.said,
        "seen": log.seen,
        "shown": log.shown,
        "reports": reports,
        "refusals": refusals,
        "partitioned": partitioned,
        "training": all(module.training for module in model.modules()),
        "notes": dict(read.notes),
        "result": {**result._replace(tally=None)._asdict(), **counts},
        "world": dist.get_world_size(),
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    rank, _ = start_distributed()
    torch.set_num_threads(1)
    for scenario in job["scenarios"]:
        try:
            result = run(scenario, out)
        except (ValueError, RuntimeError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        torch.save(result, out / f"{scenario['name']}.{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
