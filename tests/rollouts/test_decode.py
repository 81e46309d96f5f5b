"""Greedy generation in batches: the same tokens as one by one, and as transformers."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kd.rollouts.decode import generate_greedily


@pytest.fixture(
    scope="module", params=["llama", "gpt2"]
)  # relative positions, and absolute ones that padding would shift
def tiny(request):
    torch.manual_seed(0)
    if request.param == "llama":
        sizes = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, **sizes))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    for parameter in model.parameters():  # wide weights: logits far apart, so no rounding decides a token
        parameter.data.mul_(6)
    return model.eval()


def prompts_of(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 40, (length,), generator=generator).tolist() for length in lengths]


def test_batched_generation_equals_one_by_one(tiny):
    prompts = prompts_of(3, 17, 1, 9, 9, 30, 5)
    alone = [
        generate_greedily(tiny, [prompt], stop_ids=[3, 7, 11], max_new_tokens=25, batch_size=1)[0] for prompt in prompts
    ]
    assert len({len(row) for row in alone}) > 2  # rows end at different steps, so dropping them is exercised
    for batch_size in (2, 3, 7, 50):
        assert generate_greedily(tiny, prompts, stop_ids=[3, 7, 11], max_new_tokens=25, batch_size=batch_size) == alone


def test_generation_is_what_generate_says(tiny):
    prompt = prompts_of(12)[0]
    ids = tiny.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=3, pad_token_id=0)
    assert (
        generate_greedily(tiny, [prompt], stop_ids=[3], max_new_tokens=20, batch_size=1)[0]
        == ids[0, len(prompt) :].tolist()
    )


def test_columns_beyond_the_tokenizer_are_never_chosen(tiny):
    prompts = prompts_of(3, 8)
    free = generate_greedily(tiny, prompts, stop_ids=[3], max_new_tokens=20, batch_size=2)
    narrow = min(max(row) for row in free)  # a token that both rows would say
    rows = generate_greedily(tiny, prompts, stop_ids=[3], max_new_tokens=20, batch_size=2, vocab_size=narrow)
    assert max(map(max, rows)) < narrow


def test_generation_ends_at_the_stop_token_and_restores_the_mode(tiny):
    tiny.train()
    try:
        row = generate_greedily(tiny, prompts_of(5), stop_ids=range(40), max_new_tokens=9, batch_size=2)[0]
        assert len(row) == 1 and tiny.training
    finally:
        tiny.eval()
    with pytest.raises(ValueError, match="chat template"):
        generate_greedily(tiny, [[]], stop_ids=[1], max_new_tokens=2, batch_size=1)


def test_prompt_and_answer_together_stay_within_max_length(tiny):
    """A limit of its own for each prompt of a batch; one that leaves no room is not given to the model."""
    prompts = prompts_of(3, 30, 10, 12)
    options = dict(stop_ids=[], max_new_tokens=10**9, vocab_size=40)
    answers = generate_greedily(tiny, prompts, batch_size=4, max_length=12, **options)
    assert [len(answer) for answer in answers] == [9, 0, 2, 0]
    assert answers[0][:9] == generate_greedily(tiny, prompts[:1], batch_size=1, max_length=12, **options)[0]
