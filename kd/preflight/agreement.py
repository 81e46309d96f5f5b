"""Agreement of the models that a configuration names: their tokenizers, chat templates and vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from kd.config.schema import Student, Teacher
from kd.models.load import read_model_config
from kd.models.raw_tokenizer import check_raw, read_raw
from kd.models.tokenizer import first_difference, read_tokenizer_if_any
from kd.rendering.chat_template import without_variables


class OwnTokenizer(NamedTuple):
    """Tokenizer that a model of the run brings, beside the run's."""

    owner: str  # "the teacher" or "the student"
    path: str  # folder or hub id of the model
    tokenizer: Any | None  # None where the model brings none, and so learns the run's


def read_other_tokenizers(path: str | None, teacher: Teacher | None, student: Student) -> Iterator[OwnTokenizer]:
    """Read the tokenizers of the teacher and of the student's checkpoint, where the run's is not theirs.

    path: tokenizer.path.
    """
    used = path or (teacher.path if teacher else student.path)
    if teacher is not None and teacher.path != used:
        yield OwnTokenizer("the teacher", teacher.path, read_tokenizer_if_any(teacher.path, teacher.revision))
    if student.init == "checkpoint" and student.path is not None and student.path != used:
        yield OwnTokenizer("the student", student.path, read_tokenizer_if_any(student.path))


def check_tokenizers(others: list[OwnTokenizer], tokenizer) -> str:
    """Compare the models' tokenizers with the run's; returns what was compared.

    Raises:
        ValueError: one gives other ids.
    """
    compared = []
    for owner, path, other in others:
        difference = first_difference(other, tokenizer, owner) if other is not None else None
        if difference:
            raise ValueError(f"{owner}'s tokenizer ({path}) is not the run's: {difference}")
        compared.append(f"{owner}'s is the run's" if other is not None else f"{owner} brings none")
    return "; ".join(compared) or "there is one, and teacher and student share it"


def check_tokenizer_file(tokenizer, texts: Iterable[str], source: str, revision: str | None) -> str:
    """Compare the run's tokenizer with its tokenizer.json, read raw, on rendered texts.

    Raises:
        TokenizerError: a text gets other ids (kd/models/raw_tokenizer.py).
    """
    check_raw(tokenizer, texts, read_raw(source, revision))
    return "loaded, it gives the ids of its tokenizer.json"


def check_templates(others: list[OwnTokenizer], tokenizer) -> str:
    """Compare the models' chat templates with the run's.

    Raises:
        ValueError: one is another template.
    """
    for owner, path, other in others:
        theirs = without_variables(other.chat_template) if other is not None else None
        if theirs and theirs != without_variables(tokenizer.chat_template):
            raise ValueError(
                f"{owner} ({path}) was trained with another chat template than the run renders with: leave "
                "tokenizer.path out, or copy its chat_template.jinja"
            )
    return "one template"


def check_vocabulary(student_config: PreTrainedConfig, teacher: Teacher | None, num_tokens: int) -> str:
    """Check that both models' vocabularies hold the tokenizer's `num_tokens` tokens.

    Raises:
        ValueError: the teacher's is narrower.
        StudentError: the teacher's configuration cannot be read.
    """
    widths = {"student": student_config.get_text_config().vocab_size}
    if teacher is not None:
        teacher_config = read_model_config(teacher.path, teacher.revision, key="teacher.path")
        widths["teacher"] = teacher_config.get_text_config().vocab_size
    for name, width in widths.items():
        if width < num_tokens:
            raise ValueError(
                f"the tokenizer has {num_tokens} tokens and the {name}'s vocabulary is {width} wide: it is another "
                "model's tokenizer"
            )
    return f"{num_tokens} tokens; " + ", ".join(f"{name} {width} wide" for name, width in widths.items())
