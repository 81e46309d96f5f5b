"""TODO docstring."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from kd.dtypes import loaded_dtype
from kd.errors import SpanwiseError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class StudentError(SpanwiseError, ValueError):
    """The student asked for cannot be made."""


def count_parameters(model_config: PreTrainedConfig) -> int:
    """Parameters of a model of this configuration, tied ones once; made on the meta device, so it costs no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    return sum(parameter.numel() for parameter in model.parameters())


def load_causal_lm(
    source: str | os.PathLike | None,
    model_config: PreTrainedConfig | None = None,
    *,
    dtype: str,
    ds_config: dict | None = None,
    attention_implementation: str = "sdpa",
    revision: str | None = None,
) -> torch.nn.Module:
    """One causal LM: saved weights from `source`, or random ones of `model_config` when source is None.

    dtype: bf16, fp16, fp32, or auto (kd.dtypes.loaded_dtype). With a ZeRO-3 `ds_config` every rank calls it and gets
    its shard; the precision in ds_config is replaced by dtype. Raises StudentError when weights are missing or the
    result is not as asked.
    """
    if model_config is None:
        model_config = AutoConfig.from_pretrained(source, revision=revision)
    torch_dtype = loaded_dtype(model_config.dtype) if dtype == "auto" else DTYPES[dtype]
    sharded = (ds_config or {}).get("zero_optimization", {}).get("stage") == 3
    # A lazy import inside zero.Init fails with a signature-mismatch TypeError: import everything the model needs first.
    import torch._dynamo  # noqa: F401

    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config)]
    options: dict[str, Any] = {"dtype": torch_dtype, "attn_implementation": attention_implementation}
    slot = None
    if sharded:
        from transformers.integrations import HfDeepSpeedConfig

        slot = HfDeepSpeedConfig(_init_settings(ds_config, torch_dtype))
    try:
        if source is None:
            model = AutoModelForCausalLM.from_config(model_config, **options)
        else:
            model, info = model_class.from_pretrained(
                source, config=model_config, revision=revision, output_loading_info=True, **options
            )
            missing = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
            if missing:
                raise StudentError(
                    f"{source}: {len(missing)} weights are missing or of another shape, first {missing[0]}"
                )
    finally:
        del slot
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dtype != torch_dtype or hasattr(parameter, "ds_id") != sharded
    ]
    if wrong:
        raise StudentError(
            f"{len(wrong)} weights are not {torch_dtype} or not {'partitioned' if sharded else 'whole'}, first "
            f"{wrong[0]}"
        )
    return model


def _init_settings(ds_config: dict, dtype: torch.dtype) -> dict:
    """What zero.Init reads: the precision asked for, and some batch size, which DeepSpeed's checks demand even here."""
    settings = {key: value for key, value in ds_config.items() if key not in ("bf16", "fp16", "optimizer", "scheduler")}
    if not any(key.startswith("train_") for key in settings):
        settings["train_micro_batch_size_per_gpu"] = 1
    if dtype != torch.float32:
        settings["bf16" if dtype == torch.bfloat16 else "fp16"] = {"enabled": True}
    return settings
