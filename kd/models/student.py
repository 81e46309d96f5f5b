"""The student: a Llama or Qwen3 model with grouped-query attention, made from scratch, from a checkpoint, or from some
of the teacher's layers.

Under ZeRO-3 a model must be *made* partitioned, by transformers and with an HfDeepSpeedConfig alive:
`deepspeed.zero.Init` around a constructor silently changes the initialisation. That object is one slot for the whole
process, and a living one of the teacher's would change the student's precision, so `load_causal_lm` makes it, builds
one model, and deletes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from kd.config.schema import RunConfig
from kd.distributed.collectives import on_rank_0
from kd.models.layer_pruning import cut_config, write_cut
from kd.models.load import StudentError, load_causal_lm

_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def student_model_config(
    config: RunConfig, tokenizer_length: int | None = None, token_ids: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The transformers configuration of the student `config` asks for.

    tokenizer_length: len(tokenizer); the vocabulary must be at least as wide. Needed from scratch when neither
    student.vocab_size nor a teacher gives the width. token_ids: bos_token_id, eos_token_id, pad_token_id of the
    tokenizer. A teacher's or checkpoint's configuration is read only when something is taken from it.
    """
    student = config.student
    if student.init == "checkpoint":
        result = _read_config("student.path", student.path)
    elif student.init == "teacher_layers":
        result = cut_config(student, _teacher_config(config))
    else:
        result = _scratch(config, tokenizer_length)
    if tokenizer_length is not None and result.get_text_config().vocab_size < tokenizer_length:
        raise StudentError(
            f"the student's vocabulary is {result.get_text_config().vocab_size} wide and the tokenizer has "
            f"{tokenizer_length} tokens: "
            f"set student.vocab_size to {tokenizer_length} or more, or take the tokenizer the source was trained with"
        )
    longest = max(stage.max_length for stage in config.data.stages)
    if result.get_text_config().max_position_embeddings < longest:
        raise StudentError(
            f"the student has {result.get_text_config().max_position_embeddings} positions and a stage has max_length "
            f"{longest}: lower max_length"
        )
    for name, value in (token_ids or {}).items():
        setattr(result, name, value)
    return result


def _teacher_config(config: RunConfig) -> PreTrainedConfig:
    return _read_config("teacher.path", config.teacher.path, config.teacher.revision)


def _read_config(key: str, path: str, revision: str | None = None) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise StudentError(
            f"{key}: {path!r} is not a model that can be read here: {str(error).splitlines()[0]}"
        ) from error


def _scratch(config: RunConfig, tokenizer_length: int | None) -> PreTrainedConfig:
    student = config.student
    vocab_size = student.vocab_size
    if vocab_size is None and config.teacher is not None:
        vocab_size = _teacher_config(config).get_text_config().vocab_size
    if vocab_size is None:
        vocab_size = tokenizer_length
    if vocab_size is None:
        raise StudentError(
            "the width of the vocabulary is not known without the tokenizer or a teacher: set student.vocab_size"
        )
    return _CONFIGS[student.architecture](
        vocab_size=vocab_size,
        hidden_size=student.hidden_size,
        intermediate_size=student.intermediate_size,
        num_hidden_layers=student.num_hidden_layers,
        num_attention_heads=student.num_attention_heads,
        num_key_value_heads=student.num_key_value_heads or student.num_attention_heads,
        head_dim=student.head_dim or student.hidden_size // student.num_attention_heads,
        tie_word_embeddings=bool(student.tie_word_embeddings),
        rope_parameters={"rope_type": "default", "rope_theta": student.rope_theta or 10_000.0},
        max_position_embeddings=student.max_position_embeddings
        or max(stage.max_length for stage in config.data.stages),
        rms_norm_eps=student.rms_norm_eps or 1e-6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def build_student(
    config: RunConfig,
    *,
    work_dir: str | os.PathLike,
    ds_config: dict | None = None,
    tokenizer_length: int | None = None,
    token_ids: Mapping[str, Any] | None = None,
) -> torch.nn.Module:
    """The student, ready for deepspeed.initialize: partitioned when `ds_config` asks for ZeRO-3, else whole.

    All ranks call it together. The same seed gives the same weights at every world size (ZeRO-3 draws other random
    weights than a whole model does). `work_dir` must be one folder for all ranks: with init: teacher_layers rank 0
    writes the cut checkpoint to work_dir/initial_student.
    """
    student = config.student
    model_config = student_model_config(config, tokenizer_length, token_ids)
    source: str | None = student.path
    if student.init == "teacher_layers":
        source = os.path.join(os.fspath(work_dir), "initial_student")
        teacher = config.teacher
        on_rank_0(lambda: write_cut(teacher.path, teacher.revision, student, model_config, source))
    torch.manual_seed(config.run.seed)
    model = load_causal_lm(
        source,
        model_config,
        dtype=student.dtype,
        ds_config=ds_config,
        attention_implementation=student.attention_implementation,
    )
    model.config.use_cache = False
    if student.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model
