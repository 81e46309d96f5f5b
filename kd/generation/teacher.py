"""Questions to a server: each paid once, kept by its content, and free of private reasoning."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kd.config.sections.generation import Sampling
from kd.config.sections.teacher import Endpoint
from kd.endpoint.cards import explain_missing, read_cards
from kd.endpoint.chat import Chat, ChatError, TokenLimit, fit_names, read_chat, write_messages, write_tools
from kd.endpoint.http import EndpointError, Failed, Refused, Wire
from kd.generation.budget import Budget, Usage, read_usage
from kd.generation.journal import Journal, name_value
from kd.generation.reasoning import clean_chat
from kd.toolcalls.json_values import encode_json

_TOKEN_BYTES, _LEAST_BYTES = 64, 2**20  # an answer of more is not read
_MOST_BAD = 3  # answers that are none, of one question


class Said(NamedTuple):
    """Answer without reasoning. `had_reasoning`: some was cut out; `usage`: None where the server told none."""

    chat: Chat
    had_reasoning: bool
    usage: Usage | None = None


class Question(NamedTuple):
    """One request.

    Attributes:
        messages, tools: as a record has them.
        seed: of the draw; equal questions with unequal seeds are asked apart.
        caws: context that the teacher sees in the messages, as the record carries it.
    """

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]]
    seed: int
    caws: dict[str, Any] | None = None


class Teacher:
    """Server that is asked within the budget.

    Attributes:
        counts: answers of this start by what happened: asked, kept (out of the journal), unreadable.
    """

    def __init__(self, wire: Wire, settings: Endpoint, sampling: Sampling, budget: Budget, journal: Journal):
        self._wire, self._settings, self._sampling = wire, settings, sampling
        self._budget, self._journal = budget, journal
        self._limit = TokenLimit()
        self._under_way: dict[str, asyncio.Future[Said]] = {}
        self.counts: Counter[str] = Counter()

    async def check(self, key: str, say: Callable[[str], None]) -> None:
        """Check that a server is there, and say so where it does not list the model, as some serve what they do not.

        key: the configuration's of the model.

        Raises:
            EndpointError: it cannot be reached.
        """
        try:
            cards = read_cards(await self._wire.ask("GET", "/models"))
        except (Refused, Failed) as error:
            if not str(error).startswith("status "):
                raise EndpointError(f"{self._wire.name}: {error}") from None
            return  # it is there, and keeps no list
        if self._settings.model not in cards:
            say(f"{key}: {explain_missing(self._settings.model, cards, self._wire.hide)}")

    async def ask(self, question: Question) -> Said:
        """Take an answer out of the journal, or pay for one; the same question is never under way twice.

        Raises:
            BudgetReached: it cannot be paid.
            Refused, Failed, EndpointError: as `Wire.ask`.
        """
        body = self._write_body(question)
        key = name_value(body, question.seed, question.caws)
        kept = self._journal.find("answer", key)
        if kept is not None:
            self.counts["kept"] += 1
            return _read_kept(kept)
        if key in self._under_way:
            return await asyncio.shield(self._under_way[key])
        future = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            said = await self._ask(body, key)
        except BaseException as error:
            if not isinstance(error, Exception):
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # nobody else may be waiting for it
            raise
        finally:
            del self._under_way[key]
        future.set_result(said)
        return said

    def _write_body(self, question: Question) -> dict[str, Any]:
        names = fit_names(question.tools)
        tools = [strip_returns(tool) for tool in question.tools]
        return {
            "model": self._settings.model,
            "messages": write_messages(question.messages, names),
            **({"tools": write_tools(tools, names)} if tools else {}),
            "max_tokens": self._sampling.max_new_tokens,
            "stream": False,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "seed": question.seed,
        }

    async def _ask(self, body: dict[str, Any], key: str) -> Said:
        num_bytes = len(encode_json([body["messages"], body.get("tools")]))
        most_bytes = _LEAST_BYTES + _TOKEN_BYTES * self._sampling.max_new_tokens
        for _ in range(_MOST_BAD):
            sent, limit = dict(body), self._limit.name
            sent[limit] = sent.pop("max_tokens")
            bill = _Bill(self, num_bytes, key)
            try:
                await self._wire.ask("POST", "/chat/completions", sent, max_bytes=most_bytes, meter=bill)
            except Refused as error:
                if not self._limit.learn(str(error), limit):
                    raise
                continue
            if bill.said is not None:
                return bill.said
            self.counts["unreadable"] += 1
        raise Failed(f"no chat completion in {_MOST_BAD} answers")

    def settle(self, number: int, most: Usage, key: str, answer: Any | None, sent: bool) -> Said | None:
        """Write what an attempt did cost, with its answer where it gave one."""
        said = None
        try:
            if not sent:
                self._journal.charge(number, 0)
                return None
            cost = self._budget.price(read_usage(answer), most)
            try:
                chat = read_chat(answer)
            except ChatError:
                self._journal.charge(number, cost)
                return None
            said = Said(*clean_chat(chat, answer), read_usage(answer))
            self.counts["asked"] += 1
            value = {**said.chat._asdict(), "had_reasoning": said.had_reasoning, "usage": said.usage}
            self._journal.keep_answer(key, number, cost, value)
            return said
        finally:
            self._budget.free(most)

    def bound(self, num_bytes: int) -> Usage:
        """Return the most tokens that a request of so many bytes can cost."""
        return Usage(num_bytes + self._budget.overhead, self._sampling.max_new_tokens)

    async def reserve(self, most: Usage) -> int:
        """Reserve an attempt."""
        return await self._budget.reserve(most)


class _Bill:
    """Meter (kd.endpoint.http.Meter) of one question; `said` is its answer, once there is one that can be read."""

    def __init__(self, teacher: Teacher, num_bytes: int, key: str):
        self._teacher, self._num_bytes, self._key = teacher, num_bytes, key
        self._number, self._most = 0, Usage(0, 0)
        self.said: Said | None = None

    async def begin(self) -> None:
        self._most = self._teacher.bound(self._num_bytes)
        self._number = await self._teacher.reserve(self._most)

    def end(self, answer: Any | None, *, sent: bool) -> None:
        self.said = self._teacher.settle(self._number, self._most, self._key, answer, sent)


def _read_kept(value: dict[str, Any]) -> Said:
    calls = [(name, arguments) for name, arguments in value["calls"]]
    usage = value["usage"] and Usage(*value["usage"])
    return Said(Chat(value["text"], calls, value["num_tokens"], value["finished"]), value["had_reasoning"], usage)


def strip_returns(tool: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a declaration says of results: it is the broker's, and no field of the API."""
    return {**tool, "function": {key: value for key, value in tool["function"].items() if key != "returns"}}
