"""The teacher: its weights, its cache of targets, its endpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kd.config.fields import Address, Choice, Dtype, Fraction, Place, Seconds, Section, Text
from kd.config.registries import TEACHER_SOURCES

TeacherSource = Annotated[str, Choice(TEACHER_SOURCES.names)]


class TeacherCache(Section):
    """The teacher's targets on disk: launch/capture.py writes them once, training then reads them without a teacher."""

    path: Place = Field(examples=["runs/cache/mine"])
    """Folder of the cache; capture makes it."""
    kind: Literal["sampled", "topk"] = "sampled"
    """sampled: draws from the teacher's distribution as counts, unbiased and small, for divergence: forward_kl; topk:
    its best tokens and the mass of all others, for every divergence."""
    num_draws: Annotated[int, Field(ge=1, le=255)] | None = None
    """Draws a row and temperature (sampled), from 1 to 255; 50 by default: about 12 distinct tokens at 2 nats."""
    top_k: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Tokens kept a row (topk), from 1 to 1,048,576 and no more than the tokenizer has; 32 by default."""
    precision: Literal["16bit", "fp32"] | None = None
    """Of log-probabilities (topk); 16bit by default."""
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...], Field(min_length=1)] = (1.0,)
    """Temperatures to capture at, above 0, at most 100; each costs its own draws (sampled) or one number a row
    (topk).
    """
    t_tolerance: Annotated[float, Field(ge=0, le=100)] = 0.05
    """How far a scheduled temperature may be from the nearest captured one, which is then used; from 0 to 100, the
    highest temperature."""


class Endpoint(Section):
    """An OpenAI-compatible server of the teacher, vLLM or one with its prompt_logprobs; asked once a record, at
    capture.
    """

    url: Address = Field(examples=["http://127.0.0.1:8000/v1"], repr=False)
    """Base address up to and with /v1, http or https; no user name, password or query in it: a key goes into
    api_key_env.
    """
    model: Text = Field(examples=["served-model-name"])
    """Name the server gives the teacher, as its /models lists it; it must use the run's tokenizer."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = Field(default=None, repr=False)
    """Name of the environment variable that holds the key, in capitals, digits and underscores; never the key itself.
    By default no key is sent."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests of one rank under way at once, from 1 to 256."""
    timeout_seconds: Seconds = 120.0
    """Longest time of one request, from connecting to the last byte of the answer; above 0, at most 1e7 (116 days)."""
    retries: Annotated[int, Field(ge=0, le=100)] = 8
    """Further attempts for a record whose request failed in a way that may pass, from 0 to 100."""
    record_deadline_seconds: Seconds = 900.0
    """Longest time of one record with all its attempts and the waits between them; above 0, at most 1e7 (116 days)."""
    deadline_seconds: Seconds | None = None
    """Longest time of one start of the capture, above 0, at most 1e7 (116 days); it then stops with all that was
    written kept, and goes on when started again."""
    max_missing: Fraction = 0.01
    """Part of the records, from 0 to 1, that may end without targets and are listed as missing; with more, capture
    stops.
    """


class Teacher(Section):
    path: Place = Field(examples=["path/or/hub-id"])
    """Folder with a saved causal LM, or its hub id."""
    revision: Text | None = None
    """Commit or tag of a hub id; pin it, so that the run can be repeated."""
    dtype: Dtype = "bf16"
    """Precision its weights are held in; auto keeps the saved one, but takes fp32 for bf16 on a CPU that has no bf16
    instructions.
    """
    placement: Literal["sharded", "replicated", "offloaded"] = "sharded"
    """sharded: split over all GPUs by ZeRO-3; replicated: one whole copy on each GPU (faster, and only for small
    teachers);
    offloaded: sharded, with the weights in host memory (slower, for a teacher that the GPUs cannot hold)."""
    deepspeed: Place | None = None
    """DeepSpeed JSON of a teacher that is not replicated; by default the settings of training.deepspeed without an
    optimizer. Its stage is 3, whatever the JSON says."""
    targets: Literal["dense", "topk", "sampled"] | None = None
    """What a teacher that runs beside the student gives of each token's distribution, without a cache. dense (the
    default): all of it; topk: its best top_k tokens and the mass of all others; sampled: num_draws draws, for
    divergence: forward_kl."""
    top_k: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Tokens of targets: topk, from 1 to 1,048,576 and no more than the tokenizer has; 64 by default."""
    num_draws: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Draws of targets: sampled, from 1 to 1,048,576 and no more than the tokenizer has tokens; 50 by default."""
    cache: TeacherCache | None = None
    """Read the targets from disk instead of running the teacher; launch/capture.py writes them."""
    endpoint: Endpoint | None = None
    """Ask a server for the targets at capture, in place of running the model at path, which is then read for its
    tokenizer and configuration alone. With cache, kind: topk and temperatures: [1.0]."""
    source: TeacherSource | None = None
    """Source of the targets; by default cache where teacher.cache is given, and live (the model runs beside the
    student) where it is not. Others come from run.extensions."""
