"""Contradictions in the student's source and sizes."""

from __future__ import annotations

from collections.abc import Iterator

from kd.config.problems import Conflict
from kd.config.schema import RunConfig

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


def student_conflicts(config: RunConfig) -> Iterator[Conflict]:
    """Yield contradictions of the student's source and sizes."""
    yield from _student(config)
    yield from _heads(config)


def _student(config: RunConfig) -> Iterator[Conflict]:
    student = config.student
    if student.init == "scratch":
        for name in _SIZES:
            if getattr(student, name) is None:
                yield Conflict(
                    (f"student.{name}", "student.init"), "required with init: scratch: give it, or use another init"
                )
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
    if student.lora is not None and student.init == "scratch":
        yield Conflict(
            ("student.lora", "student.init"),
            "adapters on random weights learn nothing: use init: checkpoint or teacher_layers, or remove lora",
        )
    layers = student.layers
    if student.init == "teacher_layers":
        if layers is None and student.num_hidden_layers is None:
            yield Conflict(
                ("student.num_hidden_layers", "student.layers"),
                "required with init: teacher_layers, unless `layers` lists them: give one of the two",
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
    if student.choose_layers == "influence" and (layers is not None or student.init != "teacher_layers"):
        yield Conflict(
            ("student.choose_layers", "student.layers", "student.init"),
            "influence is for init: teacher_layers with num_hidden_layers, and layers not listed: remove one",
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
