"""The process stage: the student's own answers, and what is learned from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kd.config.fields import Address, Choice, Fraction, Place, Positive, Seconds, Section, Steps, Text, Weight
from kd.config.registries import REWARDS, ROLLOUT_ENGINES
from kernels import divergences

Action = Literal["warn", "skip", "stop"]
RewardName = Annotated[str, Choice(REWARDS.names, own=":")]
Engine = Annotated[str, Choice(ROLLOUT_ENGINES.names)]


class Guard(Section):
    """Limit of one metric of a step's answers, and what happens where it is passed."""

    limit: Annotated[float, Field(ge=0, le=1e9)] = Field(examples=[0.5])
    """Largest value that is still well (of entropy: the least), from 0 to 1e9."""
    action: Action = "warn"
    """warn: say so; skip: train this round's steps on records alone; stop: end the run with an error."""


class Guards(Section):
    """Limits of what goes wrong when a student learns from itself; each is watched in every round of answers."""

    unfinished: Guard | None = Guard(limit=0.5)
    """Part of the answers, from 0 to 1, that were cut at max_new_tokens: lengths blow up."""
    entropy: Guard | None = Guard(limit=0.001)
    """Mean surprise of the sampled tokens (-log p, nats), of which less than the limit means that all answers are
    one."""
    repeated: Guard | None = Guard(limit=0.5)
    """Part of the answers, from 0 to 1, that end in the same words three times or more."""
    no_signal: Guard | None = Guard(limit=1.0)
    """Part of the prompts, from 0 to 1, whose samples all have one reward, so that reward learns nothing from them."""
    hacked: Guard | None = Guard(limit=0.3)
    """Part of the answers, from 0 to 1, that are empty, or make one call twice that the record makes once."""
    impossible: Guard | None = Guard(limit=20.0)
    """Mean divergence from the teacher (nats a token) in the last step: above it the teacher is asked about text that
    it never saw. Watched where distill weighs."""


class Server(Section):
    """A vLLM server that samples in place of this process (engine: vllm)."""

    url: Address = Field(examples=["http://127.0.0.1:8000"], repr=False)
    """Base address of the server, without /v1."""
    model: Text = Field(examples=["student"])
    """Name that the server gives the model."""
    weights: Place = Field(examples=["/dev/shm/student"])
    """Folder that both sides see: the student is exported into it, and the server told to read it, once a round."""
    timeout_seconds: Seconds = 600.0
    """Longest time of one request, above 0, at most 1e7 (116 days)."""


class Rollouts(Section):
    """Prompts of the stage's records are answered by the student as it is, and the answers trained on. Give at least
    one of distill, repair and reward a weight."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Part of each optimizer step's sequences that are the student's answers, above 0, at most 1; the rest are the
    stage's records. Rounded to whole groups of `samples`."""
    samples: Annotated[int, Field(ge=1, le=1024)] = 4
    """Answers to each prompt, from 1 to 1024; reward compares them with one another and needs 2."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Temperature that answers are sampled at, above 0, at most 100; 1 where reward weighs."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Mass of the most likely tokens that answers are drawn from, above 0, at most 1; 1 where reward weighs."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Longest answer in tokens, from 1 to 1,048,576; prompts that leave no room for it in max_length are left out."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Answers sampled together on each rank, from 1 to 65,536: each has a key/value cache of its own."""
    sync_every: Steps = 1
    """Optimizer steps whose answers are sampled together, from the weights before the first of them; from 1 to
    1,000,000,000. More is faster, and the answers are older."""
    no_tool: Fraction | None = None
    """Part of the prompts, from 0 to 1, that offer tools of which none is due; by default as the records have them."""
    distill: Weight = 0.0
    """Weight of the divergence from the live teacher on the student's own tokens (and, times w_tool, w_args and
    w_integr, on those of its calls and carried values); from 0 to 1e6."""
    divergence: Annotated[str, Choice(divergences.names)] = "reverse_kl"
    """Divergence of distill; jsd needs beta."""
    beta: Fraction | None = None
    """For a divergence that takes it, and required by it, as loss.beta: from 0 to 1."""
    distill_temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Temperature of both softmaxes in distill, above 0, at most 100."""
    distill_no_tool: bool = False
    """Apply distill also where tools are offered and the record calls none: a teacher that over-calls teaches it."""
    repair: Weight = 0.0
    """Weight of cross-entropy on the least correction of a wrong call, from its first wrong token on, after the
    student's own words (and, times w_tool and w_args, on the correction's names and arguments); from 0 to 1e6."""
    reward: Weight = 0.0
    """Weight of the policy gradient: cross-entropy on each answer, signed by its reward less the mean of the prompt's
    other answers; from 0 to 1e6."""
    rewards: Annotated[dict[RewardName, Weight], Field(min_length=1)] = {"json_valid": 0.3, "tool_choice": 0.7}
    """Rewards and their weights, from 0 to 1e6 (divided by their sum): registered names, or module:function of your
    own. An answer that was cut gets 0."""
    normaliser: Literal["tokens", "answers"] = "tokens"
    """What reward is divided by: the step's sampled tokens, as all terms are by theirs; or its answers, which is the
    gradient of the mean reward itself."""
    scale_by_deviation: bool = False
    """Divide a prompt's advantages by the standard deviation of its rewards: prompts that are nearly settled then weigh
    as much as open ones."""
    clip: Positive = 0.2
    """How far the ratio of a token's probability now to that when it was sampled may be from 1 before its reward stops
    counting (sync_every above 1); above 0, at most 1e9."""
    engine: Engine = "local"
    """Sampler: local (a whole copy of the student on each rank), vllm (`server`), or one of run.extensions."""
    server: Server | None = None
    """The server of engine: vllm."""
    guards: Guards = Guards()
    """Limits on what answers become; null takes one away."""
    shown: Annotated[int, Field(ge=0, le=1000)] = 8
    """Answers that rollouts.jsonl keeps of a step that is logged, from 0 to 1000."""
    most_shown: Annotated[int, Field(ge=0, le=1_000_000)] = 2000
    """Answers that rollouts.jsonl keeps of the whole run, from 0 to 1,000,000: longer runs keep fewer steps."""
