"""Load one run's YAML: `load_config("configs/demo.yaml", ["training.steps=100"])`.

Strict: every unknown or duplicate key, wrong type, value out of range and contradiction is reported in one ConfigError,
a line each, with the line in the file, the dotted key, the remedy, and the nearest key that exists. The keys and their
documentation are in sections/, contradictions in conflicts.py, old names of keys in renamed.py.

The DeepSpeed JSONs in ds_configs/ hold what this YAML does not: ZeRO stage, offload, buckets, and
`data_types.grad_accum_dtype: fp32` (micro-batches otherwise accumulate in bf16). zero3.json keeps everything on the
GPU, zero3_offload.json keeps the optimizer in host memory, zero3_cpu.json has small buckets for runs with no GPU. Batch
sizes, accumulation and clipping are filled in from the YAML, and student.dtype replaces the precision a JSON asks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from kd.config import yaml as config_yaml
from kd.config.conflicts import conflicts
from kd.config.defaults import fill_defaults
from kd.config.problems import ConfigError, Report, dotted, explain, field_at, undotted
from kd.config.registries import import_extension
from kd.config.renamed import check_overrides, rename_key, rename_keys
from kd.config.schema import RunConfig
from kd.config.yaml import Path
from kd.paths import expand_path

_REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_MISSING = object()


def load_config(path: str | os.PathLike, overrides: Iterable[str] = ()) -> RunConfig:
    """Read and check the YAML at `path`; `overrides` are `a.b=c` with c in YAML (`data.stages.0.max_length=512`).

    Raises ConfigError (a ValueError) with every problem found. Paths of DeepSpeed JSONs come back as files that exist;
    weights left out are filled in and entropy weights normalised, so the result says what the run does.
    """
    try:
        report = Report(expand_path(os.fspath(path)))
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)!r}: {error}") from None
    overrides = list(overrides)
    data = rename_keys(_read(report), report)
    check_overrides(overrides, report)
    for override in overrides:
        data = rename_keys(_override(data, override, report), report)
    _import_extensions(data, report)
    config = _validate(data, report)
    if config is not None:
        for conflict in conflicts(config):
            report.add_conflict(conflict.keys, conflict.message)
        config = _find_files(config, report)
    report.raise_if_any()
    assert config is not None, "a configuration that cannot be checked has a problem"
    return fill_defaults(config)


def dump_config(config: RunConfig) -> str:
    """Write the configuration as YAML, every key written out; load_config gives an equal one from it."""
    return config_yaml.dump(config.model_dump())


def _read(report: Report) -> dict:
    file = report.file
    try:
        with open(file, encoding="utf-8-sig") as stream:
            parsed = config_yaml.parse(stream.read())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file (the working directory is {os.getcwd()})") from None
    except IsADirectoryError:
        raise ConfigError(f"{file}: is a folder; give the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is not UTF-8 text: save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except config_yaml.YamlError as error:
        raise ConfigError(f"{file}:{error.line}: not valid YAML: {error}") from None
    report.positions = parsed.lines
    for problem in parsed.problems:
        report.add(problem.path, problem.message, problem.line)
    if parsed.data is not None and not isinstance(parsed.data, dict):
        raise ConfigError(f"{file}:1: expected sections (`run:`, `student:`, ...), not a bare value or list")
    return parsed.data or {}


def _override(data: dict, override: str, report: Report) -> dict:
    """Apply one `a.b=c` to `data`; lists are reached by index and cannot grow."""
    key, equals, text = override.partition("=")
    path = undotted(key.strip())
    if not equals or "" in path or ":" in key:
        report.add_override(override, "expected key=value, for example training.steps=100")
        return data
    try:
        parsed = config_yaml.parse(text)
    except config_yaml.YamlError as error:
        report.add_override(override, f"the value is not valid YAML: {error}")
        return data
    path = rename_key(path)
    changed = _place(data, path, parsed.data)
    if changed is _MISSING:
        report.add_override(
            override,
            f"there is no place {dotted(path)}: a list has only the indices written in the file, a value has no keys",
        )
        return data
    report.positions = {old: line for old, line in report.positions.items() if old[: len(path)] != path}
    report.overridden = {old for old in report.overridden if old[: len(path)] != path} | {path}
    for problem in parsed.problems:
        report.add((*path, *problem.path), problem.message)
    return changed


def _place(data: Any, path: Path, value: Any) -> Any:
    """Copy `data` with `value` at `path`; return _MISSING where there is no such place."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if data is None or isinstance(data, dict):
        inner = _place((data or {}).get(str(head)), rest, value)
        return inner if inner is _MISSING else {**(data or {}), str(head): inner}
    if isinstance(data, tuple) and isinstance(head, int) and head < len(data):
        inner = _place(data[head], rest, value)
        return inner if inner is _MISSING else (*data[:head], inner, *data[head + 1 :])
    return _MISSING


