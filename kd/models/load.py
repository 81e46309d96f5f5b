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
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
)

from kd.dtypes import loaded_dtype
from kd.errors import SpanwiseError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class StudentError(SpanwiseError, ValueError):
    """Student, or model that it comes from or learns from, that cannot be read or made as asked."""


class ModelNotFound(StudentError):
    """Folder or hub id without a model, or one whose model is not on this machine."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, with its type before it unless it is an OSError or ValueError."""
    text = str(error).strip()
    shown = text.splitlines()[0] if text else ""
    return shown if isinstance(error, (OSError, ValueError)) and shown else f"{type(error).__name__}: {shown}"


def read_model_config(
    path: str | os.PathLike, revision: str | None = None, *, key: str | None = None, local_files_only: bool = False
) -> PreTrainedConfig:
    """Read the transformers configuration of a saved model; no weights are loaded.

    Args:
        path: folder or hub id.
        key: key of the YAML that names it, for messages.
        local_files_only: ask no network.

    Raises:
        ModelNotFound: nothing is there, or it has no readable config.json.
        StudentError: its configuration is of no model that transformers knows, or is damaged.
    """
    try:
        return AutoConfig.from_pretrained(path, revision=revision, local_files_only=local_files_only)
    except Exception as error:  # of any library's own types, which have no common base
        kind = ModelNotFound if isinstance(error, OSError) else StudentError
        raise kind(
            f"{f'{key}: ' if key else ''}{os.fspath(path)!r} is not a model that can be read here: {first_line(error)}"
            "; give a folder that save_pretrained wrote, or a hub id that this machine can reach"
        ) from error


def read_stop_ids(path: str | os.PathLike, revision: str | None = None) -> tuple[Any, Any]:
    """Read eos_token_id of a saved model's generation_config.json and config.json: each an id, a list, or None.

    Raises:
        StudentError: as `read_model_config`.
    """
    named = getattr(read_model_config(path, revision).get_text_config(), "eos_token_id", None)
    try:
        return GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id, named
    except OSError:  # there is none
        return None, named


def count_parameters(model_config: PreTrainedConfig) -> int:
    """Count the parameters of a model of this configuration, tied ones once, without allocating any."""
    with torch.device("meta"):
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
    with _told(path):
        return AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=dtype)


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

    if type(model_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise StudentError(f"{source}: a {model_config.model_type} model is no causal LM: take one that is")
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config)]
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
            with _told(source):
                model, info = model_class.from_pretrained(
                    source, config=model_config, revision=revision, output_loading_info=True, **options
                )
            missing = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
            if missing:
                raise StudentError(
                    f"{source}: {len(missing)} weights are missing or of another shape, first {missing[0]}: save the "
                    "model again with save_pretrained"
                )
    finally:
        del slot
    _check_made(model, torch_dtype, sharded)
    return model


def _saved_dtype(model_config: PreTrainedConfig) -> torch.dtype | None:
    dtype = model_config.dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


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
