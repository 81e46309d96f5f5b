"""Table of the scenarios that one job of one rank and one of two run (scenarios.py runs them)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

CONFIG = """\
run: {{name: t, output_dir: {out}, seed: 3}}
teacher: {{path: {teacher}, dtype: fp32}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
          num_key_value_heads: 2, head_dim: 8, vocab_size: 612, dtype: fp32}}
data: {{stages: [{{name: a, train: [{out}/records.jsonl], max_length: {max_length}}}]}}
loss: {{temperature: {{start: 2.0}}, weights: {{kd: 0.5, hard: 0.3, truth: 0.2}}, w_tool: 0.15, w_args: 0.15, w_integr: 0.1}}
optimizer: {{lr: 1024, schedule: constant, clip: 1.0e+9, weight_decay: 0}}
training: {{steps: 1, log_every: 1, micro_batch_size: 1, deepspeed: {out}/ds.json}}
"""  # noqa: E501
# Every weight is partitioned, and SGD may stand in for AdamW.
DS = {
    "zero_allow_untested_optimizer": True,
    "data_types": {"grad_accum_dtype": "fp32"},
    "steps_per_print": 10**9,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "stage3_param_persistence_threshold": 0,
        "reduce_bucket_size": 10**6,
    },
}


@dataclass(frozen=True)
class Scenario:
    """One run: the configuration's overrides, and what is done beside training (scenarios.py says what each means)."""

    name: str
    overrides: tuple[str, ...] = ()
    accumulation: int = 1
    optimizer: str = "sgd"
    poison: tuple[int, str] | None = None
    export: bool = False
    capture: int | None = None
    spikes_after: int | None = None

    def as_job(self, config: Path) -> dict:
        """Return the scenario as scenarios.py reads it from JSON."""
        accumulation = f"training.gradient_accumulation={self.accumulation}"
        return asdict(self) | {"config": str(config), "overrides": [accumulation, *self.overrides]}


def scenario(name: str, *overrides: str, **settings) -> Scenario:
    return Scenario(name, overrides, **settings)


