"""Runs of the proof: what each trains, on how much, and the overrides of configs/demo.yaml that make it.

Every run is the demo in the regime in which most people distil: few records, several passes, a teacher that knows more
than they say. Held-out records are read once, at the end; CE's learning rate is chosen on the split `validation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

STEPS, RECORDS_A_STEP = 800, 8
USUAL = 1500  # records of every study but `records`, which begins with them
RECORDS = (USUAL, 500, 5000, 15000)
NUM_HELD_OUT = 1200  # of each split
TUNING_SEED = 1  # of the runs that choose CE's learning rate; none of the figures' seeds
RATES = (5e-4, 1e-3, 2e-3, 4e-3)

SPANS = {"loss.w_tool": 0.15, "loss.w_args": 0.15, "loss.w_integr": 0.1}
NO_SPANS = dict.fromkeys(SPANS, 0)
TRUTH = {"loss.weights": "{kd: 0, hard: 0, truth: 1}"}
TAUGHT = {"loss.weights": "{kd: 0.7, hard: 0, truth: 0.3}", "loss.temperature.start": 2.0}
SCRATCH = {
    "student": "{init: scratch, architecture: llama, hidden_size: 192, intermediate_size: 512, num_hidden_layers: 4, "
    "num_attention_heads: 3, num_key_value_heads: 1, head_dim: 64, tie_word_embeddings: true, "
    "attention_implementation: eager}"
}

Overrides = dict[str, object]


class Method(NamedTuple):
    """Way to train.

    Attributes:
        overrides: of configs/demo.yaml.
        cache: keys of teacher.cache beside its path; None for a teacher that is live, or not used.
        renormalised: the cache's tails are taken away, as other trainers store them.
        tuned: the learning rate is chosen by validation among RATES.
        as_long_as: trains for the seconds of this method.
        paced_by: method whose speed tells how many steps that is.
    """

    overrides: Overrides
    cache: str | None = None
    renormalised: bool = False
    tuned: bool = False
    as_long_as: str | None = None
    paced_by: str = "ce"


def _taught(temperature: float = 2.0, spans: Overrides = SPANS, **more: object) -> Overrides:
    return {
        **TAUGHT,
        **spans,
        "loss.temperature.start": temperature,
        **{k.replace("__", "."): v for k, v in more.items()},
    }


MIX = "{single: 0.5, parallel: 0.2, multi: 0.1, none: 0.12, chat: 0.04, echo: 0.04}"
SIXTEEN: Overrides = {"training.gradient_accumulation": 2}  # records a step, so that it holds groups of answers
REWARDS = "{json_valid: 0.2, schema_valid: 0.1, tool_choice: 0.4, argument_values: 0.2, refrains: 0.1}"


def _process(**changes: object) -> Overrides:
    """Make the overrides of a run whose last 300 of 800 steps have answers of the student, to the same records."""
    rollouts = {
        "share": 0.5,
        "samples": 4,
        "no_tool": 0.4,
        "sync_every": 4,
        "batch_size": 16,
        "max_new_tokens": 160,
        "distill": 0.5,
        "repair": 0.5,
        "reward": 0.3,
        "rewards": REWARDS,
        **changes,
    }
    written = ", ".join(f"{key}: {value}" for key, value in rollouts.items())
    stage = f"mix: {MIX}, max_length: 768"
    stages = f"[{{name: whole, {stage}, until: {{steps: 500}}}}, {{name: process, {stage}, rollouts: {{{written}}}}}]"
    return {**_taught(), **SIXTEEN, "training.steps": 800, "data.stages": stages}


SAMPLED, TOP = "kind: sampled, num_draws: 100", "kind: topk, top_k: 12"
METHODS: dict[str, Method] = {
    "ce": Method({**TRUTH, **NO_SPANS}, tuned=True),
    "ce_spans": Method({**TRUTH, **SPANS}, tuned=True),
    "kd": Method(_taught(spans=NO_SPANS)),
    "kd_spans": Method(_taught()),
    "kd_spans_sampled": Method(_taught(), SAMPLED),
    "ce_same_seconds": Method({**TRUTH, **NO_SPANS}, tuned=True, as_long_as="kd_spans_sampled"),
    "kd_spans_topk": Method(_taught(), TOP),
    "kd_spans_topk_renormalised": Method(_taught(), TOP, renormalised=True),
    "kd_spans_T1": Method(_taught(1.0)),
    "kd_spans_T4": Method(_taught(4.0)),
    "kd_spans_entropy": Method(
        {**_taught(), "loss.weights": "null", "loss.entropy_weighting": "{h_min: 0.1, h_max: 2.0}"}
    ),
    "kd_spans_3x": Method(_taught(spans={key: 3 * value for key, value in SPANS.items()})),
    "kd_spans_16": Method({**_taught(), **SIXTEEN, "training.steps": 800}),
    "process": Method(_process()),
    "process_distill": Method(_process(repair=0, reward=0)),
    "process_repair": Method(_process(distill=0, reward=0)),
    "process_reward": Method(_process(distill=0, repair=0)),
    "process_share_25": Method(_process(share=0.25)),
    "process_share_100": Method(_process(share=1.0)),
    "process_samples_2": Method(_process(samples=2)),
    "process_samples_8": Method(_process(samples=8)),
    "kd_spans_as_process": Method({**_taught(), **SIXTEEN}, as_long_as="process", paced_by="kd_spans_16"),
    "ce_scratch": Method({**TRUTH, **NO_SPANS, **SCRATCH}, tuned=True),
    "kd_spans_scratch": Method({**_taught(), **SCRATCH}),
}
STUDIES: dict[str, tuple[str, ...]] = {
    "records": ("kd_spans_sampled", "ce", "ce_same_seconds", "kd_spans", "kd"),
    "signal": ("kd_spans", "kd_spans_sampled", "kd_spans_topk", "kd_spans_topk_renormalised"),
    "temperature": ("kd_spans_T1", "kd_spans", "kd_spans_T4"),
    "entropy": ("kd_spans", "kd_spans_entropy"),
    "spans": ("ce", "ce_spans", "kd", "kd_spans", "kd_spans_3x"),
    "process": (
        "kd_spans_16",
        "process",
        "kd_spans_as_process",
        "process_distill",
        "process_repair",
        "process_reward",
        "process_share_25",
        "process_share_100",
        "process_samples_2",
        "process_samples_8",
    ),
    "init": ("ce", "kd_spans", "ce_scratch", "kd_spans_scratch"),
}


class Cell(NamedTuple):
    """Run of the matrix."""

    method: str
    num_records: int
    seed: int
    rate: float | None = None  # of a run that chooses by validation and is not evaluated; else None

    @property
    def name(self) -> str:
        """Its folder."""
        tuning = "" if self.rate is None else f"_lr{self.rate:g}"
        return f"{self.method}_{self.num_records}_{self.seed}{tuning}"


def list_cells(studies: tuple[str, ...], seeds: tuple[int, ...]) -> Iterator[Cell]:
    """List the runs of `studies`, each once, each after those that it needs."""
    seen = set()
    for study in studies:
        for num_records in RECORDS if study == "records" else (USUAL,):
            for seed in seeds:
                for method in STUDIES[study]:
                    for cell in (*_needed(method, num_records, seed), Cell(method, num_records, seed)):
                        if cell not in seen:
                            seen.add(cell)
                            yield cell


def _needed(method: str, num_records: int, seed: int) -> Iterator[Cell]:
    if METHODS[method].tuned:
        source = "ce_scratch" if "scratch" in method else "ce"
        yield from (Cell(source, num_records, TUNING_SEED, rate) for rate in RATES)
    if METHODS[method].as_long_as is not None:
        needed = (METHODS[method].as_long_as, METHODS[method].paced_by)
        yield from (Cell(other, num_records, seed) for other in needed)


def choose_rate(cell: Cell, validation: Mapping[Cell, float]) -> float:
    """Choose the learning rate of a tuned method: the one with the least validation loss at its best step.

    Args:
        validation: that loss, of each tuning run.

    Raises:
        KeyError: a tuning run is missing.
    """
    runs = [other for other in _needed(cell.method, cell.num_records, cell.seed) if other.rate is not None]
    best = min(runs, key=lambda run: validation[run])
    assert best.rate is not None
    return best.rate


def list_overrides(cell: Cell, rate: float | None, steps: int = STEPS, ranks: int = 2) -> Overrides:
    """List the overrides of configs/demo.yaml that make a run, its cache aside."""
    found: Overrides = {
        "run.seed": cell.seed,
        "data.demo.num_records": cell.num_records,
        "data.validation": "{validation: demo}",
        "training.steps": steps,
        "training.micro_batch_size": RECORDS_A_STEP // ranks,
        "training.save_every": 300,
        "training.keep_best": "truth",
        "evaluation.num_records": NUM_HELD_OUT,
        "evaluation.every": 150,
        "evaluation.baselines": "false",
        **METHODS[cell.method].overrides,
    }
    chosen = cell.rate if cell.rate is not None else rate
    if chosen is not None:
        found["optimizer.lr"] = chosen
    if cell.rate is not None:
        found["data.evaluation"] = "{}"
    return found
