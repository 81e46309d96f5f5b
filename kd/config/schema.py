"""Every key of a run's YAML, declared once: its type, range, unit, default and what it does.

The text under a key is its documentation, and the remedy an error prints when the value is out of range. Contradictions
between keys are in conflicts.py; load.py reads the file; a key's old name is in renamed.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kd.config.fields import Choice, Count, Dtype, Fraction, NotNegative, Pair, Positive, Section, Text
from kd.config.registries import CHECKPOINT_FORMATS, FORMATS, SCHEDULES, TEACHER_SOURCES
from kernels import divergences

Format = Annotated[str, Choice(FORMATS.names)]
Divergence = Annotated[str, Choice(divergences.names)]
Schedule = Annotated[str, Choice(SCHEDULES.names)]
MovingSchedule = Annotated[str, Choice(lambda: (name for name in SCHEDULES.names() if name != "constant"))]
TeacherSource = Annotated[str, Choice(TEACHER_SOURCES.names)]
CheckpointFormat = Annotated[str, Choice(CHECKPOINT_FORMATS.names)]


class Run(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(examples=["my-run"])
    """Folder of this run under output_dir: letters, digits, dot, dash and underscore."""
    output_dir: Text = "runs"
    """Folder that holds all runs; made when missing."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1337
    """Seeds initial weights, data order and dropout; from 0 to 4294967295."""
    extensions: tuple[Text, ...] = ()
    """Modules of your own that register formats, divergences, rewards and the like, as import paths: every rank, and
    every worker process, imports them before the rest of this file is checked."""


class TeacherCache(Section):
    """The teacher's targets on disk: launch/capture.py writes them once, training then reads them without a teacher."""

    path: Text = Field(examples=["runs/cache/mine"])
    """Folder of the cache; capture makes it."""
    kind: Literal["sampled", "topk"] = "sampled"
    """sampled: draws from the teacher's distribution as counts, unbiased and small, for divergence: forward_kl; topk:
    its best tokens and the mass of all others, for every divergence."""
    num_draws: Annotated[int, Field(ge=1, le=255)] | None = None
    """Draws a row and temperature (sampled), from 1 to 255; 50 by default: about 12 distinct tokens at 2 nats."""
    top_k: Count | None = None
    """Tokens kept a row (topk); 32 by default."""
    precision: Literal["16bit", "fp32"] | None = None
    """Of log-probabilities (topk); 16bit by default."""
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...], Field(min_length=1)] = (1.0,)
    """Temperatures to capture at, above 0, at most 100; each costs its own draws (sampled) or one number a row
    (topk).
    """
    t_tolerance: NotNegative = 0.05
    """How far a scheduled temperature may be from the nearest captured one, which is then used; 0 or more."""


