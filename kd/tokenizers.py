"""One tokenizer for teacher and student, and the proof that it is one."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd.config_schema import RunConfig


class TokenizerError(ValueError):
    """The run's tokenizer cannot be used, or the teacher was trained with another one."""


def load_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """The run's tokenizer: tokenizer.path, else the teacher's, else the one of the checkpoint the student starts from.

    Raises:
        TokenizerError: none found, no chat template, no fast tokenizer, or the teacher's differs from tokenizer.path.
    """
    source = config.tokenizer.path or (config.teacher.path if config.teacher else config.student.path)
    if source is None:
        raise TokenizerError("no tokenizer: set tokenizer.path, or give a teacher, whose tokenizer is then used")
    tokenizer = _load(source, config.teacher.revision if config.teacher and source == config.teacher.path else None)
    if not tokenizer.chat_template:
        raise TokenizerError(f"{source}: the tokenizer has no chat template; use an instruction-tuned model's, or add chat_template.jinja")
    if not tokenizer.is_fast:
        raise TokenizerError(f"{source}: spans need a fast tokenizer (with offsets); save it again with its tokenizer.json")
    if config.teacher is not None and config.tokenizer.path is not None and config.tokenizer.path != config.teacher.path:
        difference = first_difference(_load(config.teacher.path, config.teacher.revision), tokenizer)
        if difference:
            raise TokenizerError(f"the teacher's tokenizer ({config.teacher.path}) is not the run's ({source}): {difference}. Distillation compares "
                                 "probabilities token by token, so both must be the same: leave tokenizer.path out")
    return tokenizer


def first_difference(teacher: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """The first difference in what ids two tokenizers give to the same text, or None; chat templates may differ."""
    ours, theirs = teacher.get_vocab(), other.get_vocab()
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index:
            return f"token {token!r} is {index} for the teacher and {theirs.get(token, 'missing')} here"
    if len(theirs) != len(ours):
        extra = min(theirs.keys() - ours.keys(), key=theirs.get)
        return f"token {extra!r} ({theirs[extra]}) is unknown to the teacher"
    for part in ("normalizer", "pre_tokenizer", "model"):
        one, two = (getattr(t.backend_tokenizer, part) for t in (teacher, other))
        if (one is None) != (two is None) or one is not None and one.__getstate__() != two.__getstate__():
            return f"the same vocabulary, but another {part.replace('_', '-')}"
    return None


def _load(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{source}: no tokenizer can be loaded from it ({str(error).splitlines()[0]})") from error
