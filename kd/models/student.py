"""Student: a Llama or Qwen3 model with grouped-query attention, made from scratch, from a checkpoint, or from some
of the teacher's layers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config

from kd.atomic_files import replacing
from kd.config.derived import longest_length
from kd.config.schema import RunConfig, Student, Teacher
from kd.distributed.collectives import on_rank_0
from kd.hashing import hash_text
from kd.models.calibration import Importance, choose_layers, measure_importance, sample_tokens
from kd.models.layer_pruning import cut_config, write_cut
from kd.models.load import load_causal_lm, read_model_config, read_size, read_stop_ids
from kd.models.lora import add_adapters
from kd.models.model_files import StudentError
from kd.models.weight_files import weights_fingerprint
from kd.rendering.stops import join_stop_ids

ReadConfig = Callable[..., PreTrainedConfig]  # called as kd.models.load.read_model_config
_IMPORTANCE = "importance.safetensors"  # of the teacher's layers and neurons, in the run's folder
_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def student_model_config(
    student: Student,
    teacher: Teacher | None,
    *,
    max_length: int,
    tokenizer_length: int | None = None,
    token_ids: Mapping[str, Any] | None = None,
    read: ReadConfig = read_model_config,
) -> PreTrainedConfig:
    """Make the transformers configuration of the student; no weights are read.

    Args:
        teacher: gives the layers or the vocabulary's width where the student asks for them; read only then.
        max_length: longest stage's, in tokens.
        tokenizer_length: len(tokenizer); the vocabulary must be at least as wide. Needed from scratch when neither
            student.vocab_size nor a teacher gives the width.
        token_ids: bos_token_id, eos_token_id (one or a list), pad_token_id.
        read: reads the configuration of a source.

    Raises:
        StudentError: a source cannot be read, or the vocabulary or the positions are too few.
        CutError: the teacher's layers do not make this student.
    """
    if student.init == "checkpoint":
        assert student.path is not None, "kd/config/conflicts/ requires it"
        result = read(student.path, key="student.path")
    elif student.init == "teacher_layers":
        assert teacher is not None, "kd/config/conflicts/ requires it"
        result = cut_config(student, _read_teacher(teacher, read))
    else:
        result = _config_from_scratch(student, teacher, max_length, tokenizer_length, read)
    text = result.get_text_config()
    if tokenizer_length is not None and text.vocab_size < tokenizer_length:
        raise StudentError(
            f"the student's vocabulary is {text.vocab_size} wide and the tokenizer has {tokenizer_length} tokens: "
            f"set student.vocab_size to {tokenizer_length} or more, or take the tokenizer the source was trained with"
        )
    positions = read_size(text, "max_position_embeddings")  # none of models with another encoding, or none at all
    if positions is not None and positions < max_length:
        raise StudentError(
            f"the student has {positions} positions and a stage has max_length {max_length}: lower max_length"
        )
    for name, value in (token_ids or {}).items():
        setattr(result, name, value)
    return result


def _read_teacher(teacher: Teacher, read: ReadConfig) -> PreTrainedConfig:
    return read(teacher.path, teacher.revision, key="teacher.path")


def _config_from_scratch(
    student: Student, teacher: Teacher | None, max_length: int, tokenizer_length: int | None, read: ReadConfig
) -> PreTrainedConfig:
    vocab_size = student.vocab_size
    if vocab_size is None and teacher is not None:
        vocab_size = _read_teacher(teacher, read).get_text_config().vocab_size
    if vocab_size is None:
        vocab_size = tokenizer_length
    if vocab_size is None:
        raise StudentError(
            "the width of the vocabulary is not known without the tokenizer or a teacher: set student.vocab_size"
        )
    hidden_size, num_heads = student.hidden_size, student.num_attention_heads
    assert student.architecture is not None and hidden_size is not None and num_heads is not None, (
        "kd/config/conflicts/ requires them"
    )
    return _CONFIGS[student.architecture](
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=student.intermediate_size,
        num_hidden_layers=student.num_hidden_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=student.num_key_value_heads or num_heads,
        head_dim=student.head_dim or hidden_size // num_heads,
        tie_word_embeddings=bool(student.tie_word_embeddings),
        rope_parameters={"rope_type": "default", "rope_theta": student.rope_theta or 10_000.0},
        max_position_embeddings=student.max_position_embeddings or max_length,
        rms_norm_eps=student.rms_norm_eps or 1e-6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def build_student(
    student: Student,
    teacher: Teacher | None,
    *,
    work_dir: str | os.PathLike,
    seed: int,
    max_length: int,
    ds_config: dict | None = None,
    tokenizer_length: int | None = None,
    token_ids: Mapping[str, Any] | None = None,
) -> Any:
    """Build the student for deepspeed.initialize: partitioned when `ds_config` asks for ZeRO-3, else whole on the CPU.

    All ranks call it together. The same seed gives the same weights at every world size (ZeRO-3 draws other random
    weights than a whole model does).

    Args:
        work_dir: one folder for all ranks; with init: teacher_layers rank 0 writes the cut checkpoint to
            work_dir/initial_student.
        seed: of the random weights; torch's global generator is set to it.
        max_length, tokenizer_length, token_ids: see student_model_config.

    Raises:
        StudentError, CutError: on every rank; the source or the teacher cannot be read, or makes no such student.
    """
    model_config = student_model_config(
        student, teacher, max_length=max_length, tokenizer_length=tokenizer_length, token_ids=token_ids
    )
    source = student.path
    if student.init == "teacher_layers":
        assert teacher is not None, "kd/config/conflicts/ requires it"
        path, revision = teacher.path, teacher.revision
        source = folder = os.path.join(os.fspath(work_dir), "initial_student")
        file = Path(work_dir) / _IMPORTANCE
        on_rank_0(lambda: write_cut(path, revision, student, model_config, folder, _read_neurons(file)))
    torch.manual_seed(seed)
    model = load_causal_lm(
        source,
        model_config,
        dtype=student.dtype,
        ds_config=ds_config,
        attention_implementation=student.attention_implementation,
    )
    model.config.use_cache = False
    if student.lora is not None:
        add_adapters(model, student.lora)
        model.enable_input_require_grads()  # ZeRO-3 lets go of a layer too early whose inputs want no gradient
    if student.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _read_neurons(file: Path) -> dict[int, torch.Tensor] | None:
    measured = _read_measured(file)
    return None if measured is None else dict(enumerate(measured.neurons))


def build_run_student(
    config: RunConfig, tokenizer: Any, *, work_dir: str | os.PathLike, ds_config: dict | None = None
) -> Any:
    """Build the student of a run, with its stops and the tokenizer's special tokens in its configuration.

    A cut that is measured first is measured once: a run that resumes finds it in `work_dir`. Arguments and what is
    raised: see build_student.
    """
    student = on_rank_0(lambda: _measure_cut(config, tokenizer, Path(work_dir)))
    return build_student(
        student,
        config.teacher,
        work_dir=work_dir,
        seed=config.run.seed,
        max_length=longest_length(config.data),
        ds_config=ds_config,
        tokenizer_length=len(tokenizer),
        token_ids=_find_token_ids(config, tokenizer),
    )


def _measure_cut(config: RunConfig, tokenizer: Any, work_dir: Path) -> Student:
    """Run the teacher over a sample of the data where its layers or neurons are chosen by that; keep what was measured,
    and return the student with its layers listed.
    """
    student, teacher = config.student, config.teacher
    if student.init != "teacher_layers" or teacher is None:
        return student
    narrower = (student.intermediate_size or math.inf) < _read_teacher(teacher, read_model_config).intermediate_size
    if not narrower and student.choose_layers == "even":
        return student
    samples = sample_tokens(config.data, tokenizer, student.calibration_records, config.run.seed)
    said = {
        "teacher": f"{teacher.path}@{teacher.revision}",
        "weights": str(weights_fingerprint(teacher.path, teacher.revision)),  # another teacher may lie there by now
        "samples": hash_text(json.dumps(samples)),
    }
    file = work_dir / _IMPORTANCE
    measured = _read_measured(file, said)
    if measured is None:
        with replacing(file) as part:
            measured = measure_importance(teacher.path, teacher.revision, samples)
            part.write(save(dict(measured._asdict()), said))
    if student.choose_layers == "even":
        return student
    influence = measured.influence
    assert student.num_hidden_layers is not None, "kd/config/conflicts/ requires it"
    if student.num_hidden_layers > len(influence):
        return student  # refused with the numbers by cut_config
    return student.model_copy(
        update={"layers": choose_layers(influence, student.num_hidden_layers), "choose_layers": "even"}
    )


def _read_measured(file: Path, said: Mapping[str, str] | None = None) -> Importance | None:
    """Read what was measured; None where there is none, or a file that is damaged, or of others than `said`."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            if said not in (None, opened.metadata()):
                return None
            measured = Importance(*map(opened.get_tensor, Importance._fields))
    except (OSError, SafetensorError):
        return None
    return measured if measured.is_whole() else None


