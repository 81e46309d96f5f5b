"""A teacher of one token of context, whose logits are a table; records for it; a clock that does not wait."""

from __future__ import annotations

import asyncio

import pytest
import torch

from helpers.endpoint_server import MODEL, Server
from kd.batching.micro_batch import MicroBatch, collate, collate_packed
from kd.config.schema import Endpoint
from kd.endpoint.http import Clock, EndpointError
from kd.rendering.encode import Encoded
from kd.rendering.spans import TRUTH
from kd.teacher.endpoint.records import EndpointTask
from kd.teacher.endpoint.teacher import EndpointTeacher
from kernels import Head, TeacherTopK, teacher_topk

VOCAB, K = 50, 8
OPENING = 3  # completions that opening takes
TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(5)) * 2


def table_logits(token_ids: list[int]) -> torch.Tensor:
    return TABLE[torch.tensor(token_ids)]


def record(name: str, seed: int, length: int = 9) -> Encoded:
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (length,), generator=made).tolist()
    bits = [0, 0, *(TRUTH * int(b) for b in torch.randint(0, 2, (length - 2,), generator=made))]
    return Encoded(name, ids, bits[:-1] + [TRUTH], 1.0)


def micro_batches(num: int, size: int = 2, packed: bool = False, length: int = 9) -> list[MicroBatch]:
    records = [record(f"r{i}", i, length + i % 3) for i in range(num * size)]
    groups = [records[at : at + size] for at in range(0, len(records), size)]
    return [collate_packed([group[:1], group[1:]], 0, 64) if packed else collate(group, 0) for group in groups]


def own_rows(micro: MicroBatch, k: int = K) -> TeacherTopK:
    """What the model itself gives for the rows of a micro-batch."""
    hidden = TABLE[micro.input_ids.flatten()[micro.rows]]
    return teacher_topk(hidden, Head(torch.eye(VOCAB)), k)


class FakeClock:
    """Time passes only by sleeping."""

    def __init__(self, wall: float = 1_700_000_000.0):
        self.now, self.start, self.slept = 0.0, wall, []

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.start + self.now, self.sleep)


def settings_of(server: Server, **given) -> Endpoint:
    return Endpoint(
        **{"url": server.url, "model": MODEL, "concurrency": 1, "timeout_seconds": 60.0, "max_missing": 1.0, **given}
    )


def opened(
    server: Server,
    clock: FakeClock | None = None,
    *,
    num_records: int = 100,
    said: list | None = None,
    decode=None,
    top_k: int = K,
    longest: int = 0,
    **given,
) -> EndpointTeacher:
    task = EndpointTask(
        settings_of(server, **given),
        top_k=top_k,
        vocab_size=VOCAB,
        num_records=num_records,
        longest=longest,
        decode=decode,
        say=(said if said is not None else []).append,
    )
    return EndpointTeacher(task, (clock or FakeClock()).clock())


def assert_same(rows: TeacherTopK, wanted: TeacherTopK) -> None:
    assert torch.equal(rows.ids, wanted.ids) and torch.equal(rows.argmax, wanted.argmax)
    assert torch.allclose(rows.log_probs, wanted.log_probs, rtol=0, atol=1e-5)
    assert torch.allclose(rows.log_tail.exp(), wanted.log_tail.exp(), rtol=0, atol=1e-6)
    assert rows.temperatures == (1.0,) and rows.entropy.isnan().all()


def check_stops(server: Server, message: str, *, clock=None, batches=None, **given) -> str:
    """The EndpointError of opening and asking for two records."""
    with pytest.raises(EndpointError, match=message) as caught:
        teacher = opened(server, clock, **given)
        try:
            for micro in batches or micro_batches(2, size=1):
                teacher.target_rows(micro)
        finally:
            teacher.close()
    return str(caught.value)
