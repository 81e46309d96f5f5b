"""Requests to an OpenAI-compatible server: retried, timed, and never telling the key.

A server that says in its headers that no request is left is left alone until it has some again, and one that fails
again and again, whatever it is asked, is given longer and longer rests (a circuit breaker).

A failure that may pass (no connection, a broken or late answer, statuses 408, 425, 429 and 5xx, an answer that is no
JSON) is tried again after 0.5, 1, 2, ... 60 seconds, each times a random number from 0.5 to 1 so that many clients do
not come back together. Retry-After is obeyed by all requests; one that reaches past the record's deadline ends the
work. A failure that cannot pass (a wrong key, address or model, a redirect) ends it at once. Redirects are never
followed: they would take the key along.

An exception of the HTTP library holds the request and so the key. None leaves this file, not even as another's context.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx2
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type

from kd.config.schema import Endpoint
from kd.errors import SpanwiseError

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds
_PASSING = (408, 425, 429)  # and all of 500 to 599
_REFUSALS = (400, 413, 422)
_TOLD_EVERY = 30.0  # seconds
_QUOTED = 300  # characters of a server's own words
_LEAST_STREAK = 16  # failures one after another that open the circuit, or twice the concurrency where that is more
_RESET = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class EndpointError(SpanwiseError, ValueError):
    """Endpoint that cannot be used, or not for now. What was captured is kept: start the capture again."""


class Refused(SpanwiseError, ValueError):
    """Request that the server read and will not answer, in its own words."""


class Failed(SpanwiseError, RuntimeError):
    """Request that failed with all its attempts; others may succeed."""


class Clock(NamedTuple):
    """Clock and sleep, so that tests need not wait."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


SYSTEM_CLOCK = Clock()


class Words(NamedTuple):
    """Names of the settings in messages, by default those of a configuration, and what a stopped job keeps."""

    url: str = "teacher.endpoint.url"
    model: str = "teacher.endpoint.model"
    api_key_env: str = "teacher.endpoint.api_key_env"
    deadline: str = "teacher.endpoint.deadline_seconds"
    record_deadline: str = "teacher.endpoint.record_deadline_seconds"
    kept: str = "what was captured is kept; start the capture again"


WORDS = Words()


class Meter(Protocol):
    """Account of the attempts of one request, for those who pay."""

    async def begin(self) -> None:
        """Wait until an attempt may be made; what it raises ends the request."""
        ...

    def end(self, answer: Any | None, *, sent: bool) -> None:
        """End the attempt that was begun last, once.

        Args:
            answer: JSON of an answer with status 200; None without one.
            sent: False where no answer can have been generated: the server was not reached, or refused in whole.
        """
        ...


class ApiKey(httpx2.Auth):
    """Key out of the environment. It is put into a request on its way out, and is in no other place."""

    def __init__(self, variable: str | None, words: Words = WORDS):
        self._value = os.environ.get(variable, "").strip() if variable else None
        if self._value == "":
            raise EndpointError(f"{words.api_key_env}: the variable that it names is not set, or is empty: export it")
        if self._value and not all("!" <= c <= "~" for c in self._value):
            raise EndpointError(
                f"{words.api_key_env}: the value of the variable has a character that no key has, such "
                "as a space: export it without"
            )
        if self._value:  # its debug lines show the headers of answers, and a server may repeat the key in one
            logging.getLogger("httpcore2").setLevel(logging.INFO)

    def __repr__(self) -> str:
        return "ApiKey(not shown)"

    def auth_flow(self, request: httpx2.Request):
        """Put the key into a request on its way out."""
        if self._value:
            request.headers["Authorization"] = f"Bearer {self._value}"
        yield request

    def hide(self, text: str) -> str:
        """Cut text from outside to a printable line without the key."""
        text = text.replace(self._value, "[key]") if self._value else text
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_QUOTED]


