"""An endpoint as the teacher, over real HTTP on loopback: equal to the model that it serves, and steady when it
misbehaves.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from email.utils import formatdate

import pytest
import torch

from helpers.endpoint_cases import VOCAB, FakeClock, K, micro_batches, opened, own_rows, table_logits
from helpers.endpoint_server import Server, body, changed, cut_body, drip, no_reply, reset_in_body, status
from kd.endpoint.http import EndpointError
from kernels import TeacherTopK

OPENING = 1  # completions that opening takes


def assert_same(rows: TeacherTopK, wanted: TeacherTopK) -> None:
    assert torch.equal(rows.ids, wanted.ids) and torch.equal(rows.argmax, wanted.argmax)
    assert torch.allclose(rows.log_probs, wanted.log_probs, rtol=0, atol=1e-5)
    assert torch.allclose(rows.log_tail.exp(), wanted.log_tail.exp(), rtol=0, atol=1e-6)
    assert rows.temperatures == (1.0,) and rows.entropy.isnan().all()


@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_model_that_is_served(packed):
    batches = micro_batches(3, packed=packed)
    with Server(table_logits) as server:
        teacher = opened(server)
        for micro in batches:
            assert_same(teacher.target_rows(micro), own_rows(micro))
            assert teacher.missing(micro) == {}
        teacher.close()
    sent = [ids for micro in batches for ids in micro.input_ids[micro.attention_mask.bool()].tolist()]
    assert [i for request in server.requests[OPENING:] for i in request["prompt"]] == sent  # the ids, and no others
    assert (
        len(server.requests) == OPENING + 6 and teacher.num_requests == 8
    )  # one a record, and one for the list of models


def test_no_records_and_no_rows():
    from kd.batching.micro_batch import collate
    from kd.rendering.encode import Encoded

    with Server(table_logits) as server:
        teacher = opened(server)
        assert teacher.target_rows(collate([], 0)).ids.shape == (0, K)
        assert teacher.target_rows(collate([Encoded("r", [1, 2], [0, 0], 1.0)], 0)).log_tail.shape == (1, 0)
        teacher.close()


def test_all_of_the_vocabulary_leaves_no_tail():
    (micro,) = micro_batches(1)
    with Server(table_logits) as server:
        teacher = opened(server, top_k=VOCAB)
        rows = teacher.target_rows(micro)
        teacher.close()
    assert rows.log_tail.isneginf().all() and torch.equal(rows.ids, own_rows(micro, VOCAB).ids)


def test_as_many_requests_at_once_as_allowed_and_answers_in_order():
    batches, four = micro_batches(8), threading.Barrier(4)

    def together(handler, request, answer):
        four.wait(20)  # answered when there are four, or never
        time.sleep(0.005 * (request["prompt"][0] % 5))  # not in the order they came in
        return False

    with Server(table_logits, faults=lambda number, request: together if number >= OPENING else None) as server:
        teacher = opened(server, concurrency=4)
        teacher.prefetch(batches)
        for micro in batches:
            assert_same(teacher.target_rows(micro), own_rows(micro))
        teacher.close()
    assert server.most_active == 4 and len(server.requests) == OPENING + 16


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


def stops(server: Server, message: str, *, clock=None, batches=None, **given) -> str:
    """The EndpointError of opening and asking for two records."""
    with pytest.raises(EndpointError, match=message) as caught:
        teacher = opened(server, clock, **given)
        try:
            for micro in batches or micro_batches(2, size=1):
                teacher.target_rows(micro)
        finally:
            teacher.close()
    return str(caught.value)


def test_retry_after_past_the_records_deadline_stops():
    with Server(table_logits, faults=[None] * OPENING + [status(429, {"Retry-After": "3600"})]) as server:
        stops(
            server,
            r"status 429, and asks to wait 3600 s, past teacher.endpoint.record_deadline_seconds \(900\): what was "
            r"captured is kept",
        )
    assert len(server.requests) == OPENING + 1


def test_a_records_deadline_ends_its_attempts():
    clock = FakeClock()
    with Server(table_logits, faults=lambda number, request: status(503) if number >= OPENING else None) as server:
        stops(server, "answers no more", clock=clock, retries=100, record_deadline_seconds=30.0)
    assert clock.now <= 60 and 8 <= len(server.requests) <= 20  # the record's and the one asked for after it


def test_the_deadline_of_the_whole():
    clock = FakeClock()
    with Server(table_logits, faults=lambda number, request: status(503) if number > OPENING else None) as server:
        message = stops(
            server,
            r"deadline_seconds \(100\) have passed: what was captured is kept",
            clock=clock,
            deadline_seconds=100.0,
            retries=100,
        )
    assert "start the capture again" in message and 100 <= clock.now <= 160


def test_a_server_that_is_not_there():
    server = Server(table_logits)
    server._http.server_close()
    assert "/models" not in stops(server, r"ConnectError .*\(attempts: 3\)", retries=2)


def test_a_server_that_dies_stops_the_capture_and_no_record_is_missing():
    batches, said = micro_batches(6, size=1), []
    with Server(table_logits, faults=lambda number, request: status(503) if number >= OPENING + 3 else None) as server:
        teacher = opened(server, said=said, concurrency=3, retries=4)
        for micro in batches[:3]:
            assert_same(teacher.target_rows(micro), own_rows(micro))
        with pytest.raises(
            EndpointError,
            match=r"answers no more. Record r\d: status 503: not now \(attempts: 5\). Then the prompt r\d, "
            r"which it had "
            r"answered: status 503: not now \(attempts: 5\); what was captured is kept",
        ):
            teacher.prefetch(batches[3:])
            for micro in batches[3:]:
                teacher.target_rows(micro)
        assert [teacher.missing(micro) for micro in batches] == [{}] * 6
        num = len(server.requests)
        with pytest.raises(EndpointError, match="answers no more"):
            teacher.target_rows(micro_batches(1)[0])
        teacher.close()
    assert len(server.requests) == num <= OPENING + 3 + 4 * 5 and not [line for line in said if "left out" in line]


def test_a_record_that_the_server_fails_at_is_missing_and_the_others_are_not():
    batches, said = micro_batches(4), []
    poison = batches[1].input_ids[0][batches[1].attention_mask[0].bool()].tolist()
    with Server(
        table_logits,
        faults=lambda number, request: status(500, message="CUDA error") if request["prompt"] == poison else None,
    ) as server:
        teacher = opened(server, said=said, retries=3)
        for i, micro in enumerate(batches):
            rows, wanted = teacher.target_rows(micro), own_rows(micro)
            assert teacher.missing(micro) == ({0: "status 500: CUDA error (attempts: 4)"} if i == 1 else {})
            lost = micro.record == 0 if i == 1 else torch.zeros_like(micro.record, dtype=torch.bool)
            assert rows.log_probs[lost].isnan().all() and torch.allclose(
                rows.log_probs[~lost], wanted.log_probs[~lost], rtol=0, atol=1e-5
            )
        teacher.close()
    assert (
        len(server.requests) == OPENING + 8 + 3 + 1
    )  # each, three more attempts, and a look whether the server is well
    assert "endpoint: record r2 is left out: status 500: CUDA error (attempts: 4)" in said


def test_a_context_that_is_too_short():
    """Refused with the server's words, at once; a warning when it is opened."""
    batches, said = micro_batches(4), []  # lengths 9, 10, 11, 9, ...
    with Server(table_logits, max_model_len=11) as server:
        teacher = opened(server, said=said, longest=11)
        missing = [teacher.missing(micro) for micro in batches if teacher.target_rows(micro)]
        teacher.close()
    reason = (
        "the server refuses it: This model's maximum context length is 11 tokens. However, you requested 12 tokens."
    )
    assert missing == [{}, {0: reason}, {1: reason}, {}] and len(server.requests) == OPENING + 8
    assert said[0] == (
        "endpoint: its context is 11 tokens and the longest record needs 12: records that do not fit will be missing; "
        "start the "
        "server with --max-model-len 12"
    )


