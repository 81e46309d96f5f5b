"""Student made of some of the teacher's layers, with its embeddings, final norm and head.

Names and shapes come from the two configurations, so that any dense decoder of transformers with layers in `layers.N`
can be cut. Where the student has fewer key/value heads than the teacher, the teacher's are averaged in groups of
neighbours, as in GQA (Ainslie et al., arXiv 2305.13245, section 2.1). Where its MLP is narrower, the neurons that were
most active on a sample of the data stay (kd/models/calibration.py). The residual stream's width is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
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
from kd.models.load import explain_shapes, make_empty, read_model_config
from kd.models.model_files import StudentError, check_weights

_FIXED = ("hidden_size", "num_attention_heads", "head_dim", "rms_norm_eps", "max_position_embeddings")


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")
_KV = re.compile(r"\.(k_proj|v_proj|k_norm)\.")
NEURONS = re.compile(r"\.mlp\.(gate_proj|up_proj|fc1)\.|\.mlp\.(down_proj|fc2)\.weight")  # out of, into the MLP's width


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
    _check_cuttable(teacher)
    if student.architecture not in (None, teacher.model_type):
        raise CutError(
            f"student.architecture is {student.architecture} and the teacher is {teacher.model_type}: remove the key"
        )
    asked = {name: getattr(student, name) for name in _FIXED} | {"rope_theta": student.rope_theta}
    rope = getattr(teacher, "rope_parameters", None) or {}
    has = {name: getattr(teacher, name, None) for name in _FIXED} | {"rope_theta": rope.get("rope_theta")}
    for name, value in asked.items():
        if value is not None and value != has[name]:
            raise CutError(
                f"student.{name} is {value} and the teacher's is {has[name]}: layers keep it; remove the key, or use "
                "init: scratch"
            )
    width, has_width = student.intermediate_size, teacher.intermediate_size
    if width is not None and width > has_width:
        raise CutError(
            f"student.intermediate_size is {width} and the teacher's is {has_width}: give as much or less, or remove "
            "the key"
        )
    if student.tie_word_embeddings and not teacher.tie_word_embeddings:
        raise CutError(
            "student.tie_word_embeddings is true and the teacher has a head of its own: remove the key to keep it"
        )
    teacher_kv = getattr(teacher, "num_key_value_heads", None) or teacher.num_attention_heads
    kv = student.num_key_value_heads or teacher_kv
    if teacher_kv % kv:
        divisors = ", ".join(str(n) for n in range(1, teacher_kv + 1) if teacher_kv % n == 0)
        raise CutError(
            f"student.num_key_value_heads is {kv} and must divide the teacher's {teacher_kv}: use one of {divisors}"
        )
    layers = kept_layers(student, teacher)
    result = deepcopy(teacher)
    result.num_hidden_layers, result.intermediate_size = len(layers), width or has_width
    if kv != teacher_kv:
        result.num_key_value_heads = kv
    for name, value in vars(teacher).items():  # kinds of layers: of attention, with or without rotary positions
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == teacher.num_hidden_layers:
            setattr(result, name, [value[i] for i in layers])
    if student.tie_word_embeddings is not None:
        result.tie_word_embeddings = student.tie_word_embeddings
    if student.vocab_size is not None:
        result.vocab_size = student.vocab_size
    return result


def _check_cuttable(teacher: PreTrainedConfig) -> None:
    if any((getattr(teacher, name, None) or 0) > 1 for name in _EXPERTS):
        raise CutError(
            f"init: teacher_layers: the {teacher.model_type} teacher's layers are mixtures of experts, which a small "
            "student does not take: use init: scratch, or a dense checkpoint"
        )
    unnamed = [name for name in ("num_hidden_layers", "intermediate_size", *_FIXED[:2]) if not hasattr(teacher, name)]
    if unnamed:
        raise CutError(
            f"init: teacher_layers: a {teacher.model_type} teacher's config.json has no {unnamed[0]}, and its layers "
            "are laid out in a way of their own: use init: scratch, or a checkpoint"
        )
    if teacher.get_text_config() is not teacher:
        raise CutError(
            f"init: teacher_layers: a {teacher.model_type} teacher has more than a language model: save that part by "
            "itself, or use init: scratch"
        )


def write_cut(
    teacher_path: str,
    revision: str | None,
    student: Student,
    model_config: PreTrainedConfig,
    folder: str,
    neurons: Mapping[int, torch.Tensor] | None = None,
) -> None:
    """Write the student as a checkpoint to `folder`, replacing it; one layer is in memory at a time.

    Args:
        teacher_path: folder or hub id of the teacher, with weights in safetensors.
        model_config: from cut_config.
        neurons: by number of the teacher's layer, how active each neuron of its MLP is [intermediate_size]; needed
            where the student's MLP is narrower.

    Raises:
        CutError: the teacher's files lack weights or cannot be read, or the disk does not take the student's.
        StudentError: the teacher's configuration cannot be read, or its weight files are damaged or another model's.
    """
    try:
        teacher = read_model_config(teacher_path, revision, key="teacher.path")
        if Path(teacher_path).is_dir():
            mismatch = explain_shapes(check_weights(Path(teacher_path)), teacher)
            if mismatch:
                raise StudentError(mismatch)
        cut = _Cut(_Reader(teacher_path, revision), teacher, model_config, kept_layers(student, teacher), neurons)
        with replacing_folder(Path(folder)) as part:
            index: dict[str, str] = {}
            for number, tensors in enumerate(cut.parts()):
                file = f"model-{number:05d}.safetensors"
                save_file(tensors, part / file, metadata={"format": "pt"})
                index.update(dict.fromkeys(tensors, file))
            (part / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
            model_config.save_pretrained(part)
    except (OSError, SafetensorError) as error:
        raise CutError(
            f"student.init: teacher_layers: the layers of {teacher_path} cannot be copied to {folder}: "
            + (
                describe_failure(error, folder)
                if isinstance(error, OSError) or is_full(error)
                else f"{first_line(error)}; mend the teacher's files"
            )
        ) from error


class _Cut:
    """Weights of a student, each made from the teacher's of the same name in the layer that it was."""

    def __init__(
        self,
        reader: _Reader,
        teacher: PreTrainedConfig,
        model_config: PreTrainedConfig,
        layers: list[int],
        neurons: Mapping[int, torch.Tensor] | None,
    ):
        self._reader, self._teacher, self._config, self._layers = reader, teacher, model_config, layers
        self._neurons = neurons
        model = make_empty(model_config)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones once
        names = {id(module): name for name, module in model.named_modules()}
        self._embedding = names[id(model.get_input_embeddings())] + "."
        self._head = names[id(model.get_output_embeddings())] + "."

    def parts(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the student's weights by the file: those outside of layers, then each layer's."""
        of_layer: dict[int, list[str]] = {-1: []}
        for name in self._shapes:
            found = _LAYER.fullmatch(name)
            of_layer.setdefault(int(found[2]) if found else -1, []).append(name)
        for names in of_layer.values():
            yield {name: self._make(name) for name in names}

    def _make(self, name: str) -> torch.Tensor:
        wanted, layer = self._shapes[name], _LAYER.fullmatch(name)
        old = self._layers[int(layer[2])] if layer else -1
        source = f"{layer[1]}{old}{layer[3]}" if layer else name
        if name == f"{self._head}weight" and self._teacher.tie_word_embeddings:
            source = f"{self._embedding}weight"
        tensor = self._reader[source]
        if name.startswith((self._embedding, self._head)):
            return _to_width(tensor, self._config.vocab_size)
        if tuple(tensor.shape) == wanted:
            return tensor
        if layer and _KV.search(name):
            return pool_heads(tensor, *self._kv_heads())
        into = NEURONS.search(name)
        if layer and into:
            return tensor.index_select(0 if into[1] else 1, self._most_active(old, tensor.device)).contiguous()
        raise CutError(f"{source} is {list(tensor.shape)}, and this cut needs {list(wanted)}: keep the teacher's sizes")

    def _kv_heads(self) -> tuple[int, int]:
        configs = (self._teacher, self._config)
        return tuple(getattr(one, "num_key_value_heads", None) or one.num_attention_heads for one in configs)  # type: ignore[return-value]

    def _most_active(self, layer: int, device: torch.device) -> torch.Tensor:
        if self._neurons is None:
            raise CutError(
                "student.intermediate_size is below the teacher's, and no sample of the data was measured: this is for "
                "a run with data"
            )
        return self._neurons[layer].topk(self._config.intermediate_size).indices.sort().values.to(device)


def pool_heads(projection: torch.Tensor, num_heads: int, num_kept: int) -> torch.Tensor:
    """Average neighbouring heads of a K or V projection: [num_heads * D, ...] -> [num_kept * D, ...], in fp32."""
    if num_heads == num_kept:
        return projection
    grouped = projection.float().unflatten(0, (num_kept, num_heads // num_kept, -1))
    return grouped.mean(dim=1).flatten(0, 1).to(projection.dtype)


def _to_width(matrix: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Cut rows, or pad with zeros, to the student's vocabulary; the tokenizer's tokens are never among either."""
    if vocab_size <= matrix.shape[0]:
        return matrix[:vocab_size].clone()  # safetensors refuses shared memory
    return torch.cat([matrix, matrix.new_zeros(vocab_size - matrix.shape[0], *matrix.shape[1:])])


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
            raise CutError(f"{self._path}: its files have no weight called {name}: save it by save_pretrained")
        with safe_open(self._file(self._map[name]), "pt") as tensors:
            return tensors.get_tensor(name)

    def _file(self, name: str) -> str | None:
        return cached_file(self._path, name, revision=self._revision, _raise_exceptions_for_missing_entries=False)
