"""Connections to one server: HTTP/1.1 by h11 over asyncio, each for one request at a time, and kept for the next one.

A general client takes five times the processor's time for a small request, more than the data set that it is for
(LOG.md, 2026-11-30). Proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY); certificates
are checked as httpx2 checks them. No header of a request is kept here, and no error repeats one.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import time
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import h11

from kd.config.fields import split_address

_CONNECT_SECONDS = 30.0
_LOOP_FILES = 8  # that an event loop, a resolver and a connection need
_KEPT_SECONDS = 5.0  # an idle connection; servers close theirs at 5 seconds or more
_MOST_HEAD = 2**16  # bytes of an answer's head
_PORTS = {"http": 80, "https": 443}
Headers = Sequence[tuple[str, str]]


def check_files_left() -> None:
    """Check that an event loop and a connection can be opened: one that fails in the middle leaves noise behind.

    Raises:
        OSError: too many files are open.
    """
    made = []
    try:
        made = [os.dup(2) for _ in range(_LOOP_FILES)]
    finally:
        for one in made:
            os.close(one)


class NotSent(Exception):
    """Failure before any of the request was sent, in words."""


class Broken(Exception):
    """Answer that did not come whole, in words."""


class Reply(NamedTuple):
    """Answer. `headers`: names in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes

    def __repr__(self) -> str:
        return "Reply(not shown)"  # it may repeat the key


class Connections:
    """Connections to the server of an address; all methods run on one event loop.

    Raises:
        ValueError: the address has a port that is none.
    """

    def __init__(self, url: str):
        parts = urlsplit(url)
        self._host, self._path = parts.hostname or "", quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self._port = parts.port or _PORTS[parts.scheme]
        name = self._host.encode("idna").decode() if ":" not in self._host else f"[{self._host}]"
        self._place = name if self._port == _PORTS[parts.scheme] else f"{name}:{self._port}"
        self._authority = f"{name}:{self._port}"
        self._tls = _make_tls() if parts.scheme == "https" else None
        self._proxy = _find_proxy(parts.scheme, parts.netloc)
        self._idle: list[_Connection] = []

    async def exchange(
        self, method: str, path: str, headers: Headers, body: bytes | None, *, max_bytes: int, seconds: float
    ) -> Reply:
        """Send one request, and return its whole answer.

        Raises:
            NotSent, Broken: as they say.
            asyncio.TimeoutError: it was sent, and the answer did not come whole in time.
        """
        ends = time.monotonic() + seconds
        connection = self._take() or await self._open(min(seconds, _CONNECT_SECONDS))
        target = self._path + path
        if self._proxy is not None and self._tls is None:
            target, headers = f"http://{self._place}{target}", [*headers, *self._proxy.headers]
        size = [("Content-Length", str(len(body or b"")))] if body is not None else []
        head = [("Host", self._place), ("Accept", "application/json"), ("Accept-Encoding", "gzip"), *size, *headers]
        try:
            reply = await connection.ask((method, target, head, body), max_bytes, ends - time.monotonic())
            if connection.free():
                self._idle.append(connection)
        finally:
            if not connection.is_idle:
                connection.close()
        return _unpack(reply, max_bytes)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.free_since + _KEPT_SECONDS > time.monotonic():
                connection.is_idle = False
                return connection
            connection.close()
        return None

    async def _open(self, seconds: float) -> _Connection:
        made: list[_Connection] = []
        try:
            return await asyncio.wait_for(self._connect(made, seconds), seconds)
        except asyncio.TimeoutError:
            problem = f"no connection within {seconds:.3g} s"
        except Broken as error:
            problem = f"the proxy: {error}"
        except (OSError, UnicodeError) as error:
            problem = f"no connection: {type(error).__name__} {error}"
        for connection in made:
            connection.close()
        raise NotSent(problem)

    async def _connect(self, made: list[_Connection], seconds: float) -> _Connection:
        loop = asyncio.get_running_loop()
        place, port, tls = self._host, self._port, self._tls
        if self._proxy is not None:
            place, port, tls = self._proxy.host, self._proxy.port, self._proxy.tls

        def make() -> _Connection:
            made.append(_Connection())
            return made[-1]

        _, connection = await loop.create_connection(make, place, port, ssl=tls)
        if self._proxy is not None and self._tls is not None:
            head = [("Host", self._authority), *self._proxy.headers]
            reply = await connection.ask(("CONNECT", self._authority, head, None), _MOST_HEAD, seconds)
            if reply.status // 100 != 2:
                raise Broken(f"status {reply.status}")
            await connection.start_tls(self._tls, self._host)
        return connection

    async def close(self) -> None:
        """Close all that is idle."""
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # the loop closes their sockets


