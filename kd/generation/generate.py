"""A data set's run: all tasks by a bounded number of workers, each conversation journaled as it ends, then the files.

What a kill leaves is the journal; the same command asks only what is not in it, and writes the same files. Between the
workers nothing is kept in memory but a task each, and 16 bytes of every conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kd.config.sections.generation import GenerationConfig
from kd.endpoint.http import EndpointError, Failed, Refused
from kd.generation.budget import BudgetReached
from kd.generation.conversation import Played, Player
from kd.generation.journal import Journal, name_value
from kd.generation.prompts.task import Task
from kd.generation.quality import Judge, Quality
from kd.generation.scrub import Scrubber
from kd.generation.teacher import strip_returns
from kd.records.checks import DataError, decode_json
from kd.records.record import parse_record
from kd.toolcalls.json_values import encode_json

Progress = Callable[[int, int, int], None]  # (conversations that have ended, those that failed, spent)
_SYNC_SECONDS = 1.0  # of answers that a power cut may lose
_LEAST_FAILED = 5  # conversations that may fail whatever part of all they are


class Ended(NamedTuple):
    """How the asking ended.

    Attributes:
        num_tasks: that were reached; all of them unless the budget ended it.
        num_failed: conversations without an answer; the next start asks them again.
        reached: the budget's limit ended it.
        keys: of every task that was reached, in order, 16 bytes each.
    """

    num_tasks: int
    num_failed: int
    reached: bool
    keys: list[bytes]


class Run:
    """Asking of one start."""

    def __init__(
        self, config: GenerationConfig, fingerprint: str, player: Player, journal: Journal, progress: Progress
    ):
        self._config, self._player, self._journal = config, player, journal
        self._fingerprint, self._progress = fingerprint, progress
        self._judge = Judge(config.answers)
        self._scrubber = Scrubber() if config.answers.scrub else None
        self._num_ended = self._num_failed = 0
        self._reached = False
        self._keys: list[bytes] = []

    async def ask(self, tasks: Iterator[Task]) -> Ended:
        """Ask all tasks, several at once.

        Raises:
            EndpointError: the server answers no more, or too many conversations have failed.
            RewardError: a reward raised.
        """
        ended = asyncio.Event()
        syncing = asyncio.ensure_future(self._sync(ended))
        workers = [asyncio.ensure_future(self._work(tasks)) for _ in range(self._config.endpoint.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            ended.set()
            await syncing
        return Ended(len(self._keys), self._num_failed, self._reached, self._keys)

    async def _sync(self, ended: asyncio.Event) -> None:
        """Force the journal to disk now and then, in a thread: a disk may take long."""
        while not ended.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ended.wait(), _SYNC_SECONDS)
            await asyncio.to_thread(self._journal.sync)

    async def _work(self, tasks: Iterator[Task]) -> None:
        while not self._reached and (task := next(tasks, None)) is not None:
            key = name_value(task.key, self._fingerprint)
            self._keys.append(bytes.fromhex(key))
            if self._journal.find("done", key) is None:
                await self._settle(task, key)
            self._num_ended += 1
            self._progress(self._num_ended, self._num_failed, self._journal.spent)
            await asyncio.sleep(0)  # tasks that are all there already leave room for the others

    async def _settle(self, task: Task, key: str) -> None:
        try:
            value = await self._play(task)
        except BudgetReached:
            self._reached = True
            return
        except Refused as error:
            value = {"problem": "refused by the server", "words": str(error)[:200], "split": task.split}
        except Failed as error:
            self._num_failed += 1
            allowed = max(_LEAST_FAILED, self._config.endpoint.max_missing * len(self._keys))
            if self._num_failed > allowed:
                raise EndpointError(
                    f"{self._config.endpoint.url}: {self._num_failed} of {len(self._keys)} conversations failed, more "
                    f"than endpoint.max_missing ({self._config.endpoint.max_missing:g}); the last: {error}; what was "
                    "answered is kept: give the same command again"
                ) from None
            return
        self._journal.keep("done", key, value)

    async def _play(self, task: Task) -> dict[str, Any]:
        """Play a task num_samples times: the best conversation as a record, or the reason why there is none."""
        best: tuple[Quality, Played] | None = None
        notes, problems = Counter[str](), Counter[str]()
        usage = [0, 0]
        for sample in range(self._config.sampling.num_samples):
            played = await self._player.play(task, self._config.seed + sample)
            notes += played.notes
            usage = [one + other for one, other in zip(usage, played.usage)]
            if played.problem:
                problems[played.problem] += 1
                continue
            quality = self._judge.judge(task, played)
            if best is None or quality.value > best[0].value:
                best = quality, played
        known = {"split": task.split, "notes": dict(notes), "usage": usage, "kind": task.kind}
        if best is None:
            return {"problem": problems.most_common(1)[0][0], **known}
        quality, played = best
        if quality.value < self._config.answers.min_quality:
            return {"problem": "quality under min_quality", **known}
        record = self._make_record(task, quality, played, notes)
        try:
            parse_record(decode_json(encode_json(record), task.source), task.source)  # as it will be read
        except DataError as error:
            return {"problem": "not a record", "words": str(error)[:200], **known}
        return {"record": record, **known, "notes": dict(notes)}

    def _make_record(self, task: Task, quality: Quality, played: Played, notes: Counter[str]) -> dict[str, Any]:
        meta = {"kind": task.kind, "template": task.template, "quality_parts": quality.parts}
        messages = played.messages
        if self._scrubber is not None:
            messages = self._scrubber.scrub(messages, notes)
        return {
            "id": task.key,
            "messages": messages,
            "tools": [strip_returns(tool) for tool in task.tools],
            "quality": quality.value,
            **({"caws": task.caws} if task.caws is not None else {}),
            "meta": {name: value for name, value in meta.items() if value != ""} | {"source": _short(task.source)},
        }


def _short(source: str) -> str:
    return source.rpartition("/")[2]  # a file's name and line: folders are the user's own
