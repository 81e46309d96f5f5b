"""Tokenizer of a run, opened here alone, and the proof that teacher and student share it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd.config.schema import Student, Teacher, Tokenizer
from kd.errors import first_line
from kd.models.load import read_model_config
from kd.models.model_files import StudentError, find_folder, read_json
from kd.models.raw_tokenizer import PROBE, TokenizerError, check_raw, check_raw_on_records, read_raw
from kd.rendering.chat_template import set_variables
from kd.rendering.stops import explain_no_stop
from kd.sources.source import Source

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def read_tokenizer(source: str | os.PathLike, revision: str | None = None, *, key: str | None = None) -> Any:
    """Read the tokenizer of a folder or hub id as it is.

    key: key of the YAML that names it, for messages.

    Raises:
        TokenizerError: none that can be read is there, or it gives other ids than its tokenizer.json
            (kd/models/raw_tokenizer.py).
    """
    source = os.fspath(source)
    try:
        folder = find_folder(source, revision, key=key)
        if folder is not None:
            for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
                if os.path.lexists(folder / name):
                    read_json(folder / name)
    except StudentError as error:
        raise TokenizerError(str(error)) from None
    raw = read_raw(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        tokenizer("a")  # some settings are read by this alone, as model_max_length is
    except Exception as error:  # of any library's own types, which have no common base
        raise TokenizerError(
            f"{source}: no tokenizer can be loaded from it ({first_line(error)}); give a folder with tokenizer.json "
            "and tokenizer_config.json"
        ) from error
    check_raw(tokenizer, PROBE, raw)
    return tokenizer


def read_tokenizer_if_any(source: str | os.PathLike, revision: str | None = None) -> Any | None:
    """Read the tokenizer saved beside a checkpoint; None where it has none of its files, as with weights alone.

    Raises:
        TokenizerError: it has some, and they cannot be read.
    """
    folder = Path(source)
    if folder.is_dir():
        return read_tokenizer(source, revision) if any(os.path.lexists(folder / name) for name in _FILES) else None
    try:
        return read_tokenizer(source, revision)
    except TokenizerError:
        return None


def read_rendering_tokenizer(source: str | os.PathLike, revision: str | None = None, *, key: str | None = None) -> Any:
    """Read a tokenizer that can render records and place spans: it has a chat template, offsets, and a token that
    ends a turn.

    Raises:
        TokenizerError: none is there, it has no chat template, it is not a fast one, or a turn ends in no token
            (kd/rendering/stops.py).
    """
    tokenizer = read_tokenizer(source, revision, key=key)
    if not tokenizer.chat_template:
        raise TokenizerError(
            f"{source}: the tokenizer has no chat template; use an instruction-tuned model's, or add "
            "chat_template.jinja"
        )
    template = tokenizer.chat_template
    texts = template if isinstance(template, dict) else {"default": template}
    if not all(isinstance(text, str) for text in (texts.get("default"), *texts.values())):
        raise TokenizerError(
            f"{source}: chat_template in tokenizer_config.json is no text, or holds several ({', '.join(texts)}) and "
            "none called default: save the one that is meant as chat_template.jinja"
        )
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{source}: spans need a fast tokenizer (with offsets); save it again with its tokenizer.json"
        )
    if problem := explain_no_stop(tokenizer):
        raise TokenizerError(f"{source}: {problem}")
    return tokenizer


def name_tokenizer(tokenizer: Tokenizer, teacher: Teacher | None, student: Student) -> tuple[str, str, str | None]:
    """Return the key that names the run's tokenizer, its folder or hub id, and its revision.

    Raises:
        TokenizerError: nothing names one.
    """
    if tokenizer.path:
        revision = teacher.revision if teacher and tokenizer.path == teacher.path else None
        return "tokenizer.path", tokenizer.path, revision
    if teacher is not None:
        return "teacher.path", teacher.path, teacher.revision
    if student.path is None:
        raise TokenizerError("no tokenizer: set tokenizer.path, or give a teacher, whose tokenizer is then used")
    return "student.path", student.path, None


def check_run_tokenizer(
    loaded: Any, sources: Iterable[Source], tokenizer: Tokenizer, teacher: Teacher | None, student: Student
) -> None:
    """Compare the run's tokenizer with its tokenizer.json on the first records of each of `sources`.

    Raises:
        TokenizerError: a record's text gets other ids; the message has the first difference.
    """
    _, source, revision = name_tokenizer(tokenizer, teacher, student)
    check_raw_on_records(loaded, sources, source, revision)


def load_tokenizer(tokenizer: Tokenizer, teacher: Teacher | None, student: Student) -> Any:
    """Load the run's tokenizer: tokenizer.path, else the teacher's, else that of the student's checkpoint.

    Raises:
        TokenizerError: none found, no chat template, no fast tokenizer; the teacher's, or the one saved beside the
            checkpoint the student starts from, gives other ids; the teacher's vocabulary is narrower than the
            tokenizer; more of each distribution is asked for than there are tokens.
        StudentError: the teacher's configuration cannot be read.
    """
    key, source, revision = name_tokenizer(tokenizer, teacher, student)
    ours = read_rendering_tokenizer(source, revision, key=key)
    if teacher is not None:
        _check_teacher(teacher, source, ours)
    if student.init == "checkpoint" and student.path is not None and student.path != source:
        saved = read_tokenizer_if_any(student.path)
        difference = None if saved is None else first_difference(saved, ours, "the student's checkpoint")
        if difference:
            raise TokenizerError(
                f"the tokenizer of the student's checkpoint ({student.path}) is not the run's ({source}): "
                f"{difference}. Its embeddings would stand for other tokens: take a checkpoint of the same family, or "
                "student.init: scratch"
            )
    if tokenizer.template_variables:
        set_variables(ours, tokenizer.template_variables)
    return ours


def _check_teacher(teacher: Teacher, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if source != teacher.path:
        difference = first_difference(read_tokenizer(teacher.path, teacher.revision), tokenizer)
        if difference:
            raise TokenizerError(
                f"the teacher's tokenizer ({teacher.path}) is not the run's ({source}): {difference}. Distillation "
                "compares probabilities token by token, so both must be the same: leave tokenizer.path out"
            )
    _check_width(teacher, len(tokenizer))
    _check_kept(teacher, len(tokenizer))


def _check_width(teacher: Teacher, num_tokens: int) -> None:
    width = read_model_config(teacher.path, teacher.revision, key="teacher.path").get_text_config().vocab_size
    if width < num_tokens:
        raise TokenizerError(
            f"teacher.path: the teacher's vocabulary is {width} wide and the tokenizer has {num_tokens} tokens, so it "
            "has no probability for the last ones: resize the teacher's embeddings, or take away the tokens that were "
            "added"
        )


def _check_kept(teacher: Teacher, num_tokens: int) -> None:
    kept = [
        ("teacher.top_k", teacher.top_k, "of all of them is teacher.targets: dense"),
        ("teacher.num_draws", teacher.num_draws, "more is known, for less, from teacher.targets: dense"),
        ("teacher.cache.top_k", teacher.cache and teacher.cache.top_k, "the usual is 32 to 64"),
    ]
    for key, number, remark in kept:
        if number is not None and number > num_tokens:
            raise TokenizerError(
                f"{key}: {number} a row, and the tokenizer has {num_tokens} tokens: lower it ({remark})"
            )


def first_difference(
    first: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, owner: str = "the teacher"
) -> str | None:
    """Find the first difference in the ids that two tokenizers give to the same text; chat templates may differ.

    Args:
        owner: of `first`, for the message.

    Returns:
        The difference in words, or None.
    """
    ours, theirs = first.get_vocab(), other.get_vocab()
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index:
            return f"token {token!r} is {index} for {owner} and {theirs.get(token, 'missing')} here"
    if len(theirs) != len(ours):
        extra = min(theirs.keys() - ours.keys(), key=lambda token: theirs[token])
        return f"token {extra!r} ({theirs[extra]}) is unknown to {owner}"
    for part in ("normalizer", "pre_tokenizer", "model"):
        one, two = (getattr(_backend(tokenizer), part) for tokenizer in (first, other))
        if (one is None) != (two is None) or one is not None and one.__getstate__() != two.__getstate__():
            return f"the same vocabulary, but another {part.replace('_', '-')}"
    return None


def _backend(tokenizer: Any) -> Any:
    return tokenizer.backend_tokenizer