def run_student_config(
    config: RunConfig, tokenizer: Any, token_ids: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """Make the transformers configuration of a run's student; arguments and what is raised: `student_model_config`."""
    return student_model_config(
        config.student,
        config.teacher,
        max_length=longest_length(config.data),
        tokenizer_length=len(tokenizer),
        token_ids=token_ids,
    )


def make_run_student(config: RunConfig, tokenizer: Any) -> Any:
    """Make the student of a run whole on the CPU, as `build_run_student` does, with weights that mean nothing yet."""
    student, token_ids = config.student, _find_token_ids(config, tokenizer)
    model_config = run_student_config(config, tokenizer, token_ids)
    return load_causal_lm(
        None, model_config, dtype=student.dtype, attention_implementation=student.attention_implementation
    )


def _find_token_ids(config: RunConfig, tokenizer: Any) -> dict[str, Any]:
    source = student_source(config.student, config.teacher)
    stop_ids = join_stop_ids(tokenizer, *(read_stop_ids(*source) if source else ()))
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop_ids[0] if len(stop_ids) == 1 else stop_ids or None,
        "pad_token_id": tokenizer.pad_token_id,
    }


def student_source(student: Student, teacher: Teacher | None) -> tuple[str, str | None] | None:
    """Return (path, revision) of the saved model that the student continues or learns from, if any."""
    if student.init == "checkpoint" and student.path is not None:
        return student.path, None
    return (teacher.path, teacher.revision) if teacher is not None else None
