"""Small models and packed rows of a few records, and what must hold of them on any device."""

from __future__ import annotations

import random

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kd.batching.micro_batch import MicroBatch, collate, collate_packed
from kd.models.hidden_states import hidden_rows
from kd.rendering.encode import Encoded
from kd.rendering.spans import TRUTH

VOCAB = 90
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    initializer_range=0.3,
    max_position_embeddings=64,
)
# Two rows, the second with room to spare: records of 5 + 9 + 2 and 7 + 6 tokens.
ROWS = [[5, 9, 2], [7, 6]]


def model(family: str, attention: str = "eager"):
    torch.manual_seed(3)
    windows = {
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "use_sliding_window": True,
        "sliding_window": 3,
    }
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
        "qwen3 with windows": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **windows)),
        # positions that are learned show where they begin; rotary ones only how far apart tokens are
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3)
        ),
        "mistral with windows": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=3)),
    }[family]()
    made.config._attn_implementation = attention
    return made.eval()


def records() -> list[list[Encoded]]:
    """Every token but a record's first is trained."""
    rng, names = random.Random(1), iter("abcde")
    return [
        [Encoded(next(names), [rng.randrange(VOCAB) for _ in range(n)], [TRUTH] * n, 1.0) for n in row] for row in ROWS
    ]


def states(model, micro: MicroBatch) -> dict[str, torch.Tensor]:
    """The rows' hidden states of each record."""
    micro = micro.to(model.device)
    with torch.no_grad():
        hidden = hidden_rows(model, micro)
    return {name: hidden[micro.record == i] for i, name in enumerate(micro.record_ids)}


def assert_no_leak(model, *, alone_within: float = 2e-5) -> None:
    """Each token in turn is changed: not one bit of another record's states moves, and its own record's do. Before
    that, each record's states are those it has alone."""
    rows = records()
    before = states(model, collate_packed(rows, 0, 16))
    for r, row in enumerate(rows):
        for e in row:
            alone = states(model, collate([e], 0))[e.record_id]
            torch.testing.assert_close(before[e.record_id], alone, atol=alone_within, rtol=alone_within)
            for t in range(len(e.input_ids)):
                changed = [list(line) for line in rows]
                changed[r][row.index(e)] = e._replace(
                    input_ids=[*e.input_ids[:t], (e.input_ids[t] + 1) % VOCAB, *e.input_ids[t + 1 :]]
                )
                after = states(model, collate_packed(changed, 0, 16))
                moved = {name for name in before if not torch.equal(after[name], before[name])}
                # The last token's own state is no row.
                assert moved == ({e.record_id} if t < len(e.input_ids) - 1 else set()), f"token {t} of {e.record_id}"
