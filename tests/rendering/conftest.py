"""Tokenizers of the rendering tests."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

from kd.sources.demo import corpus as demo


@pytest.fixture(scope="module")
def plain_bpe():
    """A byte-level BPE that knows nothing of JSON: its tokens straddle quotes, braces and names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [json.dumps(vars(r)) for r in demo.records("train", 200)]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>")


@pytest.fixture(scope="module")
def controls(plain_bpe):
    """A tokenizer with the control tokens of TURNS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=plain_bpe.backend_tokenizer,
        eos_token="<|e|>",
        additional_special_tokens=["<|s|>", "<|return|>"],
    )
