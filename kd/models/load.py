"""Saved models: their configurations and weights, opened here alone.

Under ZeRO-3 a model must be *made* partitioned, by transformers and with an HfDeepSpeedConfig alive:
`deepspeed.zero.Init` around a constructor silently changes the initialisation. That object is one slot for the whole
process, and a living one of the teacher's would change the student's precision, so `load_causal_lm` makes it, builds
one model, and deletes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils.import_utils import is_flash_attn_2_available

from kd.config.sections.student import MOST_LAYERS
from kd.dtypes import loaded_dtype
from kd.models.model_files import (
    COPY_AGAIN,
    ModelNotFound,
    StudentError,
    check_weights,
    find_folder,
    first_line,
    read_json,
)

_MOST = {
    "num_hidden_layers": MOST_LAYERS,
    "hidden_size": 262_144,
    "intermediate_size": 4_194_304,
    "num_attention_heads": 16_384,
    "num_key_value_heads": 16_384,
    "vocab_size": 16_777_216,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def read_model_config(
    path: str | os.PathLike, revision: str | None = None, *, key: str | None = None, local_files_only: bool = False
) -> PreTrainedConfig:
    """Read the transformers configuration of a saved causal LM; no weights are loaded.

    Args:
        path: folder or hub id.
        key: key of the YAML that names it, for messages.
        local_files_only: ask no network.

    Raises:
        ModelNotFound: nothing is there (`find_folder`), or it has no config.json.
        StudentError: its config.json is damaged, or of no causal LM that transformers knows.
    """
    folder = find_folder(path, revision, key=key, local_files_only=local_files_only)
    file = folder / "config.json" if folder is not None else None
    where = f"{key}: " if key else ""
    if file is not None and not os.path.lexists(file):
        raise ModelNotFound(
            f"{where}{file}: no such file, so this is no model that can be read here: give a folder that "
            "save_pretrained wrote"
        )
    if file is not None and not isinstance(read_json(file).get("model_type"), str):
        raise StudentError(f"{where}{file}: has no model_type, so transformers cannot tell the model: {COPY_AGAIN}")
    try:
        found = AutoConfig.from_pretrained(path, revision=revision, local_files_only=local_files_only)
    except Exception as error:  # of any library's own types, which have no common base
        kind = ModelNotFound if isinstance(error, OSError) else StudentError
        raise kind(
            f"{where}{os.fspath(file or path)!r} is not a model that can be read here: {first_line(error)}; mend it, "
            "install the version of transformers that the model asks for, or give another folder that save_pretrained "
            "wrote"
        ) from error
    reason = _explain_no_causal_lm(found) or _explain_size(found)
    if reason:
        raise StudentError(f"{where}{file or path}: {reason}: give a causal LM, one that predicts the next token")
    return found


def _explain_size(model_config: PreTrainedConfig) -> str | None:
    """Say which size no model can have: building millions of layers takes minutes before anything else fails."""
    text = model_config.get_text_config()
    for name, most in _MOST.items():
        value = read_size(text, name)
        if value is not None and not 1 <= value <= most:
            return f"{name} is {value}, and models have from 1 to {most:,}"
    return None


def check_vocabulary(model_config: PreTrainedConfig, tokenizer: Any, where: str) -> None:
    """Check that a model has a row for each token of its tokenizer; raises StudentError, which `where` opens."""
    width = read_size(model_config.get_text_config(), "vocab_size")
    if width is not None and width < len(tokenizer):
        raise StudentError(
            f"{where}: its vocabulary is {width} wide and its tokenizer has {len(tokenizer)} tokens: take the "
            "tokenizer that the model was trained with, or another model"
        )


def read_size(text: PreTrainedConfig, *names: str) -> int | None:
    """Read a size off a configuration, the first that has a name of it, or None; the largest, where layers differ."""
    for name in names:
        try:
            value = getattr(text, name, None)
        except Exception:  # transformers' own, where a layer's configuration is to be asked
            continue
        if isinstance(value, (list, tuple)):
            value = max((size for size in value if isinstance(size, int)), default=None)
        if isinstance(value, int):
            return value
    return None


def _explain_no_causal_lm(model_config: PreTrainedConfig) -> str | None:
    kind = type(model_config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or model_config.is_encoder_decoder:
        return f"a {model_config.model_type} model is no causal LM"
    # BERT and its kin are in both lists, and see the whole text unless is_decoder says otherwise.
    if kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(model_config, "is_decoder", False):
        return f"a {model_config.model_type} model is an encoder and no causal LM, as is_decoder is not true"
    return None


def read_stop_ids(path: str | os.PathLike, revision: str | None = None) -> tuple[Any, Any]:
    """Read eos_token_id of a saved model's generation_config.json and config.json: each an id, a list, or None.

    Raises:
        StudentError: as `read_model_config`, or generation_config.json is damaged.
    """
    named = getattr(read_model_config(path, revision).get_text_config(), "eos_token_id", None)
    if Path(path).is_dir():
        _check_generation(Path(path))
    try:
        return GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id, named
    except OSError:  # there is none
        return None, named


def _check_generation(folder: Path) -> None:
    """Check a folder's generation_config.json, where it has one; transformers takes any value for an id."""
    file = folder / "generation_config.json"
    if not os.path.lexists(file):
        return
    ids = read_json(file).get("eos_token_id")
    if not all(one is None or type(one) is int for one in (ids if isinstance(ids, list) else [ids])):
        raise StudentError(f"{file}: eos_token_id is {ids!r}, and a number or a list of them is needed: {COPY_AGAIN}")


