"""The records: files, stages of the curriculum, packing, held-out splits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kd.config.fields import Choice, Fraction, NotNegative, Place, Positive, Section, Steps, Text
from kd.config.registries import FORMATS
from kd.config.sections.hub_address import KEYS, Records, make_address
from kd.config.sections.rollouts import Rollouts

DEMO_KINDS = ("echo", "single", "parallel", "multi", "none", "chat", "near", "missing", "answered", "fits")
DEMO_HELD_OUT, DEMO_VALIDATION = ("unseen_values", "unseen_tools"), ("validation",)
DEMO_SPLITS = ("train", *DEMO_HELD_OUT, *DEMO_VALIDATION)

RewriteCalls = bool | Literal["never"]
Format = Annotated[str, Choice(FORMATS.names)]
DemoKind = Annotated[str, Choice(lambda: (*DEMO_KINDS, *(f"{kind}_short" for kind in DEMO_KINDS)))]


class DemoCorpus(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    """Seeds the made-up corpus, from 0 to 2^63 - 1; another seed is another corpus."""
    num_records: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Training records to make, from 1 to 10,000,000, whose kinds alone take 80 MB."""


class Until(Section):
    steps: Steps | None = None
    """Leave the stage after this many optimizer steps in it, from 1 to 1,000,000,000, the most of a run. Give either
    this or loss_below."""
    loss_below: Positive | None = None
    """Leave the stage when its training loss (running mean) falls below this; above 0, at most 1e9."""
    max_steps: Steps | None = None
    """With loss_below: leave after this many steps, from 1 to 1,000,000,000, even if the loss is still above; required,
    so that a run always ends."""


class TrainFiles(Section):
    """Files of records, or a data set of the hub. A pattern alone is short for {files: pattern}."""

    files: Records = Field(examples=["train/*.jsonl"])
    """A file, or a glob, of records: JSON lines, JSON, Parquet or Arrow, compressed or not. In its place
    {dataset: org/name, split: train, config: ..., revision: ...} names a data set of the hub, which is copied once to
    HF_HOME/spanwise (needs spanwise[data]); pin its revision. As one text: hub:org/name?split=...&revision=..."""
    format: Format | None = None
    """Format of the records; by default found from their fields."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each record is read in an epoch: 2 twice, 0.5 every other one, drawn by run.seed; above 0, at most 1000
    (an index of positions is kept in memory)."""

    @model_validator(mode="before")
    @classmethod
    def _from_pattern(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"files": value}
        if not isinstance(value, dict) or "dataset" not in value or "files" in value:
            return value
        parts = {key: value[key] for key in value if key in ("dataset", *KEYS)}
        rest = {key: value[key] for key in value if key not in parts}
        return {"files": make_address(parts), **rest}


class Stage(Section):
    name: Text = Field(examples=["main"])
    """Name in logs and in metrics."""
    train: Annotated[tuple[TrainFiles, ...], Field(min_length=1)] | None = None
    """Files of records: a path or a glob each, or {files: ..., format: ..., weight: ...}. Give either this or mix."""
    mix: Annotated[dict[DemoKind, NotNegative], Field(min_length=1)] | None = None
    """Kinds of demo records and their weights, from 0 to 1e9 (any scale: they are divided by their sum); needs
    data.demo. Kinds: echo, single, parallel, multi, none, chat, near, missing, answered, fits, each also with _short
    after it."""
    max_length: Annotated[int, Field(ge=1, le=16_777_216)] = Field(examples=[2048])
    """Longest record in tokens, from 1 to 16,777,216, which no model reaches; with packing also the length of a row."""
    until: Until | None = None
    """When to go to the next stage; the last stage lasts to the end of training and has none."""
    rollouts: Rollouts | None = None
    """Train on the student's own answers to the stage's prompts too (docs/process.md)."""


class Data(Section):
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = Field(
        examples=[({"name": "main", "train": ("train.jsonl",), "max_length": 2048},)]
    )
    """The curriculum: stages run one after another."""
    packing: Literal["none", "length"] = "none"
    """none: a record a row, padded to the longest of its micro-batch; length: rows of max_length tokens filled with
    several records, which do not see one another. Every record is measured before a stage begins."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What happens to a record longer than max_length: drop leaves it out; truncate keeps it to the end of the last
    assistant turn that fits whole, and leaves it out where none does. Both are counted."""
    rewrite_calls: RewriteCalls = False
    """Make tool_calls of calls that an assistant writes as text (<functioncall>, Action:, [f(x=1)], JSON), so that the
    chat template writes them its own way; by default such a text is trained as it is, and the calls read in it are
    spans, but Hermes' <tool_call>, <tool_response> and <tools> are always made structured. never: these too stay as
    they are written, for a chat template that writes neither tools nor calls. Of training and held-out files alike."""
    turns: Literal["auto", "whole", "each"] = "auto"
    """Sequences of a conversation of several assistant turns. auto: one, where the chat template writes each turn as it
    is seen and written at inference; else, where the template rewrites earlier turns (drops their thinking, ends them
    otherwise), one for each turn, with its history before it. each: always one for each turn. whole: always one, though
    earlier turns then stand in a context that the model never sees, and a conversation in which a turn cannot be
    located is refused."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes of each rank that prepare batches ahead of training, from 0 to 64; by default 2 where there is a GPU,
    and none on a CPU, whose cores all train."""
    max_bad_fraction: Fraction = 0.0
    """Part of all lines of all stages' files, and of each stage's records once they are rendered, that may be refused:
    from 0 (the first one stops the run) to 1."""
    quarantine: Place | None = None
    """File for what is refused, with the reason, and of a line its file and number; by default refused.jsonl in the
    run's folder.
    """
    demo: DemoCorpus | None = None
    """Make the demo corpus, for stages with a mix and for evaluation."""
    evaluation: dict[Text, Records] = {}
    """Held-out splits: name -> file of records, {dataset: org/name, split: test} as in stages.*.train, or `demo` for
    the demo corpus's split of that name. Nothing is chosen by them: they are read once training is over."""
    validation: dict[Text, Records] = {}
    """Splits to look at while training, and to choose by (training.keep_best): name -> file of records, a data set, or
    `validation: demo`. No record of them may be held out in data.evaluation."""