@dataclass(frozen=True)
class Table:
    """Scenarios over the files of one folder."""

    out: Path
    teacher: Path
    vocab_size: int
    poisoned_record: str

    def file(self, name: str) -> str:
        """Return the override that trains on one of the folder's files."""
        return f"data.stages.0.train=[{self.out}/{name}.jsonl]"

    def cached(self, name: str, world: int, kind: str, *overrides: str, **settings) -> Scenario:
        """Return a scenario that captures its own cache first."""
        cache = f"teacher.cache={{path: {self.out}/world{world}/{name}_cache, temperatures: [2.0], {kind}}}"
        return scenario(name, cache, "training.micro_batch_size=2", *overrides, capture=60, **settings)

    def scenarios(self) -> dict[int, list[Scenario]]:
        """List the scenarios of each world size."""
        out, file, cached = self.out, self.file, self.cached
        tied = "student.tie_word_embeddings=true"
        entropy = (
            "loss.weights=null",
            "loss.entropy_weighting={h_min: 0.5, h_max: 5.0, kd: [0.2, 0.6], hard: [0.3, 0.2], truth: [0.5, 0.2]}",
        )
        two_steps = (
            "training.steps=2",
            "optimizer.lr=0.5",
            "loss.temperature={schedule: linear, start: 3.0, end: 1.5}",
            "loss.weights=null",
            "loss.teacher_share={start: 0.7, end: 0.3}",
        )
        seen = (
            f"data.validation={{one: {out}/records.jsonl, other: {out}/records.jsonl}}",
            "evaluation={every: 1, generate_every: 2, num_records: 4, max_new_tokens: 8}",
            "training.keep_best=truth",
        )
        source = (
            "student.init=checkpoint",
            f"student.path={self.teacher}",
            "student.gradient_checkpointing=true",
            *(
                f"student.{key}=null"
                for key in (
                    "architecture",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "head_dim",
                    "vocab_size",
                )
            ),
        )
        poisoned = {"optimizer": "adamw", "export": True, "poison": (1, self.poisoned_record)}
        # The four records in two rows of 524 and 464 tokens, and the fifth left out.
        packed = (
            f"data.stages.0.train=[{out}/records.jsonl, {out}/toolong.jsonl]",
            "data.packing=length",
            "data.stages.0.max_length=560",
        )
        # Every turn of the four is a sequence of its own: a variable opens the last one with a word.
        turns = (
            f"tokenizer={{path: {out}/turned, template_variables: {{opened: So}}}}",
            "data.turns=auto",
            "data.stages.0.max_length=640",
            "training.micro_batch_size=4",
        )
        everything = ("teacher.targets=topk", f"teacher.top_k={self.vocab_size}")
        sampled = ("teacher.targets=sampled", "teacher.num_draws=20")

        # Two records and two answers in each step, on every split of it.
        answers = (
            "data.stages.0.rollouts={share: 0.5, samples: 2, distill: 0.7, repair: 1.0, reward: 0.5, "
            "max_new_tokens: 12, batch_size: 2, engine: ending, distill_no_tool: true, "
            'rewards: {"__main__:by_text": 1}}',
        )
        full_cache, draws = f"kind: topk, precision: fp32, top_k: {self.vocab_size}", "kind: sampled, num_draws: 20"
        adamw = ("optimizer.lr=0.01", "training.steps=2", "training.micro_batch_size=2")
        return {
            1: [
                scenario("split", accumulation=4),
                scenario("split_tied", tied, accumulation=4),
                scenario("lonely", file("lonely"), accumulation=2),
                scenario("entropy", *entropy, accumulation=4),
                scenario("replicated", "teacher.placement=replicated", accumulation=4),
                scenario("live_topk", *everything, accumulation=4),
                scenario("sampled", *sampled, accumulation=4),
                cached("cached_topk", 1, full_cache, accumulation=2),
                cached("cached_sampled", 1, draws, accumulation=2),
                cached("cached_packed", 1, draws, *packed),
                scenario("answers", *answers, accumulation=4),
                scenario("answers_packed", *answers, *packed, "training.micro_batch_size=4"),
                scenario("zero2", f"training.deepspeed={out}/ds2.json", accumulation=4),
                scenario("one", file("one"), accumulation=2),
                scenario("seen", *seen, "optimizer.lr=1e-30", "run.name=seen1", accumulation=4),
                scenario("turns", *turns, accumulation=4),
                scenario("packed", *packed, accumulation=2),
                scenario(
                    "packed_eager", *packed, "student.attention_implementation=eager", "training.micro_batch_size=2"
                ),
            ],
            2: [
                scenario("split", accumulation=2, export=True),
                scenario("split_tied", tied, accumulation=2, export=True),
                scenario("wide", "training.micro_batch_size=2"),
                scenario("wide_tied", tied, "training.micro_batch_size=2"),
                scenario("answers", *answers, accumulation=2),
                scenario("answers_wide", *answers, "training.micro_batch_size=2"),
                scenario("answers_zero2", *answers, f"training.deepspeed={out}/ds2.json", accumulation=2),
                scenario("zero2", f"training.deepspeed={out}/ds2.json", accumulation=2),
                scenario("lonely", file("lonely")),
                scenario("one", file("one")),
                scenario("toolong", file("toolong"), "training.micro_batch_size=2"),
                scenario("live_topk", *everything, accumulation=2),
                scenario("offloaded", "teacher.placement=offloaded", accumulation=2),
                scenario("sampled", *sampled, accumulation=2),
                scenario("sampled_packed", *packed, *sampled),
                scenario("sampled_twice", *sampled, "training.steps=2", "optimizer.lr=1e-30", accumulation=2),
                cached("cached_topk", 2, full_cache, "loss.temperature={start: 2.04}"),
                cached("cached_two_steps", 2, full_cache, *two_steps, "teacher.cache.temperatures=[1.5, 3.0]"),
                cached("cached_sampled", 2, draws),
                scenario("checkpoint", *source, "teacher=null", "loss.weights={truth: 1}", accumulation=2),
                scenario("two_steps", *two_steps, accumulation=2),
                scenario("seen", *two_steps, *seen, "run.name=seen", accumulation=2),
                scenario("jsd", "loss.divergence=jsd", "loss.beta=0.3", accumulation=2),
                scenario("turns", *turns, accumulation=2),
                scenario("packed", *packed, "data.workers=1"),
                scenario("nan_packed", *packed, *adamw[:2], "training.micro_batch_size=1", **poisoned),
                scenario("truncated", "data.too_long=truncate", "data.stages.0.max_length=424", accumulation=2),
                scenario(
                    "formats",
                    f"data.stages.0.train=[{out}/formats*]",
                    "run.name=formats",
                    "data.max_bad_fraction=0.2",
                    "data.workers=1",
                    accumulation=2,
                ),
                scenario(
                    "left_out",
                    file("spoiled"),
                    "run.name=left_out",
                    "data.max_bad_fraction=0.2",
                    "training.steps=3",
                    "optimizer.lr=0.01",
                ),
                scenario(
                    "too_many",
                    file("spoiled"),
                    "run.name=too_many",
                    "data.max_bad_fraction=0.1",
                    "training.steps=3",
                    "optimizer.lr=0.01",
                ),
                scenario("refused", f"data.stages.0.train=[{out}/formats*]", "run.name=refused"),
                scenario(
                    "truth", "teacher=null", f"tokenizer.path={self.teacher}", "loss.weights={truth: 1}", accumulation=2
                ),
                scenario(
                    "spike",
                    "run.name=spike",
                    "training.steps=3",
                    "training.loss_spike_factor=1.5",
                    "training.max_skipped_fraction=1",
                    spikes_after=0,
                ),
                scenario("nan_fp32", *adamw, **poisoned),
                scenario("nan_bf16", *adamw, "student.dtype=bf16", "teacher.dtype=bf16", **poisoned),
            ],
        }
