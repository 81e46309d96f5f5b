"""Every key of the YAML of a data set that is generated (launch/generate.py), as schema.py has those of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kd.config.fields import Place, Section, Text
from kd.config.sections.generation import Answers, Broker, Caws, Prompts, Sampling, Spending, Splits
from kd.config.sections.teacher import Endpoint


class GenerationConfig(Section):
    """One data set from a teacher's endpoint."""

    output_dir: Place = Field(examples=["runs/generated"])
    """Folder of the records, the data card and the journal; the same command goes on with what is in it."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of composed prompts, simulated results and the sampling, from 0 to 2,147,483,647."""
    extensions: tuple[Text, ...] = ()
    """Your own modules, imported before the rest of the file is checked."""
    endpoint: Endpoint = Field(examples=[{"url": "http://127.0.0.1:8000/v1", "model": "served-model-name"}])
    """The teacher's server."""
    sampling: Sampling = Sampling()
    """How answers are drawn."""
    spending: Spending = Spending()
    """Prices and limit."""
    prompts: Prompts = Field(examples=[{"tools": "tools/", "num": 1000}])
    """What is asked."""
    broker: Broker = Broker()
    """Where the results of calls come from."""
    answers: Answers = Answers()
    """Which answers are kept, and how they are cleaned."""
    caws: Caws | None = None
    """Working specs that the teacher sees, and the student after it."""
    splits: Splits = Splits()
    """What is held out."""