class Wire:
    """Connection to one server. All methods run on one event loop."""

    def __init__(
        self, settings: Endpoint, say: Callable[[str], None], clock: Clock = SYSTEM_CLOCK, words: Words = WORDS
    ):
        self._settings, self._say, self._clock, self._words = settings, say, clock, words
        self._key = ApiKey(settings.api_key_env, words)
        self.name, self.hide = settings.url.rstrip("/"), self._key.hide
        self._client = httpx2.AsyncClient(
            auth=self._key,
            follow_redirects=False,
            timeout=settings.timeout_seconds,
            limits=httpx2.Limits(max_connections=settings.concurrency),
        )
        self._random = random.Random()  # its own: the run's seeded generators stay as they are
        self._not_before = -float("inf")  # a server that said Retry-After is left alone till then
        self._ends = clock.monotonic() + settings.deadline_seconds if settings.deadline_seconds else float("inf")
        self._told = -float("inf")
        self._streak = 0  # failures one after another, of all requests
        self.num_requests = 0

    async def close(self) -> None:
        """End the connection."""
        await self._client.aclose()

    async def ask(
        self, method: str, path: str, body: dict | None = None, *, max_bytes: int = 2**20, meter: Meter | None = None
    ) -> Any:
        """Send a request until it is answered, and return the JSON of the answer.

        meter: told of each attempt.

        Raises:
            Refused: status 400, 413 or 422.
            Failed: no attempt succeeded within the record's deadline and number of attempts.
            EndpointError: a failure that cannot pass, or the deadline of the whole capture.
        """
        ends = self._clock.monotonic() + self._settings.record_deadline_seconds
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_MayPass),
            wait=self._wait,
            sleep=self._clock.sleep,
            before_sleep=self._tell,
            stop=lambda state: (
                state.attempt_number > self._settings.retries or self._clock.monotonic() + state.upcoming_sleep >= ends
            ),
        )
        try:
            return await attempts(self._once, method, path, body, ends, max_bytes, meter)
        except RetryError as error:
            tried, last = error.last_attempt.attempt_number, error.last_attempt.exception()
        self._check_deadline()
        raise Failed(f"{last} (attempts: {tried})")

    def _wait(self, state: Any) -> float:
        return min(_FIRST_WAIT * 2 ** (state.attempt_number - 1), _LONGEST_WAIT) * self._random.uniform(0.5, 1)

    def _check_deadline(self) -> None:
        if self._clock.monotonic() >= self._ends:
            raise EndpointError(
                f"{self.name}: {self._words.deadline} ({self._settings.deadline_seconds:g}) have passed: "
                f"{self._words.kept} to go on"
            )

    async def _once(
        self, method: str, path: str, body: dict | None, ends: float, max_bytes: int, meter: Meter | None
    ) -> Any:
        while (pause := self._not_before - self._clock.monotonic()) > 0:
            await self._clock.sleep(pause + self._random.uniform(0, min(pause, 1.0)))
        if meter is not None:
            await meter.begin()
        answer, sent = None, False
        try:
            self._check_deadline()
            now = self._clock.monotonic()
            limit = min(self._settings.timeout_seconds, ends - now, self._ends - now)
            if limit <= 0:
                raise _MayPass("its time ran out while the server had asked to wait")
            self.num_requests += 1
            sent = True
            try:
                reply, problem = await asyncio.wait_for(self._exchange(method, path, body, max_bytes), limit)
            except asyncio.TimeoutError:
                reply, problem = None, f"no whole answer within {limit:.3g} s"
            except _NotSent as error:
                sent, reply, problem = False, None, str(error)
            if reply is None:
                self._count_failure()
                raise _MayPass(problem)
            sent = reply.status == 200
            self._streak = 0 if reply.status < 500 else self._streak
            self._obey_limits(reply.headers)
            answer = self._judge(reply, path, ends)
            return answer
        finally:
            if meter is not None:
                meter.end(answer, sent=sent)

    def _count_failure(self) -> None:
        """Count a failure; from many one after another on, each makes the pause before the next requests longer."""
        self._streak += 1
        over = self._streak - max(_LEAST_STREAK, 2 * self._settings.concurrency)
        if over > 0:
            rest = min(_FIRST_WAIT * 2 ** min(over / self._settings.concurrency, 8.0), _LONGEST_WAIT)
            self._not_before = max(self._not_before, self._clock.monotonic() + rest)

    def _obey_limits(self, headers: httpx2.Headers) -> None:
        """Rest until requests or tokens are there again, where the headers say that none is left."""
        for what in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
                text = headers.get(f"x-ratelimit-reset-{what}", "")
                seconds = sum(float(number) * _UNITS[unit] for number, unit in _RESET.findall(text))
                rest = min(seconds, _LONGEST_WAIT)
                self._not_before = max(self._not_before, self._clock.monotonic() + rest)

    def _tell(self, state: Any) -> None:
        """Say now and then that a request is tried again, so that a capture that waits does not look dead."""
        if self._clock.monotonic() >= self._told + _TOLD_EVERY:
            self._told = self._clock.monotonic()
            self._say(f"endpoint: {state.outcome.exception()}; trying again")

    async def _exchange(self, method: str, path: str, body: dict | None, max_bytes: int) -> tuple[_Reply | None, str]:
        """Return the whole answer and "", or None and the failure in words."""
        try:
            async with self._client.stream(method, self.name + path, json=body) as response:
                parts, size = [], 0
                async for part in response.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > max_bytes:
                        return None, f"an answer of more than {max_bytes} bytes"
                return _Reply(response.status_code, response.headers, b"".join(parts)), ""
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            problem = self.hide(f"{type(error).__name__} {error}")
        except (httpx2.HTTPError, OSError) as error:
            return None, self.hide(f"{type(error).__name__} {error}")
        raise _NotSent(problem)

    def _judge(self, reply: _Reply, path: str, ends: float) -> Any:
        status, words = reply.status, self.hide(reply.words())
        if status == 200:
            return self._parse(reply)
        if status in _PASSING or status >= 500:
            if status >= 500:
                self._count_failure()
            self._obey(reply.headers.get("retry-after"), status, ends)
            raise _MayPass(f"status {status}: {words}")
        if status in _REFUSALS:
            raise Refused(words)
        if 300 <= status < 400:
            raise EndpointError(
                f"{self.name}: redirects (status {status}) to {self.hide(reply.host())}; redirects are not "
                f"followed, for they would take the key along: put the final address into {self._words.url}"
            )
        if status in (401, 403):  # the words may tell the key
            none = "" if self._settings.api_key_env else "; no key was sent"
            raise EndpointError(
                f"{self.name}: the key is not accepted (status {status}{none}): see the variable that "
                f"{self._words.api_key_env} names"
            )
        raise EndpointError(
            f"{self.name}{path}: status {status}: {words}; check {self._words.url} (it ends with /v1 on most "
            "servers) and model"
        )

    def _parse(self, reply: _Reply) -> Any:
        kind = reply.headers.get("content-type", "nothing").split(";")[0].strip().lower()
        if kind != "application/json":
            raise _MayPass(f"an answer of type {self.hide(kind)}, not application/json")  # its words may be private
        try:
            return json.loads(reply.content)
        except (ValueError, RecursionError):
            problem = f"{len(reply.content)} bytes that are no JSON"
        raise _MayPass(problem)

    def _obey(self, retry_after: str | None, status: int, ends: float) -> None:
        seconds = _seconds(retry_after, self._clock.wall())
        now = self._clock.monotonic()
        if now + seconds > ends:
            raise EndpointError(
                f"{self.name}: status {status}, and asks to wait {seconds:.0f} s, past {self._words.record_deadline} "
                f"({self._settings.record_deadline_seconds:g}): {self._words.kept} then, or raise it"
            )
        self._not_before = max(self._not_before, now + seconds)


class _MayPass(Exception):
    """Failure that is worth another attempt."""


class _NotSent(Exception):
    """Failure before the request can have reached the server."""


class _Reply(NamedTuple):
    status: int
    headers: httpx2.Headers
    content: bytes

    def __repr__(self) -> str:
        return "_Reply(not shown)"  # it may repeat the key

    def host(self) -> str:
        """Return the host that a redirect leads to."""
        try:
            return urlsplit(self.headers.get("location", "")).hostname or "itself"
        except ValueError:
            return "no address"

    def words(self) -> str:
        """Return the server's message: OpenAI's field, an older one of vLLM's, or FastAPI's; else the body's start."""
        try:
            body = json.loads(self.content)
        except (ValueError, RecursionError):
            return self.content[:_QUOTED].decode(errors="replace")
        for key in ("error", "message", "detail"):
            if isinstance(body, dict) and key in body:
                body = body[key]
        return str(body)


def _seconds(retry_after: str | None, now: float) -> float:
    """Read a Retry-After header, a number of seconds or an HTTP date, in seconds; 0 where it is neither."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
