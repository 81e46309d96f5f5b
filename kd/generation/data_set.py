"""A data set, start to end: what a configuration names is opened and checked, asked, written, and told."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kd.config.sections.generation import GenerationConfig
from kd.config.sections.teacher import Endpoint
from kd.endpoint.connections import check_files_left
from kd.endpoint.http import SYSTEM_CLOCK, Clock, Wire, Words
from kd.errors import SpanwiseError
from kd.evaluation.conversations.results import load_simulator
from kd.folders.lock import FolderLock
from kd.generation.broker import Broker, Fixtures, Function, check_returns
from kd.generation.budget import UNIT, Budget, Usage
from kd.generation.card import Card, describe_config, list_outputs, write_card, write_records
from kd.generation.conversation import Player
from kd.generation.generate import Ended, Progress, Run
from kd.generation.journal import Journal
from kd.generation.source import Source
from kd.generation.teacher import Teacher
from kd.outputs import OutputError, check_outputs
from kd.records.files import expand

_FIRST_RETRIES = 2
_KEPT = "what was answered is kept; give the same command again"


class GenerationError(SpanwiseError, RuntimeError):
    """Data set that has no record."""


class Estimate(NamedTuple):
    """Estimate of a whole data set by a sample, with a 95 % interval of the cost."""

    num_sample: int
    num_all: int
    cost: float
    low: float
    high: float
    seconds: float
    prompt_tokens: float
    completion_tokens: float


def _words(section: str) -> Words:
    names = ("url", "model", "api_key_env", "deadline_seconds", "record_deadline_seconds")
    return Words(*(f"{section}.{name}" for name in names), kept=_KEPT)


class DataSet:
    """Data set of a configuration, in its folder, which no other process uses meanwhile: `with DataSet(...) as one`.

    Args:
        say: told, in words, what a person should know.
        clock: of the requests, so that tests need not wait.

    Raises:
        SpanwiseError: something that the configuration names cannot be used; nothing was asked.
    """

    def __init__(self, config: GenerationConfig, say: Callable[[str], None] = print, clock: Clock = SYSTEM_CLOCK):
        self._config, self._say, self._clock = config, say, clock
        self.out = Path(config.output_dir)
        self.source = Source(config)
        if self.source.tools is not None:
            check_returns(list(self.source.tools), f"prompts.tools: {config.prompts.tools}")
        broker = config.broker
        self._fixtures = Fixtures(Path(broker.fixtures)) if broker.fixtures else None
        self._function = None
        if broker.function:
            self._function = Function(broker.function, load_simulator(broker.function), broker.timeout_seconds)
        inputs = [("prompts.files", path) for path in expand(config.prompts.files or ())]
        outputs = list_outputs(self.out)
        check_outputs(outputs, inputs)
        odd = [one.path for one in outputs if one.path.exists() and not one.path.is_file()]
        if odd:  # a device, say, in whose place a file would be put
            raise OutputError(f"output_dir: {odd[0]} is no file: move it away, or name another folder")
        self._lock = FolderLock(self.out)
        holder = self._lock.take()
        if holder is not None:
            raise OutputError(
                f"output_dir: {self.out} is in use by {holder}: wait for it, end it, or name another folder"
            )
        try:
            self.journal = Journal(self.out)
        except (OSError, OutputError):
            self._lock.release()
            raise
        self._budget: Budget | None = None

    def __enter__(self) -> DataSet:
        return self

    def __exit__(self, *unused: object) -> None:
        self.journal.close()
        self._lock.release()

    def ask(self, most: int | None = None, progress: Progress = lambda *unused: None) -> Ended:
        """Ask the tasks, the first `most` of them; what is in the journal is not asked again.

        Raises:
            EndpointError, SpanwiseError: as `Run.ask`.
        """
        check_files_left()
        return asyncio.run(self._ask(most, progress))

    async def _ask(self, most: int | None, progress: Progress) -> Ended:
        config = self._config
        self._budget = Budget(config.spending, self.journal)
        wires: list[Wire] = []
        try:
            teacher = await self._open(config.endpoint, "endpoint", wires)
            second = config.broker.endpoint
            player = await self._open(second, "broker.endpoint", wires) if second is not None else None
            broker = Broker(config.seed, self.journal, fixtures=self._fixtures, function=self._function, player=player)
            run = Run(
                config,
                self.source.fingerprint,
                Player(teacher, broker, config.sampling, config.answers),
                self.journal,
                progress,
            )
            return await run.ask(self.source.read(most))
        finally:
            for wire in wires:
                await wire.close()

    async def _open(self, settings: Endpoint, section: str, wires: list[Wire]) -> Teacher:
        assert self._budget is not None, "made before"
        first = settings.model_copy(update={"retries": min(settings.retries, _FIRST_RETRIES)})
        for one in (first, settings):  # a wrong address is told within seconds
            wires.append(Wire(one, self._say, self._clock, _words(section)))
        first_teacher, teacher = (
            Teacher(wire, settings, self._config.sampling, self._budget, self.journal) for wire in wires[-2:]
        )
        await first_teacher.check(f"{section}.model", self._say)
        return teacher

    def write(self, ended: Ended) -> Card:
        """Write the records and the card, and return the card.

        Raises:
            GenerationError: there is no record.
            OSError: a file cannot be written.
        """
        made = write_records(self.out, ended.keys, self.journal)
        budget = self._budget
        assert budget is not None, "asked before"
        card = {
            "fingerprint": self.source.fingerprint,
            **made,
            "complete": not ended.reached and not made["open"],
            "duplicates": dict(sorted(self.source.duplicates.items())),
            "spent": {"total": budget.spent, "unknown": budget.num_unknown, "over": budget.num_over},
            "config": describe_config(self._config),
        }
        write_card(self.out, card)
        if not made["records"]:
            reasons = ", ".join(f"{num} {reason}" for reason, num in made["dropped"].items()) or "none was answered"
            raise GenerationError(f"{self.out}: no record was made of {len(ended.keys)} prompts: {reasons}")
        return card

    def estimate(self, num: int, progress: Progress = lambda *unused: None) -> Estimate:
        """Ask the first `num` tasks, which are kept, and estimate what all of them cost.

        Raises:
            GenerationError: none was answered.
            EndpointError, SpanwiseError: as `ask`.
        """
        begun = time.monotonic()
        num_before = self.journal.count("answer")
        ended = self.ask(num, progress)
        wall = time.monotonic() - begun
        assert self._budget is not None, "asked before"
        costs, tokens = [], [0, 0]
        for key in ended.keys:
            value = self.journal.find("done", key.hex())
            if value is not None and "usage" in value:
                usage = Usage(*value["usage"])
                costs.append(self._budget.bound(usage) / UNIT)
                tokens = [one + other for one, other in zip(tokens, usage)]
        if not costs:
            raise GenerationError(f"{self.out}: none of the {len(ended.keys)} prompts of the sample was answered")
        num_all = self._config.prompts.num if self._config.prompts.files is None else None
        if num_all is None:
            num_all = sum(1 for _ in self.source.read())
        mean = sum(costs) / len(costs)
        spread = math.sqrt(sum((cost - mean) ** 2 for cost in costs) / max(len(costs) - 1, 1) / len(costs))
        asked = max(self.journal.count("answer") - num_before, 1)
        parallel = min(self._config.endpoint.concurrency, len(costs))
        seconds = wall / max(asked, len(costs)) * parallel / self._config.endpoint.concurrency * num_all
        return Estimate(
            len(costs),
            num_all,
            mean * num_all,
            max(mean - 1.96 * spread, 0) * num_all,
            (mean + 1.96 * spread) * num_all,
            seconds,
            tokens[0] / len(costs) * num_all,
            tokens[1] / len(costs) * num_all,
        )
