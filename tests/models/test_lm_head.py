"""Heads of transformers models: understood ones give the model's own logits, others are refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from helpers.tiny_models import SIZES
from kd.models.lm_head import HeadScaling, UnsupportedHead, head_of, head_scaling


def test_heads_that_are_understood():
    from transformers import CohereConfig, Gemma2Config, GraniteConfig

    assert head_scaling(LlamaConfig(**SIZES)) == HeadScaling()
    assert head_scaling(Gemma2Config(final_logit_softcapping=30.0)) == HeadScaling(1.0, 30.0)
    assert head_scaling(Gemma2Config(final_logit_softcapping=None)) == HeadScaling()
    assert head_scaling(CohereConfig(logit_scale=0.0625)) == HeadScaling(0.0625, None)
    assert head_scaling(GraniteConfig(logits_scaling=8.0)) == HeadScaling(0.125, None)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "qwen3"])
def test_the_head_gives_the_models_own_logits(family):
    from transformers import CohereConfig, Gemma2Config, GraniteConfig

    sizes = {**SIZES, "num_hidden_layers": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model_config = {
        "gemma2": lambda: Gemma2Config(**sizes, final_logit_softcapping=0.05),
        "cohere": lambda: CohereConfig(**sizes, logit_scale=0.0625),
        "granite": lambda: GraniteConfig(**{k: v for k, v in sizes.items() if k != "head_dim"}, logits_scaling=8.0),
        "qwen3": lambda: Qwen3Config(**sizes),
    }[family]()
    model = AutoModelForCausalLM.from_config(model_config).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        head, hidden = head_of(model), model.model(ids).last_hidden_state
        z = head.scale * torch.nn.functional.linear(hidden, head.weight, head.bias)
        z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        torch.testing.assert_close(z, model(ids).logits)


def test_heads_that_are_not_understood_are_refused_by_name():
    model_config = LlamaConfig(**SIZES, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(model_config)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    model.get_output_embeddings = lambda: model.lm_head
    with pytest.raises(UnsupportedHead, match="LlamaForCausalLM: its head is a Sequential"):
        head_of(model)
    model_config.output_multiplier = 3.0
    with pytest.raises(UnsupportedHead, match="llama: its configuration has output_multiplier = 3.0"):
        head_scaling(model_config)
