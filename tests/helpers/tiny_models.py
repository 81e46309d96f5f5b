"""Sizes of models that tests make in a moment."""

from __future__ import annotations

SIZES = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=64,
)
