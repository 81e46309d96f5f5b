"""An endpoint as the teacher, over real HTTP on loopback: equal to the model that it serves, and closed on request."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from helpers.endpoint_cases import OPENING, VOCAB, K, assert_same, micro_batches, opened, own_rows, table_logits
from helpers.endpoint_server import Server


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
        len(server.requests) == OPENING + 6 and teacher.num_requests == OPENING + 7
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
