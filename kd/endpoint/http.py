"""Requests to an OpenAI-compatible server: retried, timed, and never telling the key.

A server that says in its headers that no request is left is left alone until it has some again, and one that fails
again and again, whatever it is asked, is given longer and longer rests (a circuit breaker).

A failure that may pass (no connection, a broken or late answer, statuses 408, 425, 429 and 5xx, an answer that is no
JSON) is tried again after 0.5, 1, 2, ... 60 seconds, each times a random number from 0.5 to 1 so that many clients do
not come back together. Retry-After is obeyed by all requests; one that reaches past the record's deadline ends the
work. A failure that cannot pass (a wrong key, address or model, a redirect) ends it at once. Redirects are never
followed: they would take the key along.

The key is put into a request on its way out. No error holds a request, nor has one that does as its context.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from kd.config.schema import Endpoint
from kd.endpoint.connections import Broken, Connections, NotSent, Reply
from kd.errors import SpanwiseError
from kd.toolcalls.json_values import encode_json

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


class ApiKey:
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

    def __repr__(self) -> str:
        return "ApiKey(not shown)"

    def write_headers(self) -> list[tuple[str, str]]:
        """Write the headers of a request that carry the key."""
        return [("Authorization", f"Bearer {self._value}")] if self._value else []

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
        try:
            self._connections = Connections(settings.url)
        except ValueError as error:
            raise EndpointError(f"{words.url}: {self.hide(str(error))}") from None
        self._random = random.Random()  # its own: the run's seeded generators stay as they are
        self._not_before = -float("inf")  # a server that said Retry-After is left alone till then
        self._ends = clock.monotonic() + settings.deadline_seconds if settings.deadline_seconds else float("inf")
        self._told = -float("inf")
        self._streak = 0  # failures one after another, of all requests
        self.num_requests = 0

    async def close(self) -> None:
        """End the connection."""
        await self._connections.close()

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
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(method, path, body, ends, max_bytes, meter)
            except _MayPass as error:
                problem = str(error)
            pause = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT) * self._random.uniform(0.5, 1)
            if attempt > self._settings.retries or self._clock.monotonic() + pause >= ends:
                break
            self._tell(f"{problem}; trying again")
            await self._clock.sleep(pause)
        self._check_deadline()
        raise Failed(f"{problem} (attempts: {attempt})")

    def _check_deadline(self) -> None:
        if self._clock.monotonic() >= self._ends:
            raise EndpointError(
                f"{self.name}: {self._words.deadline} ({self._settings.deadline_seconds:g}) have passed: "
                f"{self._words.kept} to go on"
            )

    async def _once(
        self, method: str, path: str, body: dict | None, ends: float, max_bytes: int, meter: Meter | None
    ) -> Any:
        while (pause := min(self._not_before, ends, self._ends) - self._clock.monotonic()) > 0:
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
            reply, sent, problem = await self._exchange(method, path, body, max_bytes, limit)
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

    def _obey_limits(self, headers: dict[str, str]) -> None:
        """Rest until requests or tokens are there again, where the headers say that none is left."""
        for what in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
                text = headers.get(f"x-ratelimit-reset-{what}", "")
                seconds = sum(float(number) * _UNITS[unit] for number, unit in _RESET.findall(text))
                rest = min(seconds, _LONGEST_WAIT)
                if rest == _LONGEST_WAIT:
                    self._tell(f"{self.name}: no {what} are left, says the server; it is asked again in {rest:g} s")
                self._not_before = max(self._not_before, self._clock.monotonic() + rest)

    def _tell(self, words: str) -> None:
        """Say now and then why there is a wait, so that a capture that waits does not look dead."""
        if self._clock.monotonic() >= self._told + _TOLD_EVERY:
            self._told = self._clock.monotonic()
            self._say(f"endpoint: {words}")

    async def _exchange(
        self, method: str, path: str, body: dict | None, max_bytes: int, seconds: float
    ) -> tuple[Reply | None, bool, str]:
        """Send a request: the whole answer or None, whether any of it was sent, and the failure in words."""
        raw = None if body is None else encode_json(body)
        headers = [("User-Agent", "spanwise"), ("Content-Type", "application/json"), *self._key.write_headers()]
        sent = True
        try:
            reply = await self._connections.exchange(method, path, headers, raw, max_bytes=max_bytes, seconds=seconds)
            return reply, sent, ""
        except NotSent as error:
            sent, problem = False, str(error)
        except Broken as error:
            problem = str(error)
        except asyncio.TimeoutError:
            problem = f"no whole answer within {seconds:.3g} s"
        return None, sent, self.hide(problem)

    def _judge(self, reply: Reply, path: str, ends: float) -> Any:
        status = reply.status
        if status == 200:
            return self._parse(reply)
        words = self.hide(_find_words(reply))
        if status in _PASSING or status >= 500:
            if status >= 500:
                self._count_failure()
            self._obey(reply.headers.get("retry-after"), status, ends)
            raise _MayPass(f"status {status}: {words}")
        if status in _REFUSALS:
            raise Refused(words)
        if 300 <= status < 400:
            raise EndpointError(
                f"{self.name}: redirects (status {status}) to {self.hide(_find_host(reply))}; redirects are not "
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

    def _parse(self, reply: Reply) -> Any:
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


def _find_host(reply: Reply) -> str:
    """Return the host that a redirect leads to."""
    try:
        return urlsplit(reply.headers.get("location", "")).hostname or "itself"
    except ValueError:
        return "no address"


def _find_words(reply: Reply) -> str:
    """Return the server's message: OpenAI's field, an older one of vLLM's, or FastAPI's; else the body's start."""
    try:
        body = json.loads(reply.content)
    except (ValueError, RecursionError):
        return reply.content[:_QUOTED].decode(errors="replace")
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
