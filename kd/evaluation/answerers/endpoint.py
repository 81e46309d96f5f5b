"""Answers of an OpenAI-compatible server, by chat completions with its own `tools`.

What a server returns as `tool_calls` is judged as calls. Where it returns none, and text that has calls in it, these
are read as written: in <tool_call> tags, else in any of the forms of kd/toolcalls/text/text_calls.py.

A prompt that the server refuses, as one that is too long, counts as not answered. Where a request fails with all its
attempts, the server is asked something else; if that fails too, or more than `max_missing` of the prompts have failed,
the evaluation ends, and what was answered is in the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kd.config.schema import Endpoint
from kd.endpoint.calls import read_calls
from kd.endpoint.cards import explain_missing, read_cards
from kd.endpoint.chat import Chat, ChatError, TokenLimit, fit_names, read_chat, write_messages, write_tools
from kd.endpoint.connections import check_files_left
from kd.endpoint.http import SYSTEM_CLOCK, Clock, EndpointError, Failed, Refused, Wire, Words
from kd.evaluation.answerers.answer import Answer, Progress, Prompt
from kd.evaluation.answerers.journal import Journal
from kd.rollouts.decode import Sampling
from kd.toolcalls.parsed import ParsedCalls

WORDS = Words(
    "--model",
    "--endpoint-model",
    "--api-key-env",
    "--deadline",
    "--prompt-deadline",
    "what was answered is kept; give the same command again",
)
_TOKEN_BYTES, _LEAST_BYTES = 64, 2**20  # an answer of more is not read
_FIRST_RETRIES = 2  # a wrong address is told within seconds
_OPENING = Prompt(
    [{"role": "user", "content": "How is the weather in Oslo?"}],
    [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Look up the weather of a place.",
                "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
            },
        }
    ],
)


class Server(NamedTuple):
    """Endpoint that is asked, and how.

    Attributes:
        settings: address, model, key's variable, concurrency and limits; model "" takes the only one that is served.
        max_new_tokens: longest answer.
        sampling: distribution to draw from; None asks for temperature 0.
        journal: of what was answered, for the next start; None keeps nothing.
        say: told, in words, what a person should know.
    """

    settings: Endpoint
    max_new_tokens: int
    sampling: Sampling | None = None
    journal: Journal | None = None
    say: Callable[[str], None] = print


class EndpointModel:
    """Answerer (kd/evaluation/answerers/answer.py) by a server. It is asked for its models and one short answer first.

    Raises:
        EndpointError: no key, no connection, no such model, no tools.
    """

    def __init__(self, server: Server, clock: Clock = SYSTEM_CLOCK):
        self._server, self._settings, self._clock = server, server.settings, clock
        self._limit = TokenLimit()
        first = self._settings.model_copy(update={"retries": min(self._settings.retries, _FIRST_RETRIES)})
        check_files_left()
        asyncio.run(self._with_wire(first, self._open))

    def answer(self, prompts: Sequence[Prompt], *, progress: Progress | None = None) -> list[Answer]:
        """Answer each prompt, several at once; those in the journal are not asked again.

        Raises:
            EndpointError: the server answers no more, or too many prompts have failed.
        """
        check_files_left()
        return asyncio.run(self._with_wire(self._settings, lambda wire: _Round(self, wire, progress).answer(prompts)))

    async def _with_wire(self, settings: Endpoint, work: Callable[[Wire], Any]) -> Any:
        wire = Wire(settings, self._server.say, self._clock, WORDS)
        try:
            return await work(wire)
        finally:
            await wire.close()

    async def _open(self, wire: Wire) -> None:
        try:
            cards = read_cards(await wire.ask("GET", "/models"))
            if not self._settings.model and len(cards) == 1:
                self._settings = self._settings.model_copy(update={"model": next(iter(cards))})
            if self._settings.model not in cards:
                raise EndpointError(
                    f"{wire.name}: --endpoint-model: {explain_missing(self._settings.model, cards, wire.hide)}"
                )
            await self._try(wire)
        except (Refused, Failed, ChatError) as error:
            raise EndpointError(f"{wire.name}: {error}") from None

    async def _try(self, wire: Wire) -> None:
        sent = self._limit.name
        try:
            await self.ask(wire, _OPENING)
            return
        except Refused as error:
            words = str(error)
        if self._limit.learn(words, sent):
            await self._try(wire)
            return
        await self.ask(wire, _OPENING._replace(tools=[]))
        raise EndpointError(
            f"{wire.name}: takes no tools for {self._settings.model!r}: {words}; start the server with tool calling "
            "(vLLM: --enable-auto-tool-choice --tool-call-parser NAME), or serve a model whose template has tools"
        )

    def write_body(self, prompt: Prompt) -> dict[str, Any]:
        """Write the request for a prompt."""
        names, sampling = fit_names(prompt.tools), self._server.sampling
        return {
            "model": self._settings.model,
            "messages": write_messages(prompt.messages, names),
            **({"tools": write_tools(prompt.tools, names)} if prompt.tools else {}),
            self._limit.name: self._server.max_new_tokens,
            "stream": False,
            **({"temperature": 0} if sampling is None else {**sampling._asdict(), "seed": prompt.seed}),
        }

    async def ask(self, wire: Wire, prompt: Prompt) -> Chat:
        """Ask for one answer.

        Raises:
            Refused, Failed, EndpointError: as `Wire.ask`.
            ChatError: the answer is no chat completion.
        """
        most = _LEAST_BYTES + _TOKEN_BYTES * self._server.max_new_tokens
        return read_chat(await wire.ask("POST", "/chat/completions", self.write_body(prompt), max_bytes=most))

    async def ask_once(self, wire: Wire, prompt: Prompt) -> Chat:
        """Take an answer from the journal, or ask for it and keep it there; raises as `ask`."""
        journal = self._server.journal
        if journal is None:
            return await self.ask(wire, prompt)
        body = self.write_body(prompt)
        found = journal.find(wire.name, body)
        if found is None:
            found = await self.ask(wire, prompt)
            journal.keep(wire.name, body, found)
        return found

    @property
    def settings(self) -> Endpoint:
        """Settings, with the model that is asked."""
        return self._settings


class _Round:
    """Prompts of one call, on one event loop."""

    def __init__(self, model: EndpointModel, wire: Wire, progress: Progress | None):
        self._model, self._wire, self._progress = model, wire, progress
        self._free, self._one_test = asyncio.Semaphore(model.settings.concurrency), asyncio.Lock()
        self._num_done = self._num_failed = self._num_prompts = 0

    async def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer all prompts, or raise the first error that ends the work."""
        self._num_prompts = len(prompts)
        tasks = [asyncio.ensure_future(self._answer_one(prompt)) for prompt in prompts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer_one(self, prompt: Prompt) -> Answer:
        async with self._free:
            try:
                found = read_answer(await self._model.ask_once(self._wire, prompt), prompt)
            except Refused as error:
                found = _make_empty(f"not answered: the server refuses it: {error}")
            except (Failed, ChatError) as error:
                found = _make_empty(f"not answered: {error}")
                await self._test_server(str(error))
            self._num_done += 1
            if self._progress is not None:
                self._progress(self._num_done, self._num_prompts)
            return found

    async def _test_server(self, reason: str) -> None:
        """Tell a bad prompt from a bad server, which ends the work; so do too many bad prompts."""
        self._num_failed += 1
        kept = WORDS.kept
        async with self._one_test:
            try:
                await self._model.ask(self._wire, _OPENING)
            except (Refused, Failed, ChatError) as error:
                raise EndpointError(f"{self._wire.name} answers no more: {reason}; then: {error}; {kept}") from None
        allowed = self._model.settings.max_missing
        if self._num_failed > allowed * self._num_prompts:
            raise EndpointError(
                f"{self._wire.name}: {self._num_failed} of {self._num_prompts} prompts were not answered, more than "
                f"{allowed:.0%}; the last: {reason}; {kept}"
            )


def read_answer(chat: Chat, prompt: Prompt) -> Answer:
    """Read the calls of a server's answer: its own, or those in its text."""
    return Answer(
        chat.text, read_calls(chat, prompt.tools), chat.num_tokens, chat.finished, own_calls=tuple(chat.calls)
    )


def _make_empty(problem: str) -> Answer:
    return Answer("", ParsedCalls([], [], [], "", []), 0, False, (problem,))