def test_more_missing_than_allowed():
    with Server(table_logits, max_model_len=11) as server:
        message = stops(server, "records have no targets", batches=micro_batches(6), max_missing=0.1, num_records=12)
    assert message.startswith(
        f"{server.url}: 2 records have no targets, more than teacher.endpoint.max_missing (0.1) allows; the last is "
        "r5: the "
        "server refuses it"
    )


def swap(choice):
    choice["prompt_token_ids"][1] = (choice["prompt_token_ids"][1] + 1) % VOCAB


WRONG = {
    "another token": (swap, "position 1: token [0-9]+ was sent and the server had token [0-9]+"),
    "another length": (lambda c: c["prompt_logprobs"].pop(), "9 tokens were sent and prompt_logprobs is a list of 8"),
    "fewer": (
        lambda c: [c["prompt_logprobs"][t].popitem() for t in range(1, 9) for _ in range(2)],
        "position [0-9]+: [67] tokens where 8 were asked for",
    ),
    "NaN": (
        lambda c: [e.update(logprob=math.nan) for e in c["prompt_logprobs"][8].values()],
        "position 8: the log-prob of token [0-9]+ is nan",
    ),
    "more than 1": (
        lambda c: [e.update(logprob=-0.1) for e in c["prompt_logprobs"][8].values()],
        "position 8: the probabilities sum to 7.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_for_one_record(name):
    (micro, other), (change, reason) = micro_batches(2, size=1), WRONG[name]
    with Server(table_logits, faults=[None] * OPENING + [changed(change)]) as server:
        teacher = opened(server)
        teacher.target_rows(micro)
        assert_same(teacher.target_rows(other), own_rows(other))
        (found,) = teacher.missing(micro).values()
        teacher.close()
    assert re.match(f"record r0: {reason}", found)
    assert len(server.requests) == OPENING + 3  # not tried again: it was asked whether the server is well


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_for_all_records_stop_at_the_first(name):
    def wrong(number, request):
        if number >= OPENING:
            return changed(WRONG[name][0] if len(request["prompt"]) == 9 else lambda c: c["prompt_logprobs"].pop())
        return None

    with Server(table_logits, faults=wrong) as server:
        stops(
            server,
            f"answers no more. Record r0: record r0: {WRONG[name][1]}.*Then the prompt of two tokens, which it had "
            "answered: ",
        )


def test_the_option_is_ignored():
    with Server(
        table_logits, faults=lambda number, request: changed(lambda c: c.update(prompt_logprobs=None))
    ) as server:
        stops(
            server,
            "the answer has no prompt_logprobs: the server ignores this option of vLLM's; a server is needed "
            "that has it",
        )
    assert len(server.requests) == 1


def test_the_servers_limit_of_log_probs():
    with Server(table_logits, max_logprobs=5) as server:
        stops(
            server,
            "Requested prompt logprobs of 8, which is greater than max allowed: 5; start the server with "
            "--max-logprobs 8, or lower "
            "teacher.cache.top_k",
        )


def test_a_model_that_is_not_there():
    with Server(table_logits) as server:
        stops(
            server, "teacher.endpoint.model: no model 'demmo' there; it has 'demo'; did you mean 'demo'?", model="demmo"
        )
    assert server.requests == []


def test_an_address_that_is_not_right():
    with Server(table_logits) as server:
        stops(
            server,
            "/models: status 404: Not Found; check teacher.endpoint.url \\(it ends with /v1 on most servers\\) "
            "and model",
            url=server.url[: -len("/v1")],
        )


def test_a_redirect_is_not_followed():
    with (
        Server(table_logits) as other,
        Server(table_logits, faults=lambda n, r: status(307, {"Location": other.url + "/completions"})) as server,
    ):
        stops(
            server,
            "redirects \\(status 307\\) to 127.0.0.1; redirects are not followed.*put the final address into "
            "teacher.endpoint.url",
        )
    assert other.requests == []


def test_the_tokenizer_is_compared():
    with Server(table_logits, decode=lambda i: f"word{i}") as server:
        teacher = opened(server, decode=lambda i: f" word{i}")
        teacher.target_rows(micro_batches(1)[0])
        teacher.close()
        stops(
            server,
            r"its tokenizer is not the run's \((\d+) of \1 tokens differ\): token \d+ is 'word\d+' there and "
            r"'term\d+' here",
            decode=lambda i: f"term{i}",
        )


def texts(rule):
    """A fault of all records' answers: rule(number of the record, token) is the text that the server shows of a token,
    or None.
    """

    def of(number, request):
        def change(choice):
            for entries in choice["prompt_logprobs"][1:]:
                for token, entry in entries.items():
                    entry["decoded_token"] = rule(number - OPENING, int(token))

        return changed(change)

    return of


def opened_and_asked(server, num, **given):
    teacher = opened(server, decode=lambda i: f"word{i}", **given)
    try:
        for micro in micro_batches(num, size=1):
            teacher.target_rows(micro)
    finally:
        teacher.close()
        teacher.close()


@pytest.mark.parametrize("before", [None, " ", "\n", "\ufffd", "\u4f60"])
def test_the_tokenizer_is_compared_when_there_is_something_to_compare(before):
    """The first three records show nothing; then the tokens are another tokenizer's."""
    with Server(table_logits, faults=texts(lambda record, token: before if record < 3 else f"term{token}")) as server:  # noqa: SIM117
        with pytest.raises(
            EndpointError,
            match=r"\((\d+) of \1 tokens differ\): .*; serve the teacher that tokenizer.path belongs to, and capture "
            r"into another folder: the answers to 3 records before showed too few texts to tell",
        ):
            opened_and_asked(server, 6)
    assert len(server.requests) == OPENING + 4


def test_the_tokenizer_is_compared_over_several_answers():
    """Each shows one token more, so that none alone could tell."""
    seen: set[int] = set()

    def one_more(record, token):
        if len(seen) == record:
            seen.add(token)
        return f"term{token}" if token in seen else None

    with (
        Server(table_logits, faults=texts(one_more)) as server,
        pytest.raises(EndpointError, match=r"\(([34]) of \1 tokens differ\)"),
    ):
        opened_and_asked(server, 6)
    assert OPENING + 2 <= len(server.requests) <= OPENING + 4


def test_a_few_tokens_that_are_shown_otherwise_are_no_other_tokenizer():
    """The first answer shows two tokens alone, both in the server's own way; the rest are as they should be."""
    with Server(
        table_logits,
        faults=texts(lambda record, token: f"<{token}>" if token < 3 else f"word{token}" if record else None),
    ) as server:
        said = []
        opened_and_asked(server, 6, said=said)
    assert said == [] and len(server.requests) == OPENING + 6


def test_a_tokenizer_that_could_not_be_compared_is_told_of_once():
    said = []
    with Server(table_logits, faults=texts(lambda record, token: None)) as server:
        opened_and_asked(server, 3, said=said)
    assert said == [
        "endpoint: whether its tokenizer is the run's is not known: its answers showed the texts of 0 tokens that can "
        "be compared, and 20 are "
        "needed; see to it that it serves the teacher that tokenizer.path belongs to"
    ]


def test_more_tokens_than_the_vocabulary_has():
    with Server(table_logits) as server:
        stops(server, "teacher.cache.top_k is 51; it must lie between 1 and the vocabulary, 50", top_k=51)


def test_close_ends_what_is_under_way():
    block = threading.Event()

    def wait(handler, request, answer):
        block.wait(10)

    with Server(table_logits, faults=lambda number, request: wait if number >= OPENING else None) as server:
        teacher = opened(server, concurrency=2)
        teacher.prefetch(micro_batches(5))
        while len(server.requests) < OPENING + 2:
            time.sleep(0.005)
        started = time.monotonic()
        teacher.close()
        teacher.close()
        assert time.monotonic() - started < 5  # the server would answer after 10
        block.set()
    assert len(server.requests) == OPENING + 2 and not [t for t in threading.enumerate() if t.name == "endpoint"]
