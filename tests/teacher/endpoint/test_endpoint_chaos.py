"""Every record arrives, and right, through connections that break at random bytes."""

from __future__ import annotations

import pytest
import torch

from helpers.chaos import Chaos
from helpers.endpoint_cases import FakeClock, micro_batches, opened, own_rows, table_logits
from helpers.endpoint_server import Server


@pytest.mark.parametrize(
    ("num", "seed"), [(10, 1), *(pytest.param(100, seed, marks=pytest.mark.slow) for seed in range(2, 12))]
)
def test_connections_that_break(num, seed):
    batches, said = micro_batches(num, size=2), []
    with Server(table_logits) as server, Chaos(server.port, seed, most_bytes=20_000) as chaos:
        server.url = f"http://127.0.0.1:{chaos.port}/v1"
        teacher = opened(server, FakeClock(), said=said, concurrency=4, retries=60)
        teacher.prefetch(batches)
        for micro in batches:
            rows, wanted = teacher.target_rows(micro), own_rows(micro)
            assert teacher.missing(micro) == {} and torch.equal(rows.ids, wanted.ids)
            assert torch.allclose(rows.log_probs, wanted.log_probs, rtol=0, atol=1e-5)
        num_requests = teacher.num_requests
        teacher.close()
    assert chaos.num_broken > num and num_requests > 2 * num + 2  # it was bad, and every record came
