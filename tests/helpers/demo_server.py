"""The demo teacher behind the loopback server: `with demo_server() as (server, model, tokenizer)`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.endpoint_server import Server

TEACHER = Path(__file__).resolve().parents[2] / "configs" / "demo_teacher"


@contextmanager
def demo_server(**given) -> Iterator[tuple[Server, torch.nn.Module, object]]:
    """In fp32, a record at a time and without padding, as a server has it."""
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)

    @torch.no_grad()
    def logits_of(token_ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([token_ids]), use_cache=False).logits[0]

    with Server(logits_of, decode=lambda i: tokenizer.decode([i]), **given) as server:
        yield server, model, tokenizer
