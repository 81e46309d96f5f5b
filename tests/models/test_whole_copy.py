"""Whole copy of a model: its weights, its answers, and no trace in the random numbers."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kd.models.whole_copy import WholeCopy

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def test_the_copy_follows_the_model_and_draws_nothing():
    for tied in (False, True):
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()
        copy, before = WholeCopy(model, torch.device("cpu")), torch.get_rng_state()
        ids = torch.arange(8)[None]
        for _ in range(2):
            made = copy.refresh()
            assert torch.equal(made(ids).logits, model(ids).logits)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1)
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(made(ids).logits, model(ids).logits)  # a copy, not the model
