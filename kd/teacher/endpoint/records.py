"""Records asked of an endpoint on one event loop: answered, missing, or the end of the capture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from kd.config.schema import Endpoint
from kd.endpoint.cards import explain_missing, read_cards
from kd.endpoint.http import Clock, EndpointError, Failed, Refused, Wire
from kd.endpoint.probe import OTHER_TEMPERATURE, check_positions, check_raw, make_probes
from kd.endpoint.vllm import AnswerError, NoPromptLogprobs, Prompt, answer_bytes, read_answer, read_texts, request_body
from kernels import TeacherTopK

_ENOUGH = 20  # tokens to compare, of one answer or of several: the first may have none that can be
_DIFFERING = 0.1  # part of the compared tokens whose texts may differ: servers show a few in ways of their own
_REMEDY = "what was captured is kept: start the capture again once it is mended"


class EndpointTask(NamedTuple):
    """Records that one process asks an endpoint for."""

    settings: Endpoint  # teacher.endpoint
    top_k: int  # tokens a row, at most vocab_size
    vocab_size: int  # of the run's tokenizer
    num_records: int  # settings.max_missing is a part of them
    longest: int = 0  # tokens of the longest record
    decode: Callable[[int], str] | None = None  # text of one token, to compare tokenizers; None compares nothing
    say: Callable[[str], None] = print  # told, in words, what a person should know


class Records:
    """Records of a task. All methods run on the loop, `open` before the others.

    Attributes:
        missing: prompts of records without targets -> the reason.
        stopped: set with the first EndpointError; every other request is then cancelled.
        num_answers: prompts that were answered.
    """

    def __init__(self, task: EndpointTask):
        self._settings, self._top_k, self._vocab = task.settings, task.top_k, task.vocab_size
        self._longest, self._decode, self._say = task.longest, task.decode, task.say
        self._allowed = int(task.settings.max_missing * task.num_records)
        self._good, self._changed = make_probes(task.vocab_size)  # `_good` is the last prompt that was answered
        self._tasks: set[asyncio.Task] = set()
        self._texts: dict[int, tuple[str, str]] = {}  # of the tokens compared so far: the server's and ours
        self.missing: dict[Prompt, str] = {}
        self.stopped: EndpointError | None = None
        self.num_answers = 0

    async def open(self, clock: Clock) -> None:
        """Check that the server has the model, knows prompt_logprobs, and gives top_k of them, raw and in their places.

        Raises:
            EndpointError: it does not, or cannot be reached.
        """
        self.wire = Wire(self._settings, self._say, clock)
        self._free, self._one_test = asyncio.Semaphore(self._settings.concurrency), asyncio.Lock()
        try:
            self._check_model(await self.wire.ask("GET", "/models"))
            first = await self._read(self._good)
            check_raw(first, await self._read(self._good, OTHER_TEMPERATURE))
            check_positions(first, await self._read(self._changed))
            self.num_answers = 1
            return
        except EndpointError as error:
            problem = str(error)
        except (Refused, Failed, AnswerError) as error:
            problem = f"{self.wire.name}: {error}"
        finally:
            if not self.num_answers:
                await self.wire.close()
        raise EndpointError(problem)

    async def close(self) -> None:
        """Cancel all requests and end the connection; say so where the tokenizers could not be compared."""
        if self._decode is not None and self.num_answers > 1 and self.stopped is None:
            self._say(
                "endpoint: whether its tokenizer is the run's is not known: its answers showed the texts of "
                f"{len(self._texts)} tokens that can be compared, and {_ENOUGH} are needed; see to it that it serves "
                "the teacher that tokenizer.path belongs to"
            )
        self.stopped = self.stopped or EndpointError(f"{self.wire.name}: closed while records were asked for")
        self._cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.wire.close()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def rows(self, prompt: Prompt) -> TeacherTopK | None:
        """Ask for a record's rows; None where it is missing.

        Raises:
            EndpointError: the endpoint answers no more, or too many records are missing.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with self._free:
                if self.stopped is None:
                    return await self._rows_or_none(prompt)
        except EndpointError as error:
            if self.stopped is None:
                self.stopped = EndpointError(str(error))  # a new one: the frames of this one hold the server's answer
                self._tasks.discard(task)
                self._cancel()
        finally:
            self._tasks.discard(task)
        raise self.stopped

    async def _rows_or_none(self, prompt: Prompt) -> TeacherTopK | None:
        try:
            return await self._ask(prompt)
        except Refused as error:
            reason, refused = f"the server refuses it: {error}", True
        except (Failed, AnswerError) as error:
            reason, refused = str(error), False
        if not refused:
            await self._test(prompt, reason, self.num_answers)
        self.missing[prompt] = reason
        self._say(f"endpoint: record {prompt.name} is left out: {reason}")
        if len(self.missing) > self._allowed:
            raise EndpointError(
                f"{self.wire.name}: {len(self.missing)} records have no targets, more than "
                f"teacher.endpoint.max_missing ({self._settings.max_missing:g}) allows; the last is {prompt.name}: "
                f"{reason}; {_REMEDY}"
            )
        return None

    async def _test(self, failed: Prompt, reason: str, num_answers: int) -> None:
        """Tell a bad record from a bad server: ask for the last answered prompt again, unless another was by now."""
        async with self._one_test:
            if self.num_answers > num_answers:
                return
            good = self._good
            try:
                await self._ask(good)
                return
            except (Refused, Failed, AnswerError) as error:
                again = str(error)
        raise EndpointError(
            f"{self.wire.name} answers no more. Record {failed.name}: {reason}. Then the prompt {good.name}, which it "
            f"had answered: {again}; {_REMEDY}"
        )

    async def _ask(self, prompt: Prompt) -> TeacherTopK:
        rows = await self._read(prompt)
        self._good, self.num_answers = prompt, self.num_answers + 1
        return rows

    async def _read(self, prompt: Prompt, temperature: float = 1.0) -> TeacherTopK:
        body = request_body(self._settings.model, prompt.token_ids, self._top_k, temperature)
        try:
            answer = await self.wire.ask(
                "POST", "/completions", body, max_bytes=answer_bytes(len(prompt.token_ids), self._top_k)
            )
            rows = read_answer(answer, prompt, self._top_k, self._vocab)
        except NoPromptLogprobs as error:
            raise EndpointError(f"{self.wire.name}: {error}; a server is needed that has it, vLLM for one") from None
        except Refused as error:
            if "logprobs" not in str(error):
                raise
            raise EndpointError(
                f"{self.wire.name}: {error}; start the server with --max-logprobs {self._top_k}, or lower "
                "teacher.cache.top_k"
            ) from None
        self._compare_tokens(answer, prompt)
        return rows

    def _compare_tokens(self, answer: Any, prompt: Prompt) -> None:
        if self._decode is None or not self.num_answers:  # the first is no record: its tokens may be any
            return
        self._texts |= read_texts(answer, prompt, self._decode)
        differing = [(token, *texts) for token, texts in self._texts.items() if texts[0] != texts[1]]
        # Answers still to come could not make up for so many.
        if len(differing) > _DIFFERING * max(len(self._texts), _ENOUGH):
            shown = "; ".join(
                f"token {token} is {self.wire.hide(theirs)!r} there and {ours!r} here"
                for token, theirs, ours in differing[:3]
            )
            before = self.num_answers - 1
            anew = (
                f", and capture into another folder: the answers to {before} records before showed too few texts to "
                "tell"
            )
            raise EndpointError(
                f"{self.wire.name}: its tokenizer is not the run's ({len(differing)} of {len(self._texts)} tokens "
                f"differ): {shown}; serve the teacher that tokenizer.path belongs to{anew if before else ''}"
            )
        if len(self._texts) >= _ENOUGH:
            self._decode = None

    def _check_model(self, listed: Any) -> None:
        """Check that the server lists the model; warn where the longest record and one token more do not fit."""
        cards = read_cards(listed)
        if self._settings.model not in cards:
            missing = explain_missing(self._settings.model, cards, self.wire.hide)
            raise EndpointError(f"{self.wire.name}: teacher.endpoint.model: {missing}")
        room = cards[self._settings.model].get("max_model_len")
        if isinstance(room, int) and self._longest + 1 > room:
            self._say(
                f"endpoint: its context is {room} tokens and the longest record needs {self._longest + 1}: records "
                f"that do not fit will be missing; start the server with --max-model-len {self._longest + 1}"
            )
