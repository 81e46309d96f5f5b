"""An endpoint that fails for a while: tried again, Retry-After obeyed, deadlines kept."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest

from helpers.endpoint_cases import (
    OPENING,
    FakeClock,
    assert_same,
    check_stops,
    micro_batches,
    opened,
    own_rows,
    table_logits,
)
from helpers.endpoint_server import Server, body, cut_body, drip, no_reply, reset_in_body, status


def long(handler, request, answer):
    """The right one, and 2 MB of white space."""
    handler.send(200, json.dumps(answer).encode() + b" " * 2_000_000)


PASSING = {
    "429": [status(429)],
    "408": [status(408)],
    "502": [body(b"<html>bad gateway</html>", "text/html", 502)],
    "a burst of 503": [status(503)] * 6,
    "reset in the body": [reset_in_body],
    "cut body": [cut_body],
    "no reply": [no_reply],
    "bad JSON": [body(b'{"choices": [')],
    "deep JSON": [body(b"[" * 100_000)],
    "an HTML page": [body(b"<html>hello</html>", "text/html")],
    "JSON that is called text": [body(b"{}", "text/plain")],
    "an empty answer": [body(b"")],
    "too long an answer": [long],
    "of each": [status(429), reset_in_body, cut_body, status(500), body(b"x"), no_reply],
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(name):
    (micro,), faults, clock, said = micro_batches(1), PASSING[name], FakeClock(), []
    with Server(table_logits, faults=[None] * OPENING + faults) as server:
        teacher = opened(server, clock, said=said)
        assert_same(teacher.target_rows(micro), own_rows(micro))
        teacher.close()
    assert len(server.requests) == OPENING + len(faults) + 2 and len(clock.slept) == len(faults)
    for n, seconds in enumerate(clock.slept):
        assert 0.25 * 2**n <= seconds <= 0.5 * 2**n
    assert len(said) == 1 and said[0].endswith("trying again")


@pytest.mark.parametrize("headers", [False, True])
def test_a_slow_answer_is_cut_off_though_every_byte_is_in_time(headers):
    (micro,) = micro_batches(1)
    with Server(table_logits, faults=[None] * OPENING + [drip(headers, pause=0.05, num=100)]) as server:
        teacher = opened(server, timeout_seconds=1.0)
        started = time.monotonic()
        assert_same(teacher.target_rows(micro), own_rows(micro))
        assert 1.0 <= time.monotonic() - started < 4.0
        teacher.close()
    assert len(server.requests) >= OPENING + 3


@pytest.mark.parametrize(
    ("given", "least"),
    [
        ("7", 7),
        (formatdate(1_700_000_000 + 40, usegmt=True), 39),
        (formatdate(1_600_000_000, usegmt=True), 0),
        ("soon", 0),
        ("-5", 0),
        ("1e9", 0),
        ("٣", 0),
        ("", 0),
    ],
)
def test_retry_after_is_obeyed(given, least):
    (micro,), clock = micro_batches(1), FakeClock()
    raw = {"Retry-After": given.encode().decode("latin-1")}
    with Server(table_logits, faults=[None] * OPENING + [status(429, raw)]) as server:
        teacher = opened(server, clock)
        assert_same(teacher.target_rows(micro), own_rows(micro))
        teacher.close()
    assert least <= clock.now <= least + 2.1  # an HTTP date has whole seconds, and up to one more is for the spread


def test_retry_after_holds_back_every_request():
    """One request is told to wait 20 s; another one that comes right after it waits too."""
    batches, clock = micro_batches(2, size=1), FakeClock()
    at = []

    def note(number, request):
        at.append(clock.now)
        return status(503, {"Retry-After": "20"}) if number == OPENING else None

    with Server(table_logits, faults=note) as server:
        teacher = opened(server, clock, concurrency=2)
        teacher.prefetch(batches[:1])
        while len(at) < OPENING + 1:
            time.sleep(0.001)
        for micro in batches:
            assert_same(teacher.target_rows(micro), own_rows(micro))
        teacher.close()
    assert min(at[OPENING + 1 :]) >= 20 and len(at) == OPENING + 3


def test_retry_after_past_the_records_deadline_check_stops():
    with Server(table_logits, faults=[None] * OPENING + [status(429, {"Retry-After": "3600"})]) as server:
        check_stops(
            server,
            r"status 429, and asks to wait 3600 s, past teacher.endpoint.record_deadline_seconds \(900\): what was "
            r"captured is kept",
        )
    assert len(server.requests) == OPENING + 1


def test_a_records_deadline_ends_its_attempts():
    clock = FakeClock()
    with Server(table_logits, faults=lambda number, request: status(503) if number >= OPENING else None) as server:
        check_stops(server, "answers no more", clock=clock, retries=100, record_deadline_seconds=30.0)
    assert clock.now <= 60 and 8 <= len(server.requests) <= 20  # the record's and the one asked for after it


def test_the_deadline_of_the_whole():
    clock = FakeClock()
    with Server(table_logits, faults=lambda number, request: status(503) if number > OPENING else None) as server:
        message = check_stops(
            server,
            r"deadline_seconds \(100\) have passed: what was captured is kept",
            clock=clock,
            deadline_seconds=100.0,
            retries=100,
        )
    assert "start the capture again" in message and 100 <= clock.now <= 160