def _import_extensions(data: dict, report: Report) -> None:
    """Import the modules of run.extensions; what is no list of texts is left to the schema."""
    run = data.get("run")
    modules = run.get("extensions") if isinstance(run, dict) else None
    for index, module in enumerate(modules if isinstance(modules, tuple) else ()):
        if isinstance(module, str) and module and (fault := import_extension(module)):
            report.add(("run", "extensions", index), fault)


def _validate(data: dict, report: Report) -> RunConfig | None:
    """Validate `data`. Faulty keys are reported and stand-ins take their place, so that contradictions among the others
    are found in the same run; None when even that gives nothing to check.
    """
    for attempt in range(8):  # a stand-in can uncover a fault one level further in, and no section is deeper than this
        try:
            return RunConfig.model_validate(data)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            # A list whose every item is faulty is not short: pydantic counts only the good ones.
            inside = {fault["loc"][:size] for fault in faults for size in range(len(fault["loc"]))}
            faults = [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]
        for fault in faults:
            path = tuple(part for part in fault["loc"] if part != "[key]")
            if attempt == 0 and not (fault["input"] is None and report.is_bad(path)):  # its tag was refused already
                report.add(path, explain({**fault, "loc": path}))
            data = _mend(data, path, fault["type"] == "missing")
    return None


def _mend(data: Any, path: Path, missing: bool) -> Any:
    """Copy `data` without the faulty key at `path`, or with the example of its declaration where it is missing."""
    size = len(path)
    while size > 1 and not isinstance(path[size - 1], str):
        size -= 1  # an item of a list cannot be left out: leave out the list
    field = field_at(path[:size])
    if missing and size == len(path) and field is not None and field.examples:
        return _place(data, path, field.examples[0])
    return _without(data, path[:size])


def _without(data: Any, path: Path) -> Any:
    if isinstance(data, tuple):
        return tuple(_without(item, path[1:]) if i == path[0] else item for i, item in enumerate(data))
    if not isinstance(data, dict) or path[0] not in data:
        return data
    if len(path) == 1:
        return {key: value for key, value in data.items() if key != path[0]}
    return {**data, path[0]: _without(data[path[0]], path[1:])}


def _find_files(config: RunConfig, report: Report) -> RunConfig:
    """Find the DeepSpeed JSONs, from the working directory, the YAML's folder, the repository."""
    for name in ("training", "teacher"):
        section = getattr(config, name)
        if section is None or section.deepspeed is None:
            continue
        folders = ("", os.path.dirname(report.file), _REPOSITORY)
        found = [
            file for file in (os.path.join(folder, section.deepspeed) for folder in folders) if os.path.isfile(file)
        ]
        if not found:
            looked = ", ".join(dict.fromkeys(os.path.abspath(folder) for folder in folders))
            report.add_conflict((f"{name}.deepspeed",), f"no file {section.deepspeed!r} in {looked}")
            continue
        if fault := _check_json(found[0], trains=name == "training"):
            report.add_conflict((f"{name}.deepspeed",), fault)
        config = config.model_copy(update={name: section.model_copy(update={"deepspeed": found[0]})})
    return config


def _check_json(file: str, trains: bool) -> str | None:
    """Say what is wrong with a DeepSpeed JSON, or None. Optimizers without ZeRO have no gradient norm to log, and no
    finite gate.
    """
    try:
        with open(file, encoding="utf-8") as stream:
            settings = json.load(stream)
    except json.JSONDecodeError as error:
        return f"{file}:{error.lineno}: not valid JSON: {error.msg}"
    except (OSError, UnicodeDecodeError) as error:
        return f"{file}: cannot be read: {error}"
    zero = settings.get("zero_optimization", {}) if isinstance(settings, dict) else None
    if not isinstance(zero, dict):
        return f"{file}: expected an object with an object zero_optimization in it, as in ds_configs/zero3.json"
    stage = zero.get("stage", 0)
    if trains and stage not in (1, 2, 3):
        return (
            f"{file}: zero_optimization.stage is {stage}, where DeepSpeed may measure no gradient norm and take a "
            "step that is not finite: "
            "use 1, 2 or 3, as ds_configs/zero3.json does"
        )
    return None
