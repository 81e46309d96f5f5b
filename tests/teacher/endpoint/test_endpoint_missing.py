"""Records that an endpoint has no usable answer for are missing, and a server that answers none ends the capture."""

from __future__ import annotations

import math
import re

import pytest
import torch

from helpers.endpoint_cases import (
    OPENING,
    VOCAB,
    assert_same,
    check_stops,
    micro_batches,
    opened,
    own_rows,
    table_logits,
)
from helpers.endpoint_server import Server, changed, status
from kd.endpoint.http import EndpointError


def test_a_server_that_is_not_there():
    server = Server(table_logits)
    server._http.server_close()
    assert "/models" not in check_stops(server, r"no connection: .*\(attempts: 3\)", retries=2)


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
        message = check_stops(
            server, "records have no targets", batches=micro_batches(6), max_missing=0.1, num_records=12
        )
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
        check_stops(
            server,
            f"answers no more. Record r0: record r0: {WRONG[name][1]}.*Then the prompt of the opening, which it had "
            "answered: ",
        )