class Endpoint(Section):
    """An OpenAI-compatible server of the teacher, vLLM or one with its prompt_logprobs; asked once a record, at
    capture.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")] = Field(
        examples=["http://127.0.0.1:8000/v1"], repr=False
    )
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
    timeout_seconds: Positive = 120.0
    """Longest time of one request, from connecting to the last byte of the answer; above 0."""
    retries: Annotated[int, Field(ge=0, le=100)] = 8
    """Further attempts for a record whose request failed in a way that may pass, from 0 to 100."""
    record_deadline_seconds: Positive = 900.0
    """Longest time of one record with all its attempts and the waits between them; above 0."""
    deadline_seconds: Positive | None = None
    """Longest time of one start of the capture; it then stops with all that was written kept, and goes on when started
    again.
    """
    max_missing: Fraction = 0.01
    """Part of the records, from 0 to 1, that may end without targets and are listed as missing; with more, capture
    stops.
    """


class Teacher(Section):
    path: Text = Field(examples=["path/or/hub-id"])
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
    deepspeed: Text | None = None
    """DeepSpeed JSON of a teacher that is not replicated; by default the settings of training.deepspeed without an
    optimizer. Its stage is 3, whatever the JSON says."""
    targets: Literal["dense", "topk", "sampled"] | None = None
    """What a teacher that runs beside the student gives of each token's distribution, without a cache. dense (the
    default): all of it; topk: its best top_k tokens and the mass of all others; sampled: num_draws draws, for
    divergence: forward_kl."""
    top_k: Count | None = None
    """Tokens of targets: topk; 64 by default."""
    num_draws: Count | None = None
    """Draws of targets: sampled; 50 by default."""
    cache: TeacherCache | None = None
    """Read the targets from disk instead of running the teacher; launch/capture.py writes them."""
    endpoint: Endpoint | None = None
    """Ask a server for the targets at capture, in place of running the model at path, which is then read for its
    tokenizer and configuration alone. With cache, kind: topk and temperatures: [1.0]."""
    source: TeacherSource | None = None
    """Source of the targets; by default cache where teacher.cache is given, and live (the model runs beside the
    student) where it is not. Others come from run.extensions."""


class Tokenizer(Section):
    path: Text | None = None
    """Folder or hub id; by default the teacher's, or the checkpoint's the student starts from."""


class Student(Section):
    init: Literal["scratch", "teacher_layers", "checkpoint"] = "scratch"
    """scratch: random weights; teacher_layers: some of the teacher's layers, with its embeddings, norm and head;
    checkpoint: path.
    """
    path: Text | None = None
    """Folder or hub id of the checkpoint (init: checkpoint only)."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Which of the teacher's layers to take, counted from 0, increasing (init: teacher_layers only). By default
    num_hidden_layers of them, evenly spaced, always the first and the last."""
    architecture: Literal["llama", "qwen3"] | None = None
    """llama, or qwen3 (llama with normalised queries and keys). This and the sizes below are required from scratch, and
    otherwise come from the source; where they are given with teacher_layers they must agree with the teacher."""
    hidden_size: Count | None = None
    """Width of the residual stream (d_model)."""
    intermediate_size: Count | None = None
    """Width of the SwiGLU MLP."""
    num_hidden_layers: Count | None = None
    """Number of transformer layers."""
    num_attention_heads: Count | None = None
    """Number of query heads."""
    num_key_value_heads: Count | None = None
    """Number of key/value heads (GQA); must divide num_attention_heads; by default equal to it (from scratch) or the
    teacher's. Fewer than the teacher's: its heads are averaged in groups."""
    head_dim: Count | None = None
    """Width of one head, even; by default hidden_size / num_attention_heads."""
    tie_word_embeddings: bool | None = None
    """One matrix for the embedding and the head; by default false from scratch, else the source's."""
    rope_theta: Positive | None = None
    """Base of the rotary position encoding; 10000 by default from scratch, larger for long contexts."""
    max_position_embeddings: Count | None = None
    """Longest sequence in tokens; by default the longest stage's max_length from scratch."""
    rms_norm_eps: Positive | None = None
    """Added to the mean square in RMSNorm; 1e-6 by default from scratch."""
    vocab_size: Count | None = None
    """Width of the embedding and the head, padding included; by default the teacher's, else the tokenizer's."""
    attention_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 needs its package and bf16 or fp16."""
    gradient_checkpointing: bool = False
    """Recompute each layer in backward: about a third more time, and activations of one layer instead of all."""
    dtype: Dtype = "bf16"
    """Precision of forward and backward; the optimizer keeps fp32 masters of bf16 and fp16 weights. auto: bf16, but
    fp32 on a CPU that has no bf16 instructions (emulated, bf16 is tens of times slower than fp32 there)."""


class DemoCorpus(Section):
    seed: Annotated[int, Field(ge=0)] = 1337
    """Seeds the made-up corpus; another seed is another corpus."""
    num_records: Count = 20_000
    """Training records to make."""


class Until(Section):
    steps: Count | None = None
    """Leave the stage after this many optimizer steps in it. Give either this or loss_below."""
    loss_below: Positive | None = None
    """Leave the stage when its training loss (running mean) falls below this."""
    max_steps: Count | None = None
    """With loss_below: leave after this many steps even if the loss is still above; required, so that a run always
    ends.
    """


class TrainFiles(Section):
    """Files of records. A pattern alone is short for {files: pattern}."""

    files: Text = Field(examples=["train/*.jsonl"])
    """A file, or a glob, of records: JSON lines, JSON, Parquet or Arrow, compressed or not."""
    format: Format | None = None
    """Format of the records; by default found from their fields."""
    weight: Annotated[float, Field(gt=0, lt=1e6)] = 1.0
    """How often each record is read in an epoch: 2 twice, 0.5 every other one, drawn by run.seed; above 0."""

    @model_validator(mode="before")
    @classmethod
    def _from_pattern(cls, value: Any) -> Any:
        return {"files": value} if isinstance(value, str) else value


class Stage(Section):
    name: Text = Field(examples=["main"])
    """Name in logs and in metrics."""
    train: Annotated[tuple[TrainFiles, ...], Field(min_length=1)] | None = None
    """Files of records: a path or a glob each, or {files: ..., format: ..., weight: ...}. Give either this or mix."""
    mix: Annotated[dict[Text, NotNegative], Field(min_length=1)] | None = None
    """Kinds of demo records and their weights (any scale: they are divided by their sum); needs data.demo."""
    max_length: Count = Field(examples=[2048])
    """Longest record in tokens; with packing also the length of a row."""
    until: Until | None = None
    """When to go to the next stage; the last stage lasts to the end of training and has none."""


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
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes of each rank that prepare batches ahead of training, from 0 to 64; by default 2 where there is a GPU,
    and none on a CPU, whose cores all train."""
    max_bad_fraction: Fraction = 0.0
    """Part of all lines of all stages' files, and of each stage's records once they are rendered, that may be refused:
    from 0 (the first one stops the run) to 1."""
    quarantine: Text | None = None
    """File for what is refused, with the reason, and of a line its file and number; by default refused.jsonl in the
    run's folder.
    """
    demo: DemoCorpus | None = None
    """Make the demo corpus, for stages with a mix and for evaluation."""
    evaluation: dict[Text, Text] = {}
    """Held-out splits: name -> file of records, or `demo` for the demo corpus's split of that name."""


