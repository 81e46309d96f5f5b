"""Published sizes of well-known models, so that a plan needs neither their files nor a network.

A model's own config.json goes before this table. tests/preflight/test_published.py counts the parameters of each.
"""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig

# Kind, tied head, then vocabulary, width, width of the MLP, layers, heads, key/value heads, width of a head, positions.
_SIZES: dict[str, tuple[str, bool, int, int, int, int, int, int, int, int]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", True, 49_152, 576, 1536, 30, 9, 3, 64, 8192),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", True, 49_152, 960, 2560, 32, 15, 5, 64, 8192),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", True, 49_152, 2048, 8192, 24, 32, 32, 64, 8192),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", True, 128_256, 2048, 8192, 16, 32, 8, 64, 131_072),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", True, 128_256, 3072, 8192, 28, 24, 8, 128, 131_072),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", False, 128_256, 4096, 14_336, 32, 32, 8, 128, 131_072),
    "Qwen/Qwen3-0.6B": ("qwen3", True, 151_936, 1024, 3072, 28, 16, 8, 128, 40_960),
    "Qwen/Qwen3-1.7B": ("qwen3", True, 151_936, 2048, 6144, 28, 16, 8, 128, 40_960),
    "Qwen/Qwen3-4B": ("qwen3", True, 151_936, 2560, 9728, 36, 32, 8, 128, 40_960),
    "Qwen/Qwen3-8B": ("qwen3", False, 151_936, 4096, 12_288, 36, 32, 8, 128, 40_960),
    "Qwen/Qwen3-14B": ("qwen3", False, 151_936, 5120, 17_408, 40, 40, 8, 128, 40_960),
    "Qwen/Qwen3-32B": ("qwen3", False, 151_936, 5120, 25_600, 64, 64, 8, 128, 40_960),
}
NAMES = tuple(_SIZES)


def published_config(path: str) -> PreTrainedConfig | None:
    """Return the configuration of a model by its hub id, with its sizes alone; None of one that is not in the table."""
    if path not in _SIZES:
        return None
    kind, tied, vocab, hidden, mlp, layers, heads, kv_heads, head_dim, positions = _SIZES[path]
    return AutoConfig.for_model(
        kind,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
    )
