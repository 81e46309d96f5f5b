"""Experiment trackers (Weights & Biases, MLflow, Trackio, ...) by name, through accelerate's tracking.

Each takes its place, key and mode, offline included, from its own environment variables. One that fails stops no
training: what it was told is in metrics.jsonl too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kd.errors import SpanwiseError, first_line


class TrackerError(SpanwiseError, ValueError):
    """Tracker of run.trackers that is not known, or whose package is not installed."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that every tracker can be made here. Raises TrackerError."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    available = {str(getattr(one, "value", one)) for one in get_available_trackers()}
    packages = {str(kind.value) for kind in LoggerType}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrackerError(
                f"run.trackers: no tracker {name!r}: choose from {', '.join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))}"
            )
        if name in packages and name not in available:  # of one of the user's own nothing is known
            raise TrackerError(f"run.trackers: the package of {name} is not installed: pip install it, or remove it")


class Trackers:
    """Trackers of one run, on rank 0; they begin with the first values.

    Args:
        names: of run.trackers, checked before.
        folder: for those that write files; made when they begin.
        settings: the run's configuration; told by dotted key, lists as text.
        say: told where one fails.
    """

    def __init__(
        self, names: Sequence[str], run_name: str, folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
    ):
        self._names, self._run_name, self._folder = list(names), run_name, folder
        self._settings, self._say = settings, say
        self._open: dict[str, Any] | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give each tracker the values of a step."""
        if not self._names:
            return
        if self._open is None:
            self._open = {}
            for name in self._names:
                self._try(name, lambda name=name: self._begin(name))
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.log(dict(values), step=step))

    def close(self) -> None:
        """Finish each tracker's run."""
        for name, tracker in list((self._open or {}).items()):
            self._try(name, tracker.finish)
        self._open = {}

    def _begin(self, name: str) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        threads = torch.get_num_threads()
        PartialState(
            cpu=not torch.cuda.is_available()
        )  # accelerate's log asks for it; it takes the group that is there
        torch.set_num_threads(threads)  # which it may change, and with them the order of sums
        kind = LOGGER_TYPE_TO_CLASS[name]
        self._folder.mkdir(parents=True, exist_ok=True)
        place = {"logging_dir": str(self._folder)} if kind.requires_logging_directory else {}
        tracker = kind(self._run_name, **place)
        tracker.start()
        assert self._open is not None, "log opens it"
        self._open[name] = tracker
        tracker.store_init_configuration(dict(_flatten(self._settings, "")))

    def _try(self, name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of any tracker's own types; an exit would end the run without a word
            (self._open or {}).pop(name, None)
            self._say(f"tracker {name} ends here ({first_line(error)}); training goes on, and metrics.jsonl has all")


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, bool | float | str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
