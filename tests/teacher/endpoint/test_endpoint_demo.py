"""The demo teacher behind an endpoint gives what the demo teacher itself gives, for the demo's records, padded and
packed.
"""

from __future__ import annotations

import torch

from helpers.demo_server import demo_server
from helpers.endpoint_cases import OPENING, settings_of
from kd.batching.micro_batch import collate, collate_packed
from kd.models.hidden_states import hidden_rows
from kd.models.lm_head import head_of
from kd.rendering.encode import encode
from kd.sources.demo import corpus as demo
from kd.teacher.endpoint.records import EndpointTask
from kd.teacher.endpoint.teacher import EndpointTeacher
from kernels import Head, teacher_topk

K = 32


def test_the_demo_teacher():
    said = []
    with demo_server() as (server, model, tokenizer):
        encoded = [
            encode(demo.record(kind, i, seed=3), tokenizer)
            for i, kind in enumerate(("single", "parallel", "multi", "chat"))
        ]
        batches = [
            collate(encoded[:2], 0),
            collate_packed([encoded[2:3], encoded[3:]], 0, 1024),
            collate_packed([encoded[2:]], 0, 2048),
        ]
        task = EndpointTask(
            settings_of(server, concurrency=2),
            top_k=K,
            vocab_size=len(tokenizer),
            num_records=len(encoded),
            say=said.append,
            longest=max(len(e.input_ids) for e in encoded),
            decode=lambda i: tokenizer.decode([i]),
        )
        teacher = EndpointTeacher(task)
        teacher.prefetch(batches[:2])
        head = Head(head_of(model).weight.detach())
        for micro in batches:
            rows, missing = teacher.target_rows(micro), teacher.missing(micro)
            with torch.no_grad():
                wanted = teacher_topk(hidden_rows(model, micro), head, K, vocab_size=len(tokenizer))
            assert missing == {} and len(rows.ids) == len(micro.rows) > 20
            # Rounding swaps tokens that are nearly as likely, at most next to one another; nothing else may differ.
            assert torch.equal(rows.argmax, wanted.argmax) and (rows.ids == wanted.ids).float().mean() > 0.99
            assert (rows.log_probs - wanted.log_probs).abs().max() < 1e-4
            assert (
                rows.log_tail.exp() - wanted.log_tail.exp()
            ).abs().max() < 1e-5  # what fp32 log-probs tell of 1 - sum, and less for small ones
        teacher.close()
    assert said == [] and len(server.requests) == OPENING + len(encoded) + 2
