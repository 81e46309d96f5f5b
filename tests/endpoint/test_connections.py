"""Connections: kept for the next request where that is safe, over TLS and proxies, and whole answers alone."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
import subprocess

import pytest

from kd.endpoint import connections
from kd.endpoint.connections import Broken, Connections, NotSent

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Raw:
    """Server of raw replies, in order; `heads` are the requests, `num` the connections."""

    def __init__(self, *replies: bytes, tls: ssl.SSLContext | None = None, tunnel: bool = False):
        self.replies, self.tls, self.tunnel = list(replies), tls, tunnel
        self.heads: list[bytes] = []
        self.num = self.port = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *unused):
        self.server.close()

    async def serve(self, reader, writer):
        self.num += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = [int(one[15:]) for one in head.lower().split(b"\r\n") if one.startswith(b"content-length:")]
                self.heads.append(head + await reader.readexactly(sum(size)))
                if self.tunnel and head.startswith(b"CONNECT"):
                    writer.write(b"HTTP/1.1 200 Go on\r\n\r\n")
                    port = int(head.split()[1].split(b":")[1])
                    there = await asyncio.open_connection("127.0.0.1", port)
                    await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))
                    return
                if self.replies:
                    writer.write(self.replies.pop(0))
                else:
                    writer.close()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass


async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


def ask(server: Raw, num: int = 1, *, scheme: str = "http", seconds: float = 5.0, most: int = 1000):
    """Ask so many times; each answer, or the failure."""

    async def run():
        async with server:
            made = Connections(f"{scheme}://localhost:{server.port}/v1")
            found = []
            for _ in range(num):
                key = [("Authorization", "Bearer x")]
                try:
                    found.append(await made.exchange("POST", "/c", key, b"{}", max_bytes=most, seconds=seconds))
                except (NotSent, Broken, asyncio.TimeoutError) as error:
                    found.append(error)
                await asyncio.sleep(0.01)
            await made.close()
            return found

    return asyncio.run(run())


def test_a_connection_is_kept_and_a_request_goes_out_whole():
    server = Raw(*[GOOD] * 3)
    assert [one.content for one in ask(server, 3)] == [b"{}"] * 3 and server.num == 1
    head = server.heads[0]
    assert head.startswith(b"POST /v1/c HTTP/1.1\r\n") and head.endswith(b"\r\n\r\n{}")
    assert f"host: localhost:{server.port}".encode() in head.lower() and b"Bearer x" in head


@pytest.mark.parametrize(
    "first",
    [
        GOOD + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",  # more than its length says
        GOOD.replace(b"200 OK", b"200 OK\r\nConnection: close"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + b"x" * 9999,  # more than was asked for
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
    ],
)
def test_nothing_of_one_answer_is_read_as_the_next(first):
    server = Raw(first, GOOD)
    one, two = ask(server, 2)
    assert two.content == b"{}" and (server.num == 2 or b"br" in first)
    assert isinstance(one, Broken) or one.content == b"{}"


def test_time_and_missing_answers_are_told_apart():
    assert isinstance(ask(Raw(b"HTTP/1.1 200 OK\r\n"), seconds=0.2)[0], asyncio.TimeoutError)
    assert isinstance(ask(Raw())[0], Broken)
    assert isinstance(ask(Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), seconds=0.2)[0], asyncio.TimeoutError)

    async def nobody():
        await Connections("http://127.0.0.1:9/v1").exchange("GET", "/m", [], None, max_bytes=9, seconds=5)

    with pytest.raises(NotSent, match="no connection: ConnectionRefusedError"):
        asyncio.run(nobody())


@pytest.mark.parametrize("reset", [True, False])
def test_a_connection_that_ends_at_once_is_not_waited_for(reset, monkeypatch):
    opened = asyncio.BaseEventLoop.create_connection

    async def open_late(*args, **options):
        made = await opened(*args, **options)
        await asyncio.sleep(0.05)  # its end is known before anything is asked
        return made

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", open_late)

    async def run():
        def end(_, writer):
            if reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.close()

        server = await asyncio.start_server(end, "127.0.0.1", 0)
        there = Connections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(NotSent, match="at once"):  # and not TimeoutError
            await there.exchange("GET", "/", [], None, max_bytes=100, seconds=5)
        server.close()

    asyncio.run(run())


def test_answers_without_a_length_in_chunks_and_packed_are_read():
    packed = gzip.compress(b"{}")
    bomb = gzip.compress(b" " * 10**6)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: "
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    replies = [
        b"HTTP/1.1 100 Continue\r\n\r\n" + chunks,
        head + b"%d\r\n\r\n" % len(packed) + packed,
        head + b"%d\r\n\r\n" % len(bomb) + bomb,
    ]
    found = ask(Raw(*replies), 3, most=2000)
    assert [one.content for one in found[:2]] == [b"{}"] * 2 and isinstance(found[2], Broken)


def test_a_proxy_gets_the_whole_address_and_its_own_password(monkeypatch):
    server = Raw(GOOD)

    async def run():
        async with server:
            monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@127.0.0.1:{server.port}")
            monkeypatch.setenv("NO_PROXY", "other.example")
            made = Connections("http://teacher.example/v1")
            assert "p@ss" not in f"{vars(made)}"
            return await made.exchange("POST", "/c", [], b"{}", max_bytes=9, seconds=5)

    assert asyncio.run(run()).status == 200
    assert server.heads[0].startswith(b"POST http://teacher.example/v1/c ") and b"Basic bWU6cEBzcw==" in server.heads[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    try:
        subprocess.run([*command.split(), "-keyout", "k", "-out", "c"], cwd=folder, check=True, capture_output=True)
    except OSError:
        pytest.skip("needs the program openssl")
    return folder


@pytest.mark.parametrize("proxied", [False, True])
def test_certificates_are_checked_also_through_a_proxy(certificate, monkeypatch, proxied):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "c", certificate / "k")
    proxy = Raw(tunnel=True)

    async def run(trusted: bool):
        if trusted:
            trusting = ssl.create_default_context(cafile=certificate / "c")
            monkeypatch.setattr(connections, "_make_tls", lambda: trusting)
        async with Raw(GOOD, tls=context) as server, proxy:
            if proxied:
                monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            made = Connections(f"https://localhost:{server.port}/v1")
            key = [("Authorization", "Bearer x")]
            try:
                return await made.exchange("POST", "/c", key, b"{}", max_bytes=9, seconds=10)
            finally:
                await made.close()

    with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED|[Cc]ertificate"):
        asyncio.run(run(False))
    assert asyncio.run(run(True)).content == b"{}"
    assert bool(proxy.heads) == proxied and not any(b"Bearer" in head for head in proxy.heads)