class _Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        is_open: it can be written to.
        is_idle: no request is under way; free_since: the time.monotonic() at which the last one ended.
    """

    def __init__(self) -> None:
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        self._transport: Any = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._head: h11.Response | None = None
        self._parts: list[bytes] = []
        self._room, self._tunnels = 0, False
        self.is_open, self.is_idle, self.free_since = False, False, 0.0

    async def ask(self, request: tuple[str, str, Headers, bytes | None], max_bytes: int, seconds: float) -> Reply:
        """Send (method, target, headers, body), and wait for the answer; raises as `Connections.exchange`."""
        if not self.is_open:  # since it was made: no word of its end will come again
            raise NotSent("the server closed the connection at once")
        method, target, headers, body = request
        loop = asyncio.get_running_loop()
        self._waiting, self._head, self._parts, self._room = loop.create_future(), None, [], max_bytes
        self._tunnels = method == "CONNECT"
        timer = loop.call_later(max(seconds, 0.0), self._fail, asyncio.TimeoutError())
        try:
            state = self._state
            sent = [state.send(h11.Request(method=method, target=target, headers=list(headers)))]
            sent += [state.send(h11.Data(body))] if body else []
            sent.append(state.send(h11.EndOfMessage()))
            self._transport.write(b"".join(part for part in sent if part))
            return await self._waiting
        except h11.LocalProtocolError:
            raise Broken("a header of the request has a character that none may have") from None
        finally:
            timer.cancel()
            self._waiting = None

    def free(self) -> bool:
        """Make room for another request; False where the connection can take none."""
        if self._state.trailing_data != (b"", False) or not self.is_open:
            return False
        try:
            self._state.start_next_cycle()
        except h11.LocalProtocolError:  # the server closes it
            return False
        self.is_idle, self.free_since = True, time.monotonic()
        return True

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Go on over TLS, through the tunnel of a proxy."""
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, context, server_hostname=host)
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)

    def close(self) -> None:
        """Close it at once."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request under way."""
        self.is_open = False
        self._fail(Broken(f"{type(exc).__name__} {exc}" if exc else "the server closed the connection"))

    def eof_received(self) -> None:
        """Take the end of what the server sends."""
        self.is_open = False
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        """Take a piece of the answer; where none is wanted the connection is of no more use."""
        if self._waiting is None:
            self.close()
            return
        try:
            self._state.receive_data(data)
            while self._waiting is not None and not self._waiting.done():
                event = self._state.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                self._take_event(event)
        except h11.RemoteProtocolError as error:
            self._fail(Broken(f"no HTTP: {error}"))

    def _take_event(self, event: Any) -> None:
        if isinstance(event, h11.Data):
            self._parts.append(bytes(event.data))
            self._room -= len(event.data)
            if self._room < 0:
                self._fail(Broken("an answer that is too long"))
        elif isinstance(event, h11.Response):
            self._head = event
            if self._tunnels and event.status_code // 100 == 2:
                self._finish()
        elif isinstance(event, h11.EndOfMessage):
            self._finish()
        elif isinstance(event, h11.ConnectionClosed):
            self._fail(Broken("the server closed the connection"))

    def _finish(self) -> None:
        assert self._waiting is not None and self._head is not None, "an answer has ended"
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._head.headers}
        self._waiting.set_result(Reply(self._head.status_code, headers, b"".join(self._parts)))

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
            self.close()


class _Proxy(NamedTuple):
    host: str
    port: int
    headers: Headers  # its own user and password
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return "_Proxy(not shown)"


def _find_proxy(scheme: str, netloc: str) -> _Proxy | None:
    """Find the environment's proxy for a server; None where it has none. Raises ValueError where it is no http(s)."""
    found = getproxies()
    url = found.get(scheme) or found.get("all")
    if not url or proxy_bypass(netloc):
        return None
    try:
        parts = split_address(url if "://" in url else f"http://{url}")
    except ValueError:  # its words may repeat a password
        parts = urlsplit("")
    if parts.scheme not in _PORTS:
        raise ValueError(
            "the proxy of the environment is no http:// or https:// address: mend HTTP_PROXY, HTTPS_PROXY or "
            "ALL_PROXY, or name the server's host in NO_PROXY"
        )
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    headers = [("Proxy-Authorization", f"Basic {base64.b64encode(user).decode()}")] if parts.username else []
    port = parts.port or _PORTS[parts.scheme]
    return _Proxy(parts.hostname or "", port, headers, _make_tls() if parts.scheme == "https" else None)


def _make_tls() -> ssl.SSLContext:
    import httpx2

    context = httpx2.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _unpack(reply: Reply, max_bytes: int) -> Reply:
    """Unpack an answer that the server has packed, up to so many bytes."""
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return reply
    if encoding not in ("gzip", "x-gzip"):
        raise Broken("an answer in an encoding that was not asked for")
    unpacker = zlib.decompressobj(31)
    try:
        content = unpacker.decompress(reply.content, max_bytes)
    except zlib.error:
        raise Broken("an answer that cannot be unpacked") from None
    if not unpacker.eof:
        raise Broken("an answer that is too long, or cut")
    return reply._replace(content=content)
