"""Student made of some of the teacher's layers, with its embeddings, final norm and head.

Where the student has fewer key/value heads than the teacher, the teacher's are averaged in groups of neighbours, as in
GQA (Ainslie et al., arXiv 2305.13245, section 2.1). Widths are kept: cutting an MLP or the residual stream is another
method.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from kd.atomic_files import describe_failure, is_full
from kd.config.schema import Student
from kd.errors import SpanwiseError, first_line
from kd.folders.made import replacing_folder
from kd.models.load import explain_shapes, read_model_config
from kd.models.model_files import StudentError, check_weights

_FIXED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
)


class CutError(SpanwiseError, ValueError):
    """Layers of the teacher that do not make this student, or cannot be read or written."""


def evenly_spaced(num_layers: int, num_kept: int) -> list[int]:
    """Choose `num_kept` of `num_layers` layers, the first and the last among them: evenly_spaced(7, 3) is [0, 3, 6].

    Raises:
        CutError: there are not so many.
    """
    if num_kept > num_layers:
        raise CutError(
            f"student.num_hidden_layers is {num_kept} and the teacher has {num_layers} layers: use {num_layers} "
            "or fewer"
        )
    if num_kept == 1:
        return [0]
    return [(i * (num_layers - 1) + (num_kept - 1) // 2) // (num_kept - 1) for i in range(num_kept)]


def kept_layers(student: Student, teacher: PreTrainedConfig) -> list[int]:
    """List the numbers of the teacher's layers that the student takes. Raises CutError for one that is not there."""
    if student.layers is None:
        assert student.num_hidden_layers is not None, "kd/config/conflicts/ requires one of the two"
        return evenly_spaced(teacher.num_hidden_layers, student.num_hidden_layers)
    if student.layers[-1] >= teacher.num_hidden_layers:
        raise CutError(
            f"student.layers has {student.layers[-1]} and the teacher's layers are 0 to {teacher.num_hidden_layers - 1}"
        )
    return list(student.layers)


def cut_config(student: Student, teacher: PreTrainedConfig) -> PreTrainedConfig:
    """Make the student's transformers configuration from the teacher's.

    Raises:
        CutError: it asks for what a cut cannot give; the message names the key and both values.
    """
    if teacher.model_type not in ("llama", "qwen3"):
        raise CutError(
            f"init: teacher_layers knows llama and qwen3 teachers, this one is {teacher.model_type}: use init: scratch"
        )
    if student.architecture not in (None, teacher.model_type):
        raise CutError(
            f"student.architecture is {student.architecture} and the teacher is {teacher.model_type}: remove the key"
        )
    asked = {name: getattr(student, name) for name in _FIXED} | {"rope_theta": student.rope_theta}
    has = {name: getattr(teacher, name) for name in _FIXED} | {"rope_theta": teacher.rope_parameters["rope_theta"]}
    for name, value in asked.items():
        if value is not None and value != has[name]:
            raise CutError(
                f"student.{name} is {value} and the teacher's is {has[name]}: layers keep it; remove the key, or use "
                "init: scratch"
            )
    if student.tie_word_embeddings and not teacher.tie_word_embeddings:
        raise CutError(
            "student.tie_word_embeddings is true and the teacher has a head of its own: remove the key to keep it"
        )
    kv, teacher_kv = student.num_key_value_heads or teacher.num_key_value_heads, teacher.num_key_value_heads
    if teacher_kv % kv:
        divisors = ", ".join(str(n) for n in range(1, teacher_kv + 1) if teacher_kv % n == 0)
        raise CutError(
            f"student.num_key_value_heads is {kv} and must divide the teacher's {teacher_kv}: use one of {divisors}"
        )
    layers = kept_layers(student, teacher)
    result = deepcopy(teacher)
    result.num_hidden_layers, result.num_key_value_heads = len(layers), kv
    if getattr(teacher, "layer_types", None) is not None:
        result.layer_types = [teacher.layer_types[i] for i in layers]
    if student.tie_word_embeddings is not None:
        result.tie_word_embeddings = student.tie_word_embeddings
    if student.vocab_size is not None:
        result.vocab_size = student.vocab_size
    return result


