"""Contradictions between keys that are each right alone; every check names the keys that it looked at."""

from __future__ import annotations

from collections.abc import Iterator

from kd.config.conflicts_teacher import teacher_conflicts
from kd.config.problems import Conflict
from kd.config.schema import RunConfig
from kernels import divergences

_SIZES = ("architecture", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FROM_SOURCE = (
    *_SIZES,
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
    "max_position_embeddings",
)


def conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield every contradiction in `config`, in the order of the sections."""
    yield from teacher_conflicts(config)
    yield from _student(config)
    yield from _heads(config)
    yield from _data(config)
    yield from _loss(config)
    yield from _schedules(config)


def _student(config: RunConfig) -> Iterator[Conflict]:
    student = config.student
    if student.init == "scratch":
        for name in _SIZES:
            if getattr(student, name) is None:
                yield Conflict((f"student.{name}", "student.init"), "required with init: scratch")
    if student.init == "checkpoint":
        if student.path is None:
            yield Conflict(("student.path", "student.init"), "required with init: checkpoint: a folder or a hub id")
        for name in _FROM_SOURCE:
            if getattr(student, name) is not None:
                yield Conflict(
                    (f"student.{name}", "student.init"),
                    "comes from the checkpoint: remove this key, or use init: scratch",
                )
    elif student.path is not None:
        yield Conflict(
            ("student.path", "student.init"),
            f"only with init: checkpoint (here {student.init}): remove it, or change init",
        )
    layers = student.layers
    if student.init == "teacher_layers":
        if layers is None and student.num_hidden_layers is None:
            yield Conflict(
                ("student.num_hidden_layers", "student.layers"),
                "required with init: teacher_layers, unless `layers` lists them",
            )
        if layers is not None and student.num_hidden_layers not in (None, len(layers)):
            yield Conflict(
                ("student.num_hidden_layers", "student.layers"),
                f"{student.num_hidden_layers} does not agree with the {len(layers)} layers listed in `layers`: remove "
                "one of the two",
            )
    elif layers is not None:
        yield Conflict(
            ("student.layers", "student.init"),
            f"only with init: teacher_layers (here {student.init}): remove it, or change init",
        )
    if layers is not None and list(layers) != sorted(set(layers)):
        yield Conflict(("student.layers",), "layers must increase, none twice, for example [0, 2, 5]")
    if student.attention_implementation == "flash_attention_2" and student.dtype == "fp32":
        yield Conflict(
            ("student.attention_implementation", "student.dtype"),
            "flash_attention_2 has no fp32: use sdpa, or dtype: bf16",
        )


def _heads(config: RunConfig) -> Iterator[Conflict]:
    student = config.student
    heads, kv, hidden = student.num_attention_heads, student.num_key_value_heads, student.hidden_size
    if heads and kv and heads % kv:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        yield Conflict(
            ("student.num_key_value_heads", "student.num_attention_heads"),
            f"{kv} does not divide the {heads} attention heads: use one of {divisors}",
        )
    if heads and hidden and hidden % heads and (student.head_dim is None or student.architecture == "llama"):
        yield Conflict(
            ("student.hidden_size", "student.num_attention_heads", "student.head_dim", "student.architecture"),
            f"{hidden} is not a multiple of the {heads} attention heads: change one of them"
            + ("" if student.architecture == "llama" else ", or give head_dim"),
        )
    head_dim = student.head_dim or (hidden // heads if hidden and heads and hidden % heads == 0 else None)
    if head_dim is not None and head_dim % 2:
        keys = (
            ("student.head_dim",)
            if student.head_dim
            else ("student.hidden_size", "student.num_attention_heads", "student.head_dim")
        )
        yield Conflict(keys, f"heads of width {head_dim}: rotary positions need an even width: change one of these")


def _data(config: RunConfig) -> Iterator[Conflict]:
    stages, names = config.data.stages, set()
    for i, stage in enumerate(stages):
        key, last = f"data.stages.{i}", i == len(stages) - 1
        if stage.name in names:
            yield Conflict((f"{key}.name",), f"another stage is called {stage.name!r} already: give it its own name")
        names.add(stage.name)
        if (stage.train is None) == (stage.mix is None):
            yield Conflict(
                (key, f"{key}.train", f"{key}.mix"), "give one of train (files) and mix (demo records), not both"
            )
        if stage.mix is not None and config.data.demo is None:
            yield Conflict(
                (f"{key}.mix", "data.demo"),
                "needs the demo corpus: add `demo: {num_records: ...}` under data, or use train",
            )
        if stage.mix is not None and sum(stage.mix.values()) <= 0:
            yield Conflict((f"{key}.mix",), "all weights are 0: give at least one kind a weight above 0")
        yield from _until(config, i, last)
        longest = config.student.max_position_embeddings
        if longest is not None and stage.max_length > longest:
            yield Conflict(
                (f"{key}.max_length", "student.max_position_embeddings"),
                f"{stage.max_length} tokens are more than student.max_position_embeddings ({longest}): lower the one "
                "or raise the other",
            )
    demo_splits = [name for name, source in config.data.evaluation.items() if source == "demo"]
    if config.data.demo is None:
        for name in demo_splits:
            yield Conflict(
                (f"data.evaluation.{name}", "data.demo"),
                "needs the demo corpus: add `demo: {num_records: ...}` under data, or give a file",
            )
    elif not demo_splits and all(stage.mix is None for stage in stages):
        yield Conflict(
            ("data.demo", "data.stages", "data.evaluation"),
            "nothing uses the demo corpus: remove it, or give a stage a mix",
        )


def _until(config: RunConfig, index: int, last: bool) -> Iterator[Conflict]:
    key, until = f"data.stages.{index}.until", config.data.stages[index].until
    if until is None:
        if not last:
            yield Conflict(
                (key,), "required in every stage but the last: {steps: ...}, or {loss_below: ..., max_steps: ...}"
            )
        return
    if last:
        yield Conflict((key,), "the last stage lasts to training.steps: remove `until`, or add a stage")
    if (until.steps is None) == (until.loss_below is None):
        yield Conflict((key, f"{key}.steps", f"{key}.loss_below"), "give one of steps and loss_below, not both")
    elif (until.loss_below is None) != (until.max_steps is None):
        yield Conflict(
            (f"{key}.max_steps", f"{key}.loss_below", f"{key}.steps"), "goes with loss_below, and loss_below with it"
        )
    before = sum(
        (u.steps or u.max_steps or 0) for u in (s.until for s in config.data.stages[: index + 1]) if u is not None
    )
    if not last and before >= config.training.steps:
        yield Conflict(
            (key, f"{key}.steps", f"{key}.max_steps", "training.steps"),
            f"stages up to here take {before} steps and training.steps is {config.training.steps}: later stages would "
            "never run",
        )


def _loss(config: RunConfig) -> Iterator[Conflict]:
    loss, temperature = config.loss, config.loss.temperature
    needs_beta = divergences.find(loss.divergence).needs_beta
    if needs_beta and loss.beta is None:
        ends = " (forward KL) to 1 (reverse KL)" if loss.divergence == "jsd" else " to 1"
        yield Conflict(
            ("loss.beta", "loss.divergence"),
            f"required with divergence: {loss.divergence}, from 0{ends}, for example 0.5",
        )
    if not needs_beta and loss.beta is not None:
        yield Conflict(
            ("loss.beta", "loss.divergence"),
            f"only with divergence: jsd (here {loss.divergence}): remove it, or use jsd",
        )
    if temperature.schedule == "constant" and temperature.end is not None:
        yield Conflict(
            ("loss.temperature.end", "loss.temperature.schedule"),
            "a constant temperature has no end: remove it, or use linear or cosine",
        )
    if temperature.schedule != "constant" and temperature.end is None:
        yield Conflict(
            ("loss.temperature.end", "loss.temperature.schedule"),
            f"required with schedule: {temperature.schedule}, for example 1.0",
        )
    given = [name for name in ("weights", "teacher_share", "entropy_weighting") if getattr(loss, name) is not None]
    for name in given[1:]:
        yield Conflict(
            (f"loss.{name}", f"loss.{given[0]}"), f"loss.{given[0]} sets the same weights: keep one of the two"
        )
    entropy = loss.entropy_weighting
    if entropy is not None:
        if entropy.h_min >= entropy.h_max:
            keys = ("loss.entropy_weighting.h_min", "loss.entropy_weighting.h_max")
            yield Conflict(keys, f"h_min ({entropy.h_min:g}) must be below h_max ({entropy.h_max:g})")
        for end, name in enumerate(("first", "second")):
            if entropy.kd[end] + entropy.hard[end] + entropy.truth[end] <= 0:
                yield Conflict(
                    ("loss.entropy_weighting", *(f"loss.entropy_weighting.{n}" for n in ("kd", "hard", "truth"))),
                    f"the {name} values of kd, hard and truth are all 0: give one of them a value above 0",
                )
    spans = loss.w_tool + loss.w_args + loss.w_integr
    if loss.weights is not None and loss.weights.kd + loss.weights.hard + loss.weights.truth + spans <= 0:
        yield Conflict(
            ("loss.weights", "loss.w_tool", "loss.w_args", "loss.w_integr"),
            "every weight of the loss is 0: nothing would be learned",
        )


def _schedules(config: RunConfig) -> Iterator[Conflict]:
    optimizer, steps = config.optimizer, config.training.steps
    if optimizer.warmup_steps >= steps:
        yield Conflict(
            ("optimizer.warmup_steps", "training.steps"),
            f"{optimizer.warmup_steps} is not below training.steps ({steps})",
        )
    if optimizer.schedule == "constant" and optimizer.final_lr_fraction is not None:
        yield Conflict(
            ("optimizer.final_lr_fraction", "optimizer.schedule"),
            "a constant learning rate has no end: remove it, or use another schedule",
        )
    if optimizer.schedule != "wsd" and optimizer.decay_fraction is not None:
        yield Conflict(
            ("optimizer.decay_fraction", "optimizer.schedule"),
            f"only with schedule: wsd (here {optimizer.schedule}): remove it, or use wsd",
        )
    decay = 0.2 if optimizer.decay_fraction is None else optimizer.decay_fraction
    if (
        optimizer.schedule == "wsd"
        and optimizer.warmup_steps < steps
        and optimizer.warmup_steps + decay * steps > steps
    ):
        yield Conflict(
            ("optimizer.decay_fraction", "optimizer.warmup_steps", "training.steps"),
            f"warm-up ({optimizer.warmup_steps} steps) and decay ({decay:g} of {steps} steps) overlap: shorten one",
        )
