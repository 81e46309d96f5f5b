"""Answers, rate limits, addresses, proxies and limits of a machine that are not as they should be."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys

import pytest
from pydantic import ValidationError

from helpers.endpoint_cases import FakeClock
from kd.config.schema import Endpoint
from kd.config.sections.rollouts import Server as RolloutServer
from kd.endpoint import http
from kd.endpoint.chat import ChatError, read_chat
from kd.endpoint.connections import Reply, check_files_left
from kd.endpoint.http import EndpointError, Failed, Wire

ODD = [5, True, "text", 1.5, {"a": 1}]


def choice(**message):
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}


@pytest.mark.parametrize("odd", ODD)
def test_calls_that_are_no_list_are_no_answer(odd):
    with pytest.raises(ChatError, match="tool_calls are no list"):
        read_chat(choice(content="x", tool_calls=odd))


@pytest.mark.parametrize("odd", [*ODD, None, [], [5], [[]], [None], [{"function": 5}], [{"function": {"name": []}}]])
def test_any_other_value_of_a_choice_is_read_or_refused(odd):
    cases = [choice(content=odd), choice(content="x", tool_calls=[odd]), choice(role=odd), {"choices": odd}]
    cases += [{"choices": [odd]}, {"choices": [{"message": odd}]}, {**choice(content="x"), "usage": odd}, odd]
    cases += [{"choices": [{"message": {}, "finish_reason": odd}]}, {**choice(), "usage": {"completion_tokens": odd}}]
    for answer in cases:
        try:
            chat = read_chat(answer)
        except ChatError:
            continue
        assert isinstance(chat.text, str) and all(isinstance(part, str) for call in chat.calls for part in call)


class Saying:
    """Connections whose every answer has these headers."""

    def __init__(self, headers):
        self.headers = {"content-type": "application/json", **headers}

    async def exchange(self, *request, **limits):
        return Reply(200, self.headers, b"{}")

    async def close(self):
        pass


@pytest.mark.parametrize("reset", ["9" * 400 + "d", "99999d", "1e300s", "inf", "nan", "-5s"])
def test_a_reset_past_all_sense_ends_with_the_deadline_and_is_told(monkeypatch, reset):
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    monkeypatch.setattr(http, "Connections", lambda url: Saying(headers))
    clock, said = FakeClock(), []
    settings = Endpoint(url="http://server/v1", model="m", record_deadline_seconds=20.0, retries=0)
    wire = Wire(settings, said.append, clock.clock())

    async def ask():
        await wire.ask("GET", "/a")
        await wire.ask("GET", "/b")

    with contextlib.suppress(Failed, EndpointError):
        asyncio.run(ask())
    assert clock.now <= 21
    assert len(said) == (1 if clock.now > 19 else 0)
    assert all("no requests are left, says the server; it is asked again in 60 s" in one for one in said)
    assert said or reset in ("inf", "nan", "-5s")


@pytest.mark.parametrize(
    "url", ["http://a:x/v1", "http://a:99999/v1", "http://a:0/v1", "http://[::1/v1", "http://::1]/v1", "http://:80/v1"]
)
def test_an_address_that_no_server_has_is_refused_at_its_key(url):
    for make in (
        lambda: Endpoint(url=url, model="m"),
        lambda: RolloutServer(url=url, model="m", weights="/dev/shm/student"),
    ):
        with pytest.raises(ValidationError, match="(?s)url.*its host or port is none"):
            make()


@pytest.mark.parametrize(
    "url", ["http://a/v1", "https://ü.example:8443", "http://[::1]:80/v1", "http://127.0.0.1:8000/v1"]
)
def test_an_address_that_a_server_may_have_is_taken(url):
    assert Endpoint(url=url, model="m").url == url


@pytest.mark.parametrize("proxy", [":::", "http://a:x", "http://[::1", "socks5://a:1", "http://user:secret", "http://"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_an_odd_proxy_is_one_line_without_its_password(monkeypatch, variable, proxy):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable.lower(), proxy)
    with pytest.raises(EndpointError, match="the proxy of the environment is no http") as caught:
        Wire(Endpoint(url="http://server/v1", model="m"), print)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_too_few_files_are_told_before_an_event_loop_is_made():
    """An event loop that fails in the middle leaves a traceback."""
    program = (
        "import resource, kd.endpoint.connections as one\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))\n"
        "one.check_files_left()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "Too many open files" in done.stderr.splitlines()[-1]
    check_files_left()
