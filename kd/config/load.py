"""Load one run's YAML: `load_config("configs/demo.yaml", ["training.steps=100"])`.

Strict: every unknown or duplicate key, wrong type, value out of range and contradiction is reported in one ConfigError,
a line each, with the line in the file, the dotted key, the remedy, and the nearest key that exists. The keys and their
documentation are in sections/, contradictions in conflicts/, old names of keys in renamed.py, --set in overrides.py.

The DeepSpeed JSONs in ds_configs/ hold what this YAML does not: ZeRO stage, offload, buckets, and
`data_types.grad_accum_dtype: fp32` (micro-batches otherwise accumulate in bf16). zero3.json keeps everything on the
GPU, zero3_offload.json keeps the optimizer in host memory, zero3_cpu.json has small buckets for runs with no GPU. Batch
sizes, accumulation and clipping are filled in from the YAML, and student.dtype replaces the precision a JSON asks for.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kd.config import yaml as config_yaml
from kd.config.conflicts.find import find_conflicts
from kd.config.conflicts.generation import find_generation_conflicts
from kd.config.deepspeed.check import check_ds_config
from kd.config.defaults import fill_defaults
from kd.config.overrides import apply_overrides, place, without
from kd.config.problems import MOST_LISTED, ConfigError, Report, explain, field_at
from kd.config.registries import import_extension
from kd.config.renamed import rename_keys
from kd.config.schema import RunConfig
from kd.config.sections.generation import GenerationConfig
from kd.config.yaml import Path
from kd.outputs import is_pipe
from kd.paths import expand_path

_REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
Model = TypeVar("Model", bound=BaseModel)
_PIPE_SECONDS = 10.0
_MOST_CHARACTERS = 250_000  # a run's file has some thousands; 50,000 wrong keys took 10 seconds to read


def load_config(path: str | os.PathLike, overrides: Iterable[str] = ()) -> RunConfig:
    """Read and check the YAML at `path`; `overrides` are `a.b=c` with c in YAML (`data.stages.0.max_length=512`).

    Raises ConfigError (a ValueError) with every problem found. Paths of DeepSpeed JSONs come back as files that exist;
    weights left out are filled in and entropy weights normalised, so the result says what the run does.
    """
    report = _begin_report(path, RunConfig)
    data = rename_keys(_read_mapping(report), report)
    data = apply_overrides(data, overrides, report)
    run = data.get("run")
    _import_modules(run.get("extensions") if isinstance(run, dict) else None, ("run", "extensions"), report)
    config = _validate(data, report, RunConfig)
    if config is not None:
        for conflict in find_conflicts(config):
            report.add_conflict(conflict.keys, conflict.message)
        config = _find_files(config, report)
    report.raise_if_any()
    assert config is not None, "a configuration that cannot be checked has a problem"
    return fill_defaults(config)


def dump_config(config: RunConfig) -> str:
    """Write the configuration as YAML, every key written out; load_config gives an equal one from it."""
    return config_yaml.dump(config.model_dump())


def _begin_report(path: str | os.PathLike, model: type[BaseModel]) -> Report:
    """Begin the report on the YAML at `path`. Raises ConfigError where that is no path."""
    try:
        return Report(expand_path(os.fspath(path)), model)
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)!r}: {error}") from None


def _read_mapping(report: Report) -> dict:
    """Read the report's file; faults of single keys go into the report.

    Raises:
        ConfigError: it cannot be read, or is no YAML mapping.
    """
    file = report.file
    try:
        if is_pipe(file):
            text = _read_pipe(file)
        else:
            with open(file, encoding="utf-8-sig") as stream:
                text = stream.read(_MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file (the working directory is {os.getcwd()}): give the path of a YAML file"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{file}: is a folder; give the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is not UTF-8 text: save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}): give a YAML file that can") from None
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{file}: more than {_MOST_CHARACTERS:,} characters: give the run's YAML, not its data")
    try:
        parsed = config_yaml.parse(text)
    except config_yaml.YamlError as error:
        raise ConfigError(f"{file}:{error.line}: not valid YAML: {error}") from None
    report.positions = parsed.lines
    for problem in parsed.problems:
        report.add(problem.path, problem.message, problem.line)
    if parsed.data is not None and not isinstance(parsed.data, dict):
        raise ConfigError(f"{file}:1: expected sections (`run:`, `student:`, ...), not a bare value or list")
    return parsed.data or {}


def _read_pipe(file: str) -> str:
    """Read what is written to a pipe. Raises ConfigError where that takes longer than `_PIPE_SECONDS`."""
    handle, found, until = os.open(file, os.O_RDONLY | os.O_NONBLOCK), b"", time.monotonic() + _PIPE_SECONDS
    try:
        while time.monotonic() < until and len(found) <= 4 * _MOST_CHARACTERS:
            select.select([handle], [], [], 0.1)
            try:
                part = os.read(handle, 1 << 16)
            except BlockingIOError:  # somebody is there who has not written
                continue
            if not part and found:
                return found.decode("utf-8-sig")
            found += part
            time.sleep(0.0 if part else 0.05)  # nobody is there yet
    finally:
        os.close(handle)
    raise ConfigError(
        f"{file}: is a pipe that was not written to its end within {_PIPE_SECONDS:g} s: give a file, or write it first"
    )


def _import_modules(modules: Any, key: Path, report: Report) -> None:
    """Import the modules that the key names; what is no list of texts is left to the schema."""
    for index, module in enumerate(modules if isinstance(modules, tuple) else ()):
        if isinstance(module, str) and module and (fault := import_extension(module)):
            report.add((*key, index), fault)


def _validate(data: dict, report: Report, model: type[Model]) -> Model | None:
    """Validate `data`. Faulty keys are reported and stand-ins take their place, so that contradictions among the others
    are found in the same run; None when even that gives nothing to check.
    """
    for attempt in range(8):  # a stand-in can uncover a fault one level further in, and no section is deeper than this
        try:
            return model.model_validate(data)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            # A list whose every item is faulty is not short: pydantic counts only the good ones.
            inside = {fault["loc"][:size] for fault in faults for size in range(len(fault["loc"]))}
            faults = [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]
        report.omit(len(faults) - MOST_LISTED if attempt == 0 else 0)
        for fault in faults[:MOST_LISTED]:
            path = tuple(part for part in fault["loc"] if part != "[key]")
            if attempt == 0 and not (fault["input"] is None and report.is_bad(path)):  # its tag was refused already
                report.add(path, explain({**fault, "loc": path}, model))
            data = _mend(data, path, fault["type"] == "missing", model)
        if len(faults) > MOST_LISTED:  # this is another file than a run's: its contradictions tell nothing
            return None
    return None


def _mend(data: Any, path: Path, missing: bool, model: type[BaseModel]) -> Any:
    """Copy `data` without the faulty key at `path`, or with the example of its declaration where it is missing."""
    size = len(path)
    while size > 1 and not isinstance(path[size - 1], str):
        size -= 1  # an item of a list cannot be left out: leave out the list
    field = field_at(path[:size], model)
    if missing and size == len(path) and field is not None and field.examples:
        return place(data, path, field.examples[0])
    return without(data, path[:size])


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
            report.add_conflict((f"{name}.deepspeed",), f"no file {section.deepspeed!r} in {looked}: mend the path")
            continue
        for fault in check_ds_config(found[0], config, trains=name == "training"):
            report.add_conflict((f"{name}.deepspeed", *fault.yaml_keys), fault.message)
        config = config.model_copy(update={name: section.model_copy(update={"deepspeed": found[0]})})
    return config


def load_generation(path: str | os.PathLike, overrides: Iterable[str] = ()) -> GenerationConfig:
    """Read and check the YAML of a data set that is generated, as `load_config` does a run's.

    Raises:
        ConfigError: with every problem found.
    """
    report = _begin_report(path, GenerationConfig)
    data = apply_overrides(_read_mapping(report), overrides, report)
    _import_modules(data.get("extensions"), ("extensions",), report)
    config = _validate(data, report, GenerationConfig)
    if config is not None:
        for conflict in find_generation_conflicts(config):
            report.add_conflict(conflict.keys, conflict.message)
    report.raise_if_any()
    assert config is not None, "a configuration that cannot be checked has a problem"
    return config
