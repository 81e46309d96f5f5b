"""The endpoint's tokenizer is compared with the run's by the texts that its answers show."""

from __future__ import annotations

import pytest

from helpers.endpoint_cases import OPENING, check_stops, micro_batches, opened, table_logits
from helpers.endpoint_server import Server, changed
from kd.endpoint.http import EndpointError


def test_the_tokenizer_is_compared():
    with Server(table_logits, decode=lambda i: f"word{i}") as server:
        teacher = opened(server, decode=lambda i: f" word{i}")
        teacher.target_rows(micro_batches(1)[0])
        teacher.close()
        check_stops(
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
