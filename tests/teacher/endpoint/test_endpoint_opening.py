"""An endpoint that cannot serve the capture is refused when it is opened, with the remedy."""

from __future__ import annotations

import pytest
import torch

from helpers.endpoint_cases import VOCAB, check_stops, opened, table_logits
from helpers.endpoint_server import Server, changed, status


def test_the_option_is_ignored():
    with Server(
        table_logits, faults=lambda number, request: changed(lambda c: c.update(prompt_logprobs=None))
    ) as server:
        check_stops(
            server,
            "the answer has no prompt_logprobs: the server ignores this option of vLLM's; a server is needed "
            "that has it",
        )
    assert len(server.requests) == 1


def test_the_servers_limit_of_log_probs():
    with Server(table_logits, max_logprobs=5) as server:
        check_stops(
            server,
            "Requested prompt logprobs of 8, which is greater than max allowed: 5; start the server with "
            "--max-logprobs 8, or lower "
            "teacher.cache.top_k",
        )


def processed(logits, request):
    """As --logprobs-mode processed_logprobs may: at temperature 1 it is as good as raw."""
    return logits / request["temperature"]


@pytest.mark.parametrize("top_k", [1, 8, VOCAB])
def test_log_probs_that_follow_the_requests_temperature(top_k):
    with Server(table_logits, serve=processed) as server:
        check_stops(
            server,
            "change by .* nats when the request asks for temperature 0.25 in place of 1: they are processed.*start "
            "vLLM with --logprobs-mode raw_logprobs",
            top_k=top_k,
        )
    assert [request["temperature"] for request in server.requests] == [1.0, 0.25]


@pytest.mark.parametrize("top_k", [1, 8, VOCAB])
@pytest.mark.parametrize(
    ("shift", "problem"),
    [(-1, "position 3 change with the token at position 3"), (1, "position 4 do not change with the token before it")],
)
def test_rows_of_another_position(shift, problem, top_k):
    """Each row is whole, and holds the sent token: nothing in one answer tells that it is its neighbour's."""
    with Server(table_logits, serve=lambda logits, request: logits.roll(shift, 0)) as server:
        check_stops(server, f"the log-probs of {problem}: they are another position's", top_k=top_k)


def test_the_other_checks_take_a_server_that_rounds():
    """Two answers of one bf16 server differ in their last bits."""
    torch.manual_seed(0)
    with Server(table_logits, serve=lambda logits, request: logits + torch.randn_like(logits) * 0.05) as server:
        opened(server).close()


def test_a_model_that_is_not_there():
    with Server(table_logits) as server:
        check_stops(
            server, "teacher.endpoint.model: no model 'demmo' there; it has 'demo'; did you mean 'demo'?", model="demmo"
        )
    assert server.requests == []


def test_an_address_that_is_not_right():
    with Server(table_logits) as server:
        check_stops(
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
        check_stops(
            server,
            "redirects \\(status 307\\) to 127.0.0.1; redirects are not followed.*put the final address into "
            "teacher.endpoint.url",
        )
    assert other.requests == []


def test_more_tokens_than_the_vocabulary_has():
    with Server(table_logits) as server:
        check_stops(server, "teacher.cache.top_k is 51; it must lie between 1 and the vocabulary, 50", top_k=51)
