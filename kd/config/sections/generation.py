"""A data set from a teacher's endpoint (launch/generate.py): its YAML, as kd/config/schema.py has that of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kd.config.fields import Choice, Fraction, NotNegative, Place, Seconds, Section, Text, Weight
from kd.config.registries import REWARDS
from kd.config.sections.teacher import Endpoint

Kind = Literal["single", "several", "near_miss", "no_tool", "missing", "recovery"]
Language = Literal["en", "de", "fr", "es"]
Reward = Annotated[str, Choice(REWARDS.names)]


class Sampling(Section):
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """Temperature of the draws, from 0 to 2; 0 asks for the likeliest tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens of this mass, above 0, at most 1."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 1024
    """Longest answer of one turn in tokens, from 1 to 1,048,576; a conversation with a longer one is dropped."""
    num_samples: Annotated[int, Field(ge=1, le=64)] = 1
    """Conversations of each prompt, from 1 to 64, of which the best by its quality is kept."""
    max_rounds: Annotated[int, Field(ge=1, le=100)] = 8
    """Most turns with calls after one user message, from 1 to 100; a conversation that is still calling is dropped."""


class Spending(Section):
    """Prices are of a million tokens, in the currency of the limit."""

    prompt_price: NotNegative = 0.0
    """Price of a million tokens that are sent; from 0 to 1e9."""
    completion_price: NotNegative = 0.0
    """Price of a million tokens that are generated; from 0 to 1e9."""
    limit: NotNegative | None = None
    """Most that may be spent over all starts in the same folder, from 0 to 1e9; none by default. A request is sent only
    where its bound fits: the bytes of its messages and tools plus overhead_tokens, and max_new_tokens."""
    overhead_tokens: Annotated[int, Field(ge=0, le=1_048_576)] = 512
    """Tokens that the server's chat template may add to a request's own bytes, from 0 to 1,048,576."""


class Mix(Section):
    """Weights of the kinds of composed prompts; 0 leaves a kind out."""

    single: Weight = 4.0
    """One tool, with all that it needs."""
    several: Weight = 2.0
    """Two tools in one request."""
    near_miss: Weight = 1.0
    """A request of a tool that is not on offer, while tools like it are: nothing may be called."""
    no_tool: Weight = 1.0
    """Small talk and general knowledge: nothing may be called."""
    missing: Weight = 1.0
    """A tool without a value that it needs: the teacher has to ask for it."""
    recovery: Weight = 1.0
    """One tool, whose first call fails."""


class Prompts(Section):
    """From files, or composed of a folder of tools."""

    files: tuple[Text, ...] | None = Field(default=None, examples=[("prompts.jsonl",)])
    """Files or globs of records, or of {"prompt": text}: each conversation up to its first user message is the prompt,
    its further user messages follow as turns. Records without tools are offered those of `tools`."""
    tools: Place | None = None
    """File or folder of tools (JSON Schemas); without files, prompts are composed of them."""
    num: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Prompts that are asked, each another: required where they are composed; of files all by default."""
    mix: Mix = Mix()
    """Kinds of composed prompts."""
    languages: Annotated[tuple[Language, ...], Field(min_length=1)] = ("en",)
    """Languages of composed prompts, in turn: en, de, fr, es."""
    num_distractors: Annotated[int, Field(ge=0, le=128)] = 3
    """Further tools on offer in a composed prompt, from 0 to 128."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least likeness (Jaccard, of five letters each) at which a prompt counts as a duplicate of an earlier one and is
    left out, above 0, at most 1; by default equal ones alone. Needs pip install 'spanwise[generate]'."""
    system: Text | None = None
    """System message before every prompt that has none."""


class Broker(Section):
    """The first that has an answer gives it: fixtures, the given conversation's own results, function, endpoint; else
    results are made from the tool's `returns`, a JSON Schema, or say that it is done."""

    fixtures: Place | None = None
    """JSON lines of {"name", "arguments", "result"}; a call that equals one gets its result. Without arguments it is
    of any call of that name."""
    function: Text | None = None
    """module:function of yours, called with (call, record, state) as launch/evaluate.py's --simulator is."""
    timeout_seconds: Seconds = 60.0
    """Longest time of one call of function, above 0, at most 1e7 (116 days); past it the program stops."""
    endpoint: Endpoint | None = None
    """Second server that plays the tools; it spends from the same limit."""


class Answers(Section):
    reasoning: Literal["strip", "refuse"] = "strip"
    """Private reasoning (fields such as reasoning_content, and <think> blocks) is never stored. strip: it is cut out,
    and counted; refuse: the conversation is dropped, and counted."""
    repair: bool = False
    """Take calls whose JSON could be mended; by default a conversation with a broken call is dropped."""
    rewards: dict[Reward, Weight] = Field(default_factory=dict)
    """Rewards that the quality has as parts beside its own, with their weights; each of its own parts has weight 1."""
    min_quality: Fraction = 0.0
    """Conversations of less quality are dropped, from 0 to 1."""
    scrub: bool = False
    """Replace secrets, e-mail addresses and telephone numbers in texts and arguments by a placeholder, and count them.
    Needs pip install 'spanwise[generate]'."""


class Caws(Section):
    project: Place = Field(examples=["."])
    """Folder of a project with .caws/, whose active specs are given to the prompts in turn."""
    specs: tuple[Text, ...] = ()
    """Ids of the specs, in place of all active ones."""
    form: Literal["full", "compact"] = "compact"
    """Form of the context in the system message."""
    date: Text = Field(examples=["2026-11-29"])
    """Day on which waivers are looked at, as 2026-11-29."""


class Splits(Section):
    """Further files of records beside train.jsonl; what is held out is in no record of train.jsonl."""

    tools: Fraction = 0.0
    """Part of the tools that are held out, from 0 to 1: a prompt that offers one is in unseen_tools.jsonl."""
    templates: Fraction = 0.0
    """Part of the templates of composed prompts that are held out, from 0 to 1: in unseen_templates.jsonl."""


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
