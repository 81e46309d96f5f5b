"""Identity of a run: settings, and content of the teacher's cache, that must match before a checkpoint is resumed.

Free to change: where and how often things are written, evaluation, where the cache lies and who was asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kd.config.renamed import RENAMED
from kd.config.schema import RunConfig

CACHE = "content of teacher.cache"
CONTENT = "content of "  # begins keys of what is compared by content; earlier versions noted only a part
STEPS = "training.steps"
_MICRO, _ACCUMULATION = "training.micro_batch_size", "training.gradient_accumulation"
_FREE = {
    "training": {
        "log_every",
        "save_every",
        "time_budget_seconds",
        "max_skipped_fraction",
        "peak_tflops",
        "checkpoint_format",
        "keep_best",
        "patience",
    },
    "run": {"output_dir", "extensions", "trackers"},
    "data": {"evaluation", "validation", "workers", "max_bad_fraction", "quarantine"},
    "teacher": {"endpoint"},
}

_FREE_ROLLOUTS = {"shown", "most_shown", "server", "guards"}


def run_identity(
    config: RunConfig, cache: dict[str, str] | None, contents: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """Return what decides training, by dotted key, as JSON gives it back.

    Args:
        cache: kd.teacher.cache.manifest.content_of of the cache that training reads; None where it reads none.
        contents: hashes of what stands behind names: tokenizer, chat template, weights, DeepSpeed JSON.
    """
    sections = config.model_dump(exclude={"evaluation": True, "teacher": {"cache": {"path"}}})
    for stage in sections["data"]["stages"]:
        _leave_free(stage)
    found = {
        f"{section}.{key}": value
        for section, keys in sections.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if key not in _FREE.get(section, ())
    }
    hashes = {CONTENT + name: digest for name, digest in (contents or {}).items()}
    return json.loads(json.dumps(found | hashes | {CACHE: cache}))


def _leave_free(stage: dict[str, Any]) -> None:
    """Take out of a stage what is free to change, and rollouts where it has none, as earlier versions wrote it."""
    rollouts = stage.pop("rollouts", None)
    if rollouts is not None:
        stage["rollouts"] = {key: value for key, value in rollouts.items() if key not in _FREE_ROLLOUTS}


def difference(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Say how a checkpoint of identity `was` differs from a run of identity `now`, and the remedy, or return None."""
    unset = {key: False for key, value in now.items() if value is False}  # a switch that is younger than `was`
    was, now = unset | _with_later_keys(_with_current_names(was)), _with_later_keys(now)
    unknown = {key for key in now.keys() - was.keys() if key.startswith(CONTENT) and key != CACHE}
    other = [key for key in sorted((was.keys() | now.keys()) - unknown) if _differ(was.get(key), now.get(key))]
    if CACHE in other and CACHE not in was:
        return (
            "an earlier version of this program wrote it, which did not note what was in the teacher's cache, so that "
            "it cannot be told whether this is the same: give --fresh to begin again, or finish the run with that "
            "version"
        )
    if other == [CACHE]:
        return (
            f"it was trained from another teacher.cache ({'; '.join(_compare_caches(was[CACHE], now[CACHE]))}): put "
            "the old cache back, choose another run.name, or give --fresh to begin again"
        )
    if not other:
        return None
    shown = "; ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in other[:5])
    return (
        f"it was written with another configuration ({shown}): restore it, choose another run.name, or give --fresh to "
        "begin again"
    )


def with_other_ranks(was: dict[str, Any], now: dict[str, Any], was_ranks: int, now_ranks: int) -> tuple[dict, str]:
    """Return the identity `was` as another number of ranks may resume it, and what that changes in words.

    How a step is split is free: over ranks, micro-batches and their accumulation, and by which ZeRO stage.
    """
    before, after = (
        ranks * identity.get(_MICRO, 1) * identity.get(_ACCUMULATION, 1)
        for ranks, identity in ((was_ranks, was), (now_ranks, now))
    )
    free = (_MICRO, _ACCUMULATION, "training.deepspeed", CONTENT + "training.deepspeed")
    note = f"the checkpoint was written by {was_ranks} ranks and is resumed by {now_ranks}"
    if before != after:
        note += (
            f": a step took {before} rows and takes {after} from here on (training.micro_batch_size x "
            "training.gradient_accumulation x ranks)"
        )
    return was | {key: now[key] for key in free if key in now}, note


def _differ(was: Any, now: Any) -> bool:
    """Tell whether two settings differ; one that an earlier version did not have was unset, or an empty list."""
    return was != now and not (was in (None, []) and now in (None, []))


def _with_later_keys(identity: dict[str, Any]) -> dict[str, Any]:
    """Add the settings that identities of earlier versions lack, at what those versions did."""
    later = {"data.turns": "auto", "student.choose_layers": "even", "student.calibration_records": 128}
    return later | identity  # no record that they could train whole is split by turns


def _with_current_names(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity that may have been written before keys were renamed (kd/config/renamed.py)."""
    found = {key: dict(value) if isinstance(value, dict) else value for key, value in identity.items()}
    for old, new in RENAMED.items():
        section, _, name = old.rpartition(".")
        inner = found if old in found else found.get(section)  # a key of a section, or of a section inside one
        if inner is found:
            found[new] = found.pop(old)
        elif isinstance(inner, dict) and name in inner:
            inner[new.rpartition(".")[2]] = inner.pop(name)
    return found


def _compare_caches(was: dict[str, str], now: dict[str, str]) -> list[str]:
    found = []
    if was["missing"] != now["missing"]:
        found.append(f"other records have no signal: {was['missing']} then, {now['missing']} now")
    if was["signal"] != now["signal"]:
        found.append(f"it was captured again: its signal was {was['signal']} and is {now['signal']}")
    return found
