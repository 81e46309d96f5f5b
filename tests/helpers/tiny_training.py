"""What a few steps of a tiny student need: a micro-batch of random tokens, terms, a tokenizer that saves nothing."""

from __future__ import annotations

from typing import Any

import torch

from kd.batching.fit import Sample
from kd.batching.micro_batch import MicroBatch, count_rows, pad_samples
from kd.objective.terms import TERMS, TermWeights
from kd.rendering.spans import TRUTH

VOCAB_SIZE = 90  # of the tokens that are drawn; SIZES is wider
TERM_WEIGHTS = TermWeights(kd=0, hard=0, truth=1, tool=0, args=0, integration=0, temperature=1.0)


class NoTokenizer:
    def save_pretrained(self, folder) -> None:
        pass


def micro_batch() -> MicroBatch:
    """Make two records of 20 tokens, all of them trained."""
    ids = torch.randint(2, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(5)).numpy()
    bits = (ids * 0 + TRUTH).astype("uint8")
    return pad_samples([Sample(f"r{i}", ids[i], bits[i], 1.0, b"k" * 16) for i in range(2)], 0)


def step(engine: Any, number: int) -> float:
    """Take one step on that micro-batch on each of two ranks; returns its loss."""
    micro = micro_batch()
    report = engine.train_step([micro], count_rows([micro]) * 2, TERM_WEIGHTS, None, number)
    return report.sums[: len(TERMS)].sum().item() * 2


@torch.no_grad()
def logits(model) -> torch.Tensor:
    """Compute the logits of a causal LM of SIZES on fixed tokens."""
    return model.eval()(torch.arange(24).view(2, 12) * 3, use_cache=False).logits
