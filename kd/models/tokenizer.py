"""One tokenizer for teacher and student, and the proof that it is one."""

from __future__ import annotations

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from kd.config.schema import RunConfig, Teacher
from kd.errors import SpanwiseError


class TokenizerError(SpanwiseError, ValueError):
    """The run's tokenizer cannot be used, or the teacher was trained with another one."""


def load_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """The run's tokenizer: tokenizer.path, else the teacher's, else the one of the checkpoint the student starts from.

    Raises:
        TokenizerError: none found, no chat template, no fast tokenizer; the teacher's, or the one saved beside the
            checkpoint the student starts from, gives other ids; the teacher's vocabulary is narrower than the
            tokenizer; more of each distribution is asked for than there are tokens.
    """
    source = config.tokenizer.path or (config.teacher.path if config.teacher else config.student.path)
    if source is None:
        raise TokenizerError("no tokenizer: set tokenizer.path, or give a teacher, whose tokenizer is then used")
    tokenizer = _load(source, config.teacher.revision if config.teacher and source == config.teacher.path else None)
    if not tokenizer.chat_template:
        raise TokenizerError(
            f"{source}: the tokenizer has no chat template; use an instruction-tuned model's, or add "
            "chat_template.jinja"
        )
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{source}: spans need a fast tokenizer (with offsets); save it again with its tokenizer.json"
        )
    teacher, student = config.teacher, config.student
    if teacher is not None:
        if source != teacher.path:
            difference = first_difference(_load(teacher.path, teacher.revision), tokenizer)
            if difference:
                raise TokenizerError(
                    f"the teacher's tokenizer ({teacher.path}) is not the run's ({source}): {difference}. "
                    "Distillation compares "
                    "probabilities token by token, so both must be the same: leave tokenizer.path out"
                )
        _check_width(teacher.path, teacher.revision, len(tokenizer))
        _check_kept(teacher, len(tokenizer))
    if student.init == "checkpoint" and student.path != source and (saved := _load_if_any(student.path)) is not None:
        difference = first_difference(saved, tokenizer, "the student's checkpoint")
        if difference:
            raise TokenizerError(
                f"the tokenizer of the student's checkpoint ({student.path}) is not the run's ({source}): "
                f"{difference}. Its "
                "embeddings would stand for other tokens: take a checkpoint of the same family, or "
                "student.init: scratch"
            )
    return tokenizer


def _check_width(path: str, revision: str | None, num_tokens: int) -> None:
    try:
        width = AutoConfig.from_pretrained(path, revision=revision).get_text_config().vocab_size
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"teacher.path: {path!r} is not a model that can be read here: {str(error).splitlines()[0]}"
        ) from error
    if width < num_tokens:
        raise TokenizerError(
            f"teacher.path: the teacher's vocabulary is {width} wide and the tokenizer has {num_tokens} tokens, so "
            "it has no "
            "probability for the last ones: resize the teacher's embeddings, or take away the tokens that were added"
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
    """The first difference in what ids two tokenizers give to the same text, or None; chat templates may differ.

    owner: whose the first one is, for the message.
    """
    ours, theirs = first.get_vocab(), other.get_vocab()
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index:
            return f"token {token!r} is {index} for {owner} and {theirs.get(token, 'missing')} here"
    if len(theirs) != len(ours):
        extra = min(theirs.keys() - ours.keys(), key=theirs.get)
        return f"token {extra!r} ({theirs[extra]}) is unknown to {owner}"
    for part in ("normalizer", "pre_tokenizer", "model"):
        one, two = (getattr(t.backend_tokenizer, part) for t in (first, other))
        if (one is None) != (two is None) or one is not None and one.__getstate__() != two.__getstate__():
            return f"the same vocabulary, but another {part.replace('_', '-')}"
    return None


def _load_if_any(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved beside a checkpoint; None where there is none, as with weights alone."""
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        return None


def _load(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{source}: no tokenizer can be loaded from it ({str(error).splitlines()[0]})") from error
