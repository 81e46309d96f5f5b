"""Evaluation at the end of a run: its held-out records, made ready before training, and the models that answer them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kd.config import schema
from kd.config.sections.data import DEMO_HELD_OUT, DEMO_VALIDATION
from kd.evaluation.answerers.local_model import EvaluationError, LocalModel
from kd.evaluation.cases import Case, build_cases, explain_unwritable
from kd.evaluation.conversations.evaluate import evaluate_conversations
from kd.evaluation.together import Entrant, Metrics, evaluate_together, find_place
from kd.models.load import check_vocabulary, load_whole_model, read_model_config
from kd.models.model_files import check_weights
from kd.models.tokenizer import read_rendering_tokenizer
from kd.models.weight_files import weight_files
from kd.records.checks import DataError
from kd.records.files import read_records
from kd.records.record import Record
from kd.rendering.call_syntax import find_syntax
from kd.sources.demo import corpus as demo
from kd.teacher.cache.identity import template_hash, tokenizer_hash

_OURS = ("student", "best", "teacher", "untrained")  # names in evaluation.json of a run's own models


class Candidate(NamedTuple):
    """Model to evaluate: a `save_pretrained` folder or hub id."""

    name: str  # in evaluation.json
    path: str
    revision: str | None = None
    random_seed: int | None = None  # of random weights, which then replace the saved ones


class HeldOut(NamedTuple):
    """Records of a run that are not trained, as prepared."""

    cases: dict[str, list[Case]]  # of data.evaluation, by split
    notes: list[str]  # what a person should know of them
    validation: dict[str, list[Record]]  # of data.validation, by split
    further: list[Candidate] = []  # of evaluation.compare_with
    conversations: dict[str, list[Record]] = {}  # of data.evaluation, by split: held as a whole, where asked for


def read_held_out(data: schema.Data, num_records: int) -> dict[str, list[Record]]:
    """Read the first `num_records` of each split of data.evaluation; `demo` names the demo corpus's split.

    Raises:
        DataError: a split's file is missing or empty, or the demo corpus has no split of that name.
    """
    return _read("data.evaluation", data.evaluation, data, num_records, DEMO_HELD_OUT)


def read_validation(data: schema.Data, num_records: int, held_out: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """Read the first `num_records` of each split of data.validation, by which a run chooses.

    held_out: of `read_held_out`.

    Raises:
        DataError: as `read_held_out`, or a record is also held out in data.evaluation, which must not be chosen by.
    """
    splits = _read("data.validation", data.validation, data, num_records, DEMO_VALIDATION)
    known = {_content(one): (name, one.id) for name, of in held_out.items() for one in of} if splits else {}
    for name, records in splits.items():
        for record in records:
            if (found := known.get(_content(record))) is not None:
                raise DataError(
                    f"data.validation.{name}: record {record.id} is record {found[1]} of data.evaluation.{found[0]}: "
                    "what a run chooses by must not be what it is measured on; take it out of one of the two"
                )
    return splits


def _read(
    key: str, named: dict[str, str], data: schema.Data, num_records: int, of_demo: Sequence[str]
) -> dict[str, list[Record]]:
    splits = {}
    for name, source in named.items():
        if source != "demo":
            records = read_records(source, rewrite_calls=data.rewrite_calls)
            try:
                splits[name] = [record for record, _ in zip(records, range(num_records))]
            except DataError as error:
                raise DataError(f"{key}.{name}: {error}") from error
        elif data.demo is None or name not in of_demo:
            raise DataError(f"{key}.{name}: the demo corpus's splits there are {', '.join(of_demo)}")
        else:
            splits[name] = list(demo.records(name, num_records, seed=data.demo.seed))
    return splits


def _content(record: Record) -> str:
    return json.dumps([record.messages, record.tools], sort_keys=True)


def describe_command(run_dir: Path, data: schema.Data) -> str | None:
    """Return the command that evaluates a run's exported student alone; None where a split is no file."""
    if "demo" in data.evaluation.values():
        return None
    splits = [word for name, source in data.evaluation.items() for word in ("--data", f"{name}={source}")]
    return shlex.join(
        ["spanwise", "evaluate", "--model", f"student={run_dir / 'student'}", *splits, "--out", str(run_dir)]
    )