def write_cut(
    teacher_path: str, revision: str | None, student: Student, model_config: PreTrainedConfig, folder: str
) -> None:
    """Write the student as a checkpoint to `folder`, replacing it; one layer is in memory at a time.

    Args:
        teacher_path: folder or hub id of the teacher, with weights in safetensors.
        model_config: from cut_config.

    Raises:
        CutError: the teacher's files lack weights or cannot be read, or the disk does not take the student's.
        StudentError: the teacher's configuration cannot be read, or its weight files are damaged or another model's.
    """
    try:
        _write_cut(teacher_path, revision, student, model_config, folder)
    except (OSError, SafetensorError) as error:
        raise CutError(
            f"student.init: teacher_layers: the layers of {teacher_path} cannot be copied to {folder}: "
            + (
                describe_failure(error, folder)
                if isinstance(error, OSError) or is_full(error)
                else f"{first_line(error)}; mend the teacher's files"
            )
        ) from error


def _write_cut(
    teacher_path: str, revision: str | None, student: Student, model_config: PreTrainedConfig, folder: str
) -> None:
    teacher = read_model_config(teacher_path, revision, key="teacher.path")
    if Path(teacher_path).is_dir():
        mismatch = explain_shapes(check_weights(Path(teacher_path)), teacher)
        if mismatch:
            raise StudentError(mismatch)
    reader = _Reader(teacher_path, revision)
    with replacing_folder(Path(folder)) as part:
        index: dict[str, str] = {}
        for number, tensors in enumerate(_parts(reader, teacher, student, model_config)):
            file = f"model-{number:05d}.safetensors"
            save_file(tensors, part / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(tensors, file))
        (part / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        model_config.save_pretrained(part)


def _parts(
    reader: _Reader, teacher: PreTrainedConfig, student: Student, model_config: PreTrainedConfig
) -> Iterator[dict[str, torch.Tensor]]:
    embedding = reader["model.embed_tokens.weight"]
    ends = {
        "model.embed_tokens.weight": _to_width(embedding, model_config.vocab_size),
        "model.norm.weight": reader["model.norm.weight"],
    }
    if not model_config.tie_word_embeddings:
        head = embedding if teacher.tie_word_embeddings else reader["lm_head.weight"]
        ends["lm_head.weight"] = _to_width(head, model_config.vocab_size).clone()  # safetensors refuses shared memory
    yield ends
    for new, old in enumerate(kept_layers(student, teacher)):
        prefix = f"model.layers.{old}."
        layer = {f"model.layers.{new}.{name.removeprefix(prefix)}": reader[name] for name in reader.names(prefix)}
        if not layer:
            raise CutError(f"the teacher's files have no weights called {prefix}*: save it by save_pretrained")
        for name in layer:
            if ".k_proj." in name or ".v_proj." in name:
                layer[name] = pool_heads(layer[name], teacher.num_key_value_heads, model_config.num_key_value_heads)
        yield layer


def pool_heads(projection: torch.Tensor, num_heads: int, num_kept: int) -> torch.Tensor:
    """Average neighbouring heads of a K or V projection: [num_heads * D, ...] -> [num_kept * D, ...], in fp32."""
    if num_heads == num_kept:
        return projection
    grouped = projection.float().unflatten(0, (num_kept, num_heads // num_kept, -1))
    return grouped.mean(dim=1).flatten(0, 1).to(projection.dtype)


def _to_width(matrix: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Cut rows, or pad with zeros, to the student's vocabulary; the tokenizer's tokens are never among either."""
    if vocab_size <= matrix.shape[0]:
        return matrix[:vocab_size].clone()
    return torch.cat([matrix, matrix.new_zeros(vocab_size - matrix.shape[0], matrix.shape[1])])


class _Reader:
    """Tensors of a saved model by name, from one safetensors file or many; only files that are read are fetched."""

    def __init__(self, path: str, revision: str | None):
        self._path, self._revision = path, revision
        index = self._file("model.safetensors.index.json")
        if index is not None:
            with open(index) as stream:
                self._map: dict[str, str] = json.load(stream)["weight_map"]
            return
        single = self._file("model.safetensors")
        if single is None:
            raise CutError(f"{path}: no model.safetensors: load the teacher once and save it with save_pretrained")
        with safe_open(single, "pt") as tensors:
            self._map = dict.fromkeys(tensors.keys(), "model.safetensors")

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._map:
            raise CutError(f"{self._path}: no weight called {name}")
        with safe_open(self._file(self._map[name]), "pt") as tensors:
            return tensors.get_tensor(name)

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._map if name.startswith(prefix)]

    def _file(self, name: str) -> str | None:
        return cached_file(self._path, name, revision=self._revision, _raise_exceptions_for_missing_entries=False)
