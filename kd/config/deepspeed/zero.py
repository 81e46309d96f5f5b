"""Check of zero_optimization: its keys and types by DeepSpeed's own model, and what training needs of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from kd.config.yaml import Path

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?$|true$|false$", re.IGNORECASE)
_OFFLOADS = ("offload_optimizer", "offload_param")


def check_zero(settings: dict[str, Any], trains: bool) -> Iterator[tuple[Path, str]]:
    """Yield (path, message) for what is wrong with the settings' zero_optimization, fp16 and bf16.

    trains: whether an optimizer steps under these settings; a teacher is under ZeRO-3 whatever they say.
    """
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield ("zero_optimization",), "expected an object, as in ds_configs/zero3.json"
        return
    found = [*_stage(zero, trains), *_quoted(settings), *_offloads(zero, trains), *_refused(settings, zero)]
    bad = {path for path, _ in found}
    found += [(path, message) for path, message in _by_deepspeed(settings) if not any(path[: len(p)] == p for p in bad)]
    yield from found


def _stage(zero: dict[str, Any], trains: bool) -> Iterator[tuple[Path, str]]:
    path, stage = ("zero_optimization", "stage"), zero.get("stage", 0)
    if isinstance(stage, str):
        yield path, f"is the text {stage!r} and no number: write it without quotes"
    elif type(stage) is not int or stage not in (0, 1, 2, 3):
        shown = {True: "true", False: "false", None: "null"}.get(stage, str(stage)) if _plain(stage) else str(stage)
        yield path, f"is {shown[:80]}: use 1, 2 or 3, as ds_configs/zero3.json does"
    elif trains and stage == 0:
        yield (
            path,
            "is 0, where DeepSpeed may measure no gradient norm and take a step that is not finite: use 1, 2 or 3, "
            "as ds_configs/zero3.json does",
        )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _quoted(settings: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Find numbers and truth values that were written as text."""
    for name in ("zero_optimization", "bf16", "fp16", "aio"):
        section = settings.get(name)
        for key, value in section.items() if isinstance(section, dict) else ():
            inner = value.items() if isinstance(value, dict) else ()
            for path, one in [((name, key), value), *(((name, key, k), v) for k, v in inner)]:
                if isinstance(one, str) and _NUMBER.match(one) and path != ("zero_optimization", "stage"):
                    yield path, f"is the text {one!r}: write it without quotes"


def _offloads(zero: dict[str, Any], trains: bool) -> Iterator[tuple[Path, str]]:
    for name in _OFFLOADS:
        section, path = zero.get(name), ("zero_optimization", name)
        if section is not None and not isinstance(section, dict):
            yield path, 'expected an object, for example {"device": "cpu"}'
            continue
        device = (section or {}).get("device", "none")
        if device not in ("none", "cpu", "nvme"):
            yield (*path, "device"), f"is {str(device)[:80]!r}: use cpu, nvme or none"
        elif device == "nvme" and not isinstance((section or {}).get("nvme_path"), str):
            yield (*path, "device"), 'is nvme, and there is no nvme_path: add "nvme_path": a folder on the disk'
        elif device != "none" and name == "offload_param" and trains and zero.get("stage") in (0, 1, 2):
            yield path, f"needs ZeRO stage 3, and stage is {zero.get('stage')}: set stage to 3, or remove it"


def _refused(settings: dict[str, Any], zero: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Refuse what would take away the gradient norm or the finite gate, or changes the optimizer."""
    if zero.get("compute_grad_norm") is False:
        yield ("zero_optimization", "compute_grad_norm"), "is false, and every step's norm is logged: remove it"
    if zero.get("zenflow") is not None:
        yield ("zero_optimization", "zenflow"), "replaces the optimizer that the YAML describes: remove it"
    bf16 = settings.get("bf16")
    if isinstance(bf16, dict) and bf16.get("check_grad_overflow") is False:
        yield ("bf16", "check_grad_overflow"), "is false, and steps that are not finite must be skipped: remove it"


def _by_deepspeed(settings: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Validate by DeepSpeed's models, which know every key; imported here, as it takes a second."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import BaseModel, ValidationError

    models: dict[str, type[BaseModel]] = {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "comet": CometConfig,
        "csv_monitor": CSVConfig,
    }
    for name, model in models.items():
        section = settings.get(name)
        if not isinstance(section, dict):
            continue
        plain = {key: value for key, value in section.items() if value != "auto"}
        for key, value in plain.items():
            field = model.model_fields.get(key) or _by_alias(model, key)
            if field is not None and field.annotation is int and isinstance(value, bool):
                yield (name, key), f"expected a number, got {str(value).lower()}: write a number"
        try:
            model(**plain)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                yield (name, *fault["loc"]), _explain(fault, model)
        except (AssertionError, TypeError, ValueError) as error:
            yield (name,), f"DeepSpeed refuses it: {error}: compare it with ds_configs/zero3.json"


def _by_alias(model: Any, key: str) -> Any:
    return next((field for field in model.model_fields.values() if field.alias == key), None)


def _explain(fault: Any, model: Any) -> str:
    if fault["type"] == "extra_forbidden":
        names = [field.alias or name for name, field in model.model_fields.items()]
        close = difflib.get_close_matches(str(fault["loc"][-1]), names, n=1) if len(fault["loc"]) == 1 else []
        return "unknown key: " + (f"did you mean {close[0]}?" if close else "remove it")
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{message}, got {str(fault['input'])[:80]}: mend or remove it"
