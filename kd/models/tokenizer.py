"""Tokenizer of a run, opened here alone, and the proof that teacher and student share it."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd.config.schema import Student, Teacher, Tokenizer
from kd.errors import SpanwiseError
from kd.models.load import first_line, read_model_config
from kd.rendering.stops import explain_no_stop


class TokenizerError(SpanwiseError, ValueError):
    """Tokenizer that cannot be used, or that is not the one the teacher was trained with."""


def read_tokenizer(source: str | os.PathLike, revision: str | None = None) -> Any:
    """Read the tokenizer of a folder or hub id as it is.

    Raises:
        TokenizerError: none that can be read is there.
    """
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # of any library's own types, which have no common base
        raise TokenizerError(
            f"{source}: no tokenizer can be loaded from it ({first_line(error)}); give a folder with tokenizer.json, "
            "or a hub id that this machine can reach"
        ) from error


def read_tokenizer_if_any(source: str | os.PathLike, revision: str | None = None) -> Any | None:
    """Read the tokenizer saved beside a checkpoint; None where there is none, as with weights alone."""
    try:
        return read_tokenizer(source, revision)
    except TokenizerError:
        return None


def read_rendering_tokenizer(source: str | os.PathLike, revision: str | None = None) -> Any:
    """Read a tokenizer that can render records and place spans: it has a chat template, offsets, and a token that
    ends a turn.

    Raises:
        TokenizerError: none is there, it has no chat template, it is not a fast one, or a turn ends in no token
            (kd/rendering/stops.py).
    """
    tokenizer = read_tokenizer(source, revision)
    if not tokenizer.chat_template:
        raise TokenizerError(
            f"{source}: the tokenizer has no chat template; use an instruction-tuned model's, or add "
            "chat_template.jinja"
        )
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{source}: spans need a fast tokenizer (with offsets); save it again with its tokenizer.json"
        )
    if problem := explain_no_stop(tokenizer):
        raise TokenizerError(f"{source}: {problem}")
    return tokenizer


def load_tokenizer(tokenizer: Tokenizer, teacher: Teacher | None, student: Student) -> Any:
    """Load the run's tokenizer: tokenizer.path, else the teacher's, else that of the student's checkpoint.

    Raises:
        TokenizerError: none found, no chat template, no fast tokenizer; the teacher's, or the one saved beside the
            checkpoint the student starts from, gives other ids; the teacher's vocabulary is narrower than the
            tokenizer; more of each distribution is asked for than there are tokens.
        StudentError: the teacher's configuration cannot be read.
    """
    source = tokenizer.path or (teacher.path if teacher else student.path)
    if source is None:
        raise TokenizerError("no tokenizer: set tokenizer.path, or give a teacher, whose tokenizer is then used")
    ours = read_rendering_tokenizer(source, teacher.revision if teacher and source == teacher.path else None)
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