def count_parameters(model_config: PreTrainedConfig) -> int:
    """Count the parameters of a model of this configuration, tied ones once, without allocating any.

    Raises:
        StudentError: transformers makes no model of it.
    """
    with _told(f"{model_config.name_or_path or model_config.model_type}: its config.json"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    return sum(parameter.numel() for parameter in model.parameters())


def load_whole_model(path: str | os.PathLike, revision: str | None = None, *, trained: bool = True) -> Any:
    """Load a causal LM whole, on the CPU, in the precision it was saved in (kd.dtypes.loaded_dtype).

    Args:
        trained: False gives weights drawn from torch's global generator in place of the saved ones.

    Raises:
        StudentError: nothing that can be read is there.
    """
    model_config = read_model_config(path, revision)
    dtype = loaded_dtype(_saved_dtype(model_config))
    if not trained:
        return AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    return _load_weights(AutoModelForCausalLM, path, model_config, revision=revision, dtype=dtype)


def load_causal_lm(
    source: str | os.PathLike | None,
    model_config: PreTrainedConfig | None = None,
    *,
    dtype: str,
    ds_config: dict | None = None,
    attention_implementation: str = "sdpa",
    revision: str | None = None,
) -> Any:
    """Load one causal LM for an engine: saved weights of `source`, or random ones where it is None.

    Args:
        source: folder or hub id; None makes `model_config`, which must then be given.
        model_config: what to make; by default read from source.
        dtype: bf16, fp16, fp32, or auto (kd.dtypes.loaded_dtype); replaces the precision in ds_config.
        ds_config: DeepSpeed settings. With ZeRO-3 every rank calls it together and gets its shard.

    Returns:
        A transformers model on the CPU, or partitioned.

    Raises:
        StudentError: nothing that can be read is there, weights are missing, or the result is not as asked.
    """
    if model_config is None:
        assert source is not None, "a model without weights needs its configuration"
        model_config = read_model_config(source, revision)
    torch_dtype = loaded_dtype(_saved_dtype(model_config)) if dtype == "auto" else DTYPES[dtype]
    ds_config = ds_config or {}
    sharded = ds_config.get("zero_optimization", {}).get("stage") == 3
    # A lazy import inside zero.Init fails with a signature-mismatch TypeError: import everything the model needs first.
    import torch._dynamo  # noqa: F401

    _check_attention(attention_implementation)
    model_class = _class_of(model_config)
    options: dict[str, Any] = {"dtype": torch_dtype, "attn_implementation": attention_implementation}
    slot = None
    if sharded:
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        slot = HfDeepSpeedConfig(_init_settings(ds_config, torch_dtype))
    try:
        if source is None:
            with _told(f"a new {model_config.model_type} model"):
                model = AutoModelForCausalLM.from_config(model_config, **options)
        else:
            model = _load_weights(model_class, source, model_config, revision=revision, **options)
    finally:
        del slot
    _check_made(model, torch_dtype, sharded)
    return model


def _class_of(model_config: PreTrainedConfig) -> Any:
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config)]


