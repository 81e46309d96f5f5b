"""Every key of a run's YAML, declared once: its type, range, unit, default and what it does; a file a section.

The text under a key, in sections/, is its documentation, and the remedy an error prints when the value is out of range.
Contradictions between keys are in conflicts/; load.py reads the file; a key's old name is in renamed.py.
"""

from __future__ import annotations

from pydantic import Field

from kd.config.fields import Section
from kd.config.sections.data import Data, DemoCorpus, Stage, TrainFiles, Until
from kd.config.sections.evaluation import Evaluation
from kd.config.sections.loss import EntropyWeighting, Loss, TeacherShare, Temperature, Weights
from kd.config.sections.rollouts import Guard, Guards, Rollouts, Server
from kd.config.sections.run import Run
from kd.config.sections.student import Lora, Student, Tokenizer
from kd.config.sections.teacher import Endpoint, Teacher, TeacherCache
from kd.config.sections.training import Optimizer, Training

__all__ = [
    "Data",
    "DemoCorpus",
    "Endpoint",
    "EntropyWeighting",
    "Evaluation",
    "Guard",
    "Guards",
    "Lora",
    "Loss",
    "Optimizer",
    "Rollouts",
    "Run",
    "RunConfig",
    "Server",
    "Stage",
    "Student",
    "Teacher",
    "TeacherCache",
    "TeacherShare",
    "Temperature",
    "Tokenizer",
    "TrainFiles",
    "Training",
    "Until",
    "Weights",
]


class RunConfig(Section):
    """One run. `teacher` is optional: without it the student trains on the truth alone."""

    run: Run = Field(examples=[{"name": "my-run"}])
    """Name, place and seed."""
    teacher: Teacher | None = None
    """The model to learn from."""
    tokenizer: Tokenizer = Tokenizer()
    """The tokenizer of both."""
    student: Student = Field(examples=[{"init": "checkpoint", "path": "student"}])
    """The model that learns."""
    data: Data = Field(examples=[{"stages": ({"name": "main", "train": ("train.jsonl",), "max_length": 2048},)}])
    """What it learns on."""
    loss: Loss = Loss()
    """What is minimised."""
    optimizer: Optimizer = Optimizer()
    """How it is minimised."""
    training: Training = Field(examples=[{"steps": 2000}])
    """How long, in what batches."""
    evaluation: Evaluation = Evaluation()
    """How the result is measured."""
