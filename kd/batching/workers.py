"""Workers: processes that do work ahead of the training loop."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kd.config.registries import import_extension, imported_extensions
from kd.records.checks import DataError


def num_workers(asked: int | None) -> int:
    """Return data.workers, or its default: 2 where there is a GPU, and none on a CPU, whose cores all train."""
    return asked if asked is not None else 2 if torch.cuda.is_available() else 0


def in_order(function: Callable[[Any], Any], items: Iterable[Any], num_workers: int) -> Generator[Any, None, None]:
    """Yield function(item) for each of `items` (endless, if need be), in their order; made ahead of time by
    `num_workers` processes, or by this one when asked for where that is 0.

    A DataError of `function` is raised here at its item's turn, unchanged. A worker imports the user's modules
    (run.extensions) before its first item.

    Processes and not a thread: rendering is Python, and its thread would hold the interpreter that launches the step's
    kernels. torch's DataLoader and not torchdata's StatefulDataLoader: items are made here, so no worker has a state.
    The workers end when the iterator is closed or forgotten, or when this process ends in any way.
    """
    if num_workers == 0:
        return (function(item) for item in items)
    results = _from_workers(function, items, num_workers)
    forgotten = weakref.ref(results)
    # An error's traceback can keep the iterator to the very end, where multiprocessing would wait for its workers for
    # ever.
    atexit.register(lambda: (kept := forgotten()) and kept.close())
    return results


def _from_workers(function: Callable[[Any], Any], items: Iterable[Any], num_workers: int) -> Generator[Any, None, None]:
    # Its own generator: DataLoader would draw a seed from torch's, and a resumed run would draw one more than a whole
    # one.
    loader = DataLoader(
        _Calls(function),
        sampler=items,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        multiprocessing_context="spawn",
        worker_init_fn=partial(_start_worker, extensions=imported_extensions()),
        generator=torch.Generator(),
    )
    for pickled in loader:
        result = pickle.loads(pickled)
        if isinstance(result, DataError):
            raise result
        yield result


class _Calls(Dataset):
    def __init__(self, function):
        self._function = function

    def __getitem__(self, item):
        try:
            result = self._function(item)
        except DataError as error:
            result = error
        # Bytes go through a pipe; DataLoader sends tensors as files, of which a process may open few.
        return pickle.dumps(result)


def _unchanged(result):
    return result


def _start_worker(worker_id: int, extensions: tuple[str, ...]) -> None:
    for module in extensions:
        import_extension(module)  # it was imported in the parent, so it can be
    # A signal to the whole job is the trainer's to act on: it saves first, and needs the step that is being made.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # DataLoader's worker would wait for ever to hand over what it made if the trainer is killed.
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)