def prepare_held_out(
    data: schema.Data, evaluation: schema.Evaluation, tokenizer, positions: int | None = None
) -> HeldOut:
    """Make all that an evaluation asks, before anything is trained: its records read, their tools compiled, their
    prompts rendered; and read what the run chooses by.

    positions: of the student.

    Raises:
        DataError: a file or a record cannot be used, or a split has nothing to ask; names the key.
        CallSyntaxError: the calls that the chat template writes are not read back.
        EvaluationError, StudentError: a model of evaluation.compare_with cannot answer the run's prompts.
    """
    cases, notes = {}, []
    if data.evaluation:
        find_syntax(tokenizer)
    held_out = read_held_out(data, evaluation.num_records)
    for name, records in held_out.items():
        key = f"data.evaluation.{name}"
        try:
            found = build_cases(records, tokenizer)
        except DataError as error:
            raise DataError(f"{key}: {data.evaluation[name]}: {error}") from error
        if not found:
            raise DataError(
                f"{key}: {data.evaluation[name]}: nothing to ask in its {len(records)} records: none calls a tool, "
                "offers one, or uses a tool's result; leave the split out, or give it other records"
            )
        num_long = sum(positions is not None and len(case.prompt_ids or ()) >= positions for case in found)
        if num_long:
            notes.append(
                f"{key}: {num_long} of {len(found)} prompts leave no room for an answer in the student's {positions} "
                "positions; they count as not answered"
            )
        if (unwritable := explain_unwritable(records, tokenizer)) is not None:
            notes.append(f"{key}: {unwritable}")
        cases[name] = found
    validation = read_validation(data, evaluation.num_records, held_out)
    further = _find_further(evaluation, tokenizer) if cases else []
    return HeldOut(cases, notes, validation, further, held_out if evaluation.conversations else {})


def _find_further(evaluation: schema.Evaluation, tokenizer) -> list[Candidate]:
    """Look at the models of evaluation.compare_with; their weights are loaded when it is their turn."""
    found = []
    for name, place in evaluation.compare_with.items():
        key = f"evaluation.compare_with.{name}"
        if name in _OURS:
            raise EvaluationError(f"{key}: {name} names a model of the run itself: give it another name")
        student = Path(place) / "student"
        path = str(student) if student.is_dir() else place
        other = read_rendering_tokenizer(path, key=key)
        if any(digest(other) != digest(tokenizer) for digest in (tokenizer_hash, template_hash)):
            raise EvaluationError(
                f"{key}: {path} has another tokenizer or chat template than the run, whose prompts it would not "
                "understand: compare it with spanwise evaluate, which renders each model's own"
            )
        check_vocabulary(read_model_config(path, key=key), tokenizer, f"{key}: {path}")
        if Path(path).is_dir():
            check_weights(Path(path))
        found.append(Candidate(name, path))
    return found


def explain_missing_teacher(evaluation: schema.Evaluation, teacher: schema.Teacher | None) -> str | None:
    """Say why the teacher cannot be evaluated beside the student; None where it can, or need not be.

    With a cache the teacher's weights need not be on this machine. A live teacher has loaded them by then.

    Raises:
        StudentError: its weights are here and damaged.
    """
    if not evaluation.baselines or teacher is None or teacher.cache is None:
        return None
    files = weight_files(teacher.path, teacher.revision)
    if files:
        if Path(teacher.path).is_dir():
            check_weights(Path(teacher.path))
        return None
    return (
        f"the teacher is not evaluated beside the student: its weights ({teacher.path}) are not on this machine, and "
        "training from a cache does not need them; put them there, or set evaluation.baselines: false, which leaves "
        "out all baselines and this line"
    )


def list_candidates(
    student: Path,
    teacher: schema.Teacher | None,
    further: Sequence[Candidate] = (),
    *,
    baselines: bool,
    seed: int,
    best: Path | None = None,
) -> list[Candidate]:
    """List the models to evaluate: the student, its best step where that is another, and those of `further`; with
    `baselines` also the teacher, where given, and an untrained one.

    seed: of the untrained student's weights.
    """
    trained = [Candidate("student", str(student)), *([] if best is None else [Candidate("best", str(best))]), *further]
    if not baselines:
        return trained
    teachers = [] if teacher is None else [Candidate("teacher", teacher.path, teacher.revision)]
    return [*teachers, *trained, Candidate("untrained", str(student), random_seed=seed)]


def evaluate_candidates(
    candidates: Sequence[Candidate],
    tokenizer,
    cases: dict[str, list[Case]],
    run_dir: Path,
    evaluation: schema.Evaluation,
    *,
    device: torch.device,
    say: Callable[[str], None],
    conversations: Mapping[str, Sequence[Record]] = {},
) -> Metrics:
    """Evaluate each candidate on the cases of each split, and on records held as whole conversations; as
    `kd.evaluation.together.evaluate_together`.
    """
    rank, world = find_place()
    mine = {split: of[rank::world] for split, of in cases.items()}
    whole = {
        split: partial(evaluate_conversations, records=records, share=(rank, world))
        for split, records in conversations.items()
    }

    def load(candidate: Candidate) -> LocalModel:
        return LocalModel(
            _load(candidate, device),
            tokenizer,
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
        )

    entrants = [Entrant(candidate.name, partial(load, candidate), mine, whole) for candidate in candidates]
    return evaluate_together(entrants, run_dir, say=say)


def _load(candidate: Candidate, device: torch.device) -> Any:
    if candidate.random_seed is not None:
        torch.manual_seed(candidate.random_seed)
    model = load_whole_model(candidate.path, candidate.revision, trained=candidate.random_seed is None)
    return model.to(device).eval()
