"""How the result is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kd.config.fields import MOST_STEPS, Section


class Evaluation(Section):
    num_records: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 200
    """Records of each held-out split, the first ones; from 1 to 1,000,000,000, and of the demo corpus, which is made on
    the spot, to 100,000. A file with fewer gives all that it has."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Prompts generated together, from 1 to 65,536: each has a key/value cache of its own."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Longest answer in tokens, from 1 to 1,048,576: each is a forward of its own."""
    baselines: bool = True
    """Also evaluate the teacher and an untrained student. With a cache the teacher is left out where its weights are
    not on this machine.
    """