def _saved_dtype(model_config: PreTrainedConfig) -> torch.dtype | None:
    dtype = model_config.dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load_weights(
    model_class: Any, source: str | os.PathLike, model_config: PreTrainedConfig, **options: Any
) -> torch.nn.Module:
    """Load saved weights, and refuse a model of which some were missing or of another shape.

    transformers draws such weights at random, or raises an error that names no file.
    """
    folder = Path(source) if Path(source).is_dir() else None
    shapes = check_weights(folder) if folder is not None else {}
    if folder is not None:
        _check_generation(folder)
    try:
        with _told(source):
            model, info = model_class.from_pretrained(source, config=model_config, output_loading_info=True, **options)
    except StudentError as error:
        mismatch = explain_shapes(shapes, model_config)
        raise StudentError(mismatch) if mismatch else error from error
    missing = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise StudentError(
            explain_shapes(shapes, model_config)
            or f"{source}: {len(missing)} weights are missing or of another shape, first {missing[0]}: save the model "
            "again with save_pretrained"
        )
    return model


def make_empty(model_config: PreTrainedConfig) -> Any:
    """Make a causal LM of this configuration without memory for its weights, for their names and shapes."""
    with torch.device("meta"):
        return _class_of(model_config)(model_config)  # not from_config, which reads the HfDeepSpeedConfig alive


def explain_shapes(shapes: dict[str, tuple[Path, list[int]]], model_config: PreTrainedConfig) -> str | None:
    """Find the first saved tensor that config.json makes of another shape, and say so with its file.

    shapes: of kd.models.model_files.check_weights. None where there is no difference.
    """
    for name, tensor in make_empty(model_config).state_dict().items():
        file, saved = shapes.get(name, (None, None))
        if file is not None and saved != list(tensor.shape):
            return (
                f"{file}: {name} is {saved}, and {file.with_name('config.json')} makes it {list(tensor.shape)}: the "
                "two are of different models; copy both from one place"
            )
    return None


def _check_attention(implementation: str) -> None:
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise StudentError(
            "student.attention_implementation: flash_attention_2 needs a GPU and the package flash-attn, and this "
            "machine lacks one of them: set it to sdpa, or pip install flash-attn"
        )


@contextmanager
def _told(source: str | os.PathLike) -> Iterator[None]:
    """Turn what the libraries raise for a model into StudentError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # its own text says what is short
    except Exception as error:  # of any library's own types, which have no common base
        raise StudentError(f"{source}: cannot be loaded here: {first_line(error)}") from error


def _check_made(model: torch.nn.Module, dtype: torch.dtype, sharded: bool) -> None:
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dtype != dtype or hasattr(parameter, "ds_id") != sharded
    ]
    if wrong:
        raise StudentError(
            f"{len(wrong)} weights are not {dtype} or not {'partitioned' if sharded else 'whole'}, first "
            f"{wrong[0]}: this is a fault of the program, or of another HfDeepSpeedConfig alive in the process: "
            "report it"
        )


def _init_settings(ds_config: dict, dtype: torch.dtype) -> dict:
    """Return the settings that zero.Init reads: the precision asked for, and the batch size that DeepSpeed demands."""
    settings = {key: value for key, value in ds_config.items() if key not in ("bf16", "fp16", "optimizer", "scheduler")}
    if not any(key.startswith("train_") for key in settings):
        settings["train_micro_batch_size_per_gpu"] = 1
    if dtype != torch.float32:
        settings["bf16" if dtype == torch.bfloat16 else "fp16"] = {"enabled": True}
    return settings