class Temperature(Section):
    schedule: Schedule = "constant"
    """constant: start; linear and cosine: from start at the first optimizer step to end at the last."""
    start: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Temperature of both softmaxes in the distillation term; above 0, at most 100, usual 1 to 4."""
    end: Annotated[float, Field(gt=0, le=100)] | None = None
    """Temperature at the last step; above 0, at most 100; required by linear and cosine, and by them alone."""


class Weights(Section):
    kd: NotNegative = 0.0
    """Weight of the divergence from the teacher's distribution; 0 or more."""
    hard: NotNegative = 0.0
    """Weight of cross-entropy against the teacher's own choice; 0 or more."""
    truth: NotNegative = 0.0
    """Weight of cross-entropy against the record's text; 0 or more."""


class TeacherShare(Section):
    """Scheduled weights: truth = 1 - share, and the share is split 60/40 into kd and hard."""

    schedule: MovingSchedule = "linear"
    """Path from start at the first optimizer step to end at the last."""
    start: Fraction = 0.7
    """The teacher's share at the first step, from 0 to 1."""
    end: Fraction = 0.3
    """The teacher's share at the last step, from 0 to 1."""


class EntropyWeighting(Section):
    """Weights per token by the teacher's entropy: from the first value at h_min to the second at h_max. Each end's
    triple is divided by its sum when the file is loaded."""

    h_min: NotNegative = 2.0
    """Entropy in nats at and below which the first values hold; 0 or more."""
    h_max: Positive = 8.0
    """Entropy in nats at and above which the second values hold; more than h_min."""
    kd: Pair = (0.4, 0.6)
    """Weights of the divergence at the two ends; 0 or more."""
    hard: Pair = (0.2, 0.2)
    """Weights of the teacher's own choice at the two ends; 0 or more."""
    truth: Pair = (0.4, 0.2)
    """Weights of the record's text at the two ends; 0 or more."""


