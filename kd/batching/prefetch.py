"""Prefetch: one step of the data ahead of the one that is trained."""

from __future__ import annotations

from typing import Any

from kd.batching.micro_batch import MicroBatch
from kd.batching.steps import StepBatches
from kd.records.checks import DataError


class Ahead:
    """Steps of a stage, of which the next may be looked at before it is taken.

    An error in making it is raised when it is taken: the steps before it are trained, and the data's state is that of
    the steps taken.
    """

    def __init__(self, batches: StepBatches):
        self._batches, self._made = batches, iter(batches)
        self._next: tuple[list[MicroBatch], dict[str, Any]] | DataError | None = None

    def look(self) -> None:
        """Make the next step, or keep the error in making it."""
        try:
            self._next = next(self._made), self._batches.state_dict()
        except DataError as error:
            self._next = error

    def take(self) -> tuple[list[MicroBatch], dict[str, Any]]:
        """Return the next step and the data's state after it.

        Raises:
            DataError: making it failed.
        """
        if self._next is None:
            self.look()
        taken, self._next = self._next, None
        assert taken is not None, "look() made the step or kept its error"
        if isinstance(taken, DataError):
            raise taken
        return taken

    @property
    def following(self) -> list[MicroBatch]:
        """The step that was looked at; empty where none was, or making it failed."""
        return self._next[0] if isinstance(self._next, tuple) else []

    def close(self) -> None:
        """End the processes that make steps."""
        self._made.close()
