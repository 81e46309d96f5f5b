"""How the result is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kd.config.fields import MOST_STEPS, Place, Section, Steps, Text


class Evaluation(Section):
    num_records: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 200
    """Records of each split, held-out or of validation, the first ones; from 1 to 1,000,000,000, and of the demo
    corpus, which is made on the spot, to 100,000. A file with fewer gives all that it has."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Prompts generated together, from 1 to 65,536: each has a key/value cache of its own."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Longest answer in tokens, from 1 to 1,048,576: each is a forward of its own."""
    every: Steps | None = None
    """Optimizer steps between two measurements of data.validation: loss of each term and accuracy of each span,
    teacher-forced, and not counted in training's seconds; from 1 to 1,000,000,000. By default a twentieth of
    training.steps."""
    generate_every: Steps | None = None
    """Optimizer steps between two measurements of the metrics on data.validation, by greedy generation; from 1 to
    1,000,000,000, by default none. Every rank then holds a whole copy of the student."""
    generate_num_records: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Records of each validation split that generate_every asks, from 1 to 100,000: all that a curve can need."""
    baselines: bool = True
    """Also evaluate the teacher and an untrained student. With a cache the teacher is left out where its weights are
    not on this machine.
    """
    conversations: bool = False
    """Also hold each held-out record that calls a tool as a whole conversation, in which the model's own calls get the
    record's results."""
    compare_with: dict[Text, Place] = {}
    """Further models to evaluate beside the student: name -> folder of a finished run, or of a model, with the same
    tokenizer and chat template. They answer the same prompts, and the report pairs them with the student.
    """
