"""What a checkpoint must agree with to be gone on from: the configuration that decides training, and what the teacher's
cache holds.

Where and how often things are written, evaluation, and where the cache lies and who was asked for it are free.
"""

from __future__ import annotations

import json
from typing import Any

from kd.config.schema import RunConfig

CACHE = "content of teacher.cache"
_FREE = {
    "training": {"log_every", "save_every", "time_budget_seconds", "checkpoint_format"},
    "run": {"output_dir", "extensions"},
    "data": {"evaluation", "workers", "max_bad_fraction", "quarantine"},
    "teacher": {"endpoint"},
}


def run_identity(config: RunConfig, cache: dict[str, str] | None) -> dict[str, Any]:
    """By key, as JSON gives it back. `cache`: kd.teacher.cache.manifest.content_of of the cache that training reads;
    None where it reads none.
    """
    sections = config.model_dump(exclude={"evaluation": True, "teacher": {"cache": {"path"}}})
    found = {
        f"{section}.{key}": value
        for section, keys in sections.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if key not in _FREE.get(section, ())
    }
    return json.loads(json.dumps(found | {CACHE: cache}))


def difference(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How a checkpoint of identity `was` differs from a run of identity `now`, and the remedy; None where it does
    not.
    """
    other = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    if CACHE in other and CACHE not in was:
        return (
            "an earlier version of this program wrote it, which did not note what was in the teacher's cache, so that "
            "it cannot be told whether this "
            "is the same: give --fresh to begin again, or finish the run with that version"
        )
    if other == [CACHE]:
        return (
            f"it was trained from another teacher.cache ({'; '.join(_of_cache(was[CACHE], now[CACHE]))}): put the old "
            "cache back, choose another "
            "run.name, or give --fresh to begin again"
        )
    shown = "; ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in other[:5])
    return (
        f"it was written with another configuration ({shown}): restore it, choose another run.name, or give --fresh "
        "to begin again"
        if other
        else None
    )


def _of_cache(was: dict[str, str], now: dict[str, str]) -> list[str]:
    found = []
    if was["missing"] != now["missing"]:
        found.append(f"other records have no signal: {was['missing']} then, {now['missing']} now")
    if was["signal"] != now["signal"]:
        found.append(f"it was captured again: its signal was {was['signal']} and is {now['signal']}")
    return found
