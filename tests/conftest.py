"""What every test needs before its imports: the Triton interpreter where there is no GPU, few threads, a fixed seed.

The demo tokenizer and a tiny teacher are made once a session; `tests/helpers/jobs.py` starts real processes.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # triton reads it when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def same_seed():
    random.seed(1234)
    torch.manual_seed(1234)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """The demo's tokenizer, smaller: 600 tokens."""
    from kd.sources.demo.corpus import build_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder, vocab_size=600, num_records=300)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory, tokenizer):
    """A random teacher of two layers that is sure of some tokens and unsure of others; wider than the tokenizer by
    24.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) + 24,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            initializer_range=0.25,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    """Fail the module that leaves a process group, or ZeRO-3 on, in which later models would be built whole."""
    before = {name: os.environ.get(name) for name in LAUNCHER}
    yield
    for name, value in before.items():  # accelerate sets them, and what comes later would look for other ranks
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    import torch.distributed as dist
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

    states = {"a process group": dist.is_initialized(), "ZeRO-3": is_deepspeed_zero3_enabled()}
    unset_hf_deepspeed_config()
    if dist.is_initialized():
        dist.destroy_process_group()
    assert not any(states.values()), (
        f"this module leaves behind: {[name for name, is_left in states.items() if is_left]}"
    )


@pytest.fixture(scope="module")
def one_rank():
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