class Loss(Section):
    divergence: Divergence = "forward_kl"
    """Divergence of the student from the teacher; jsd needs beta. Others come from run.extensions."""
    beta: Fraction | None = None
    """For jsd alone: the teacher's share of the mixture, from 0 (forward KL) to 1 (reverse KL)."""
    temperature: Temperature = Temperature()
    """Temperature of the distillation term; truth and spans always use 1."""
    weights: Weights | None = None
    """Constant weights. Give one of weights, teacher_share, entropy_weighting; by default kd .5, hard .3, truth .2 with
    a teacher, truth 1 without."""
    teacher_share: TeacherShare | None = None
    """Weights that move from the teacher to the truth over the run."""
    entropy_weighting: EntropyWeighting | None = None
    """Weights by the teacher's entropy at each token."""
    w_tool: NotNegative = 0.15
    """Weight of the tool's name; 0 or more."""
    w_args: NotNegative = 0.15
    """Weight of the call's JSON arguments; 0 or more."""
    w_integr: NotNegative = 0.10
    """Weight of text in the answer that carries a value from a tool's result; 0 or more."""
    chunk_rows: Count | None = None
    """Rows whose logits exist at once (memory: rows x vocabulary); by default the kernel chooses."""


class Optimizer(Section):
    """AdamW, with weight decay on matrices alone."""

    lr: Positive = 2e-4
    """Peak learning rate, above 0; usual 1e-5 to 1e-3."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay of the running mean and square of the gradient; from 0, below 1."""
    eps: Positive = 1e-8
    """Added to the root of the running square; above 0."""
    weight_decay: NotNegative = 0.1
    """Decoupled decay per step, times the learning rate; 0 or more."""
    clip: Positive = 1.0
    """Largest gradient norm, above 0; a larger gradient is scaled down to it."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps from 0 to lr, linear; fewer than training.steps."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """Learning rate after warm-up; wsd: constant, then a linear decay over the last decay_fraction of the run."""
    final_lr_fraction: Fraction | None = None
    """Learning rate at the last step as a fraction of lr, from 0 to 1; 0.1 by default; not with schedule: constant."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the run that decays, above 0, at most 1; 0.2 by default; only with schedule: wsd."""


class Training(Section):
    steps: Count = Field(examples=[2000])
    """Optimizer steps of the whole run; all schedules span them."""
    micro_batch_size: Count = 4
    """Rows per GPU in one forward: records, or with data.packing sequences of several."""
    gradient_accumulation: Count = 1
    """Micro-batches per optimizer step on each GPU."""
    log_every: Count = 50
    """Optimizer steps between two lines of metrics."""
    save_every: Count = 2000
    """Optimizer steps between two checkpoints."""
    deepspeed: Text = "ds_configs/zero3.json"
    """DeepSpeed JSON, of ZeRO stage 1, 2 or 3: looked for from the working directory, then beside this YAML, then in
    the repository. Batch sizes, accumulation, clipping and precision are filled in from this YAML and need not be in
    it."""
    max_skipped_fraction: Fraction = 0.01
    """Part of the run's optimizer steps, from 0 to 1, that may be skipped as their gradient is not finite; with more,
    and at least 10, training stops. fp16 skips steps to find its loss scale, and is exempt."""
    time_budget_seconds: Positive | None = None
    """Stop, save and export after this many seconds of training; above 0."""
    checkpoint_format: CheckpointFormat = "deepspeed"
    """Format of checkpoints; others come from run.extensions."""


class Evaluation(Section):
    num_records: Count = 200
    """Records of each held-out split."""
    batch_size: Count = 16
    """Prompts generated together."""
    max_new_tokens: Count = 256
    """Longest answer in tokens."""
    baselines: bool = True
    """Also evaluate the teacher and an untrained student. With a cache the teacher is left out where its weights are
    not on this machine.
    """


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
