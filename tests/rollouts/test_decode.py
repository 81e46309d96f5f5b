"""Generation in batches: the same tokens as one by one, as transformers, and as the distribution says."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kd.rollouts.decode import Limits, Sampling, draw, generate_greedily, generate_samples


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
    alone = [generate_greedily(tiny, [prompt], Limits([3, 7, 11], 25, 1))[0] for prompt in prompts]
    assert len({len(row) for row in alone}) > 2  # rows end at different steps, so dropping them is exercised
    for batch_size in (2, 3, 7, 50):
        assert generate_greedily(tiny, prompts, Limits([3, 7, 11], 25, batch_size)) == alone


def test_generation_is_what_generate_says(tiny):
    prompt = prompts_of(12)[0]
    ids = tiny.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=3, pad_token_id=0)
    assert generate_greedily(tiny, [prompt], Limits([3], 20, 1))[0] == ids[0, len(prompt) :].tolist()


def test_columns_beyond_the_tokenizer_are_never_chosen(tiny):
    prompts = prompts_of(3, 8)
    free = generate_greedily(tiny, prompts, Limits([3], 20, 2))
    narrow = min(max(row) for row in free)  # a token that both rows would say
    rows = generate_greedily(tiny, prompts, Limits([3], 20, 2, vocab_size=narrow))
    assert max(map(max, rows)) < narrow


def test_generation_ends_at_the_stop_token_and_restores_the_mode(tiny):
    tiny.train()
    try:
        row = generate_greedily(tiny, prompts_of(5), Limits(range(40), 9, 2))[0]
        assert len(row) == 1 and tiny.training
    finally:
        tiny.eval()
    with pytest.raises(ValueError, match="chat template"):
        generate_greedily(tiny, [[]], Limits([1], 2, 1))


def test_prompt_and_answer_together_stay_within_max_length(tiny):
    """A limit of its own for each prompt of a batch; one that leaves no room is not given to the model."""
    prompts = prompts_of(3, 30, 10, 12)
    answers = generate_greedily(tiny, prompts, Limits([], 10**9, 4, 40, 12))
    assert [len(answer) for answer in answers] == [9, 0, 2, 0]
    assert answers[0][:9] == generate_greedily(tiny, prompts[:1], Limits([], 10**9, 1, 40, 12))[0]


def test_samples_depend_on_their_seeds_alone(tiny):
    """Not on the other prompts, the order, or the batch; two seeds give two answers."""
    prompts, seeds, sampling = prompts_of(3, 17, 1, 9, 9, 30, 5), [5, 6, 7, 8, 9, 10, 11], Sampling(6.0, 0.9)

    def sample(at: list[int], batch_size: int):
        limits = Limits([3, 7, 11], 25, batch_size)
        return generate_samples(tiny, [prompts[i] for i in at], [seeds[i] for i in at], sampling, limits)

    together = sample(list(range(7)), 7)
    assert [found.ids for found in sample([6, 2, 4, 0, 1, 3, 5], 2)] == [
        together[at].ids for at in (6, 2, 4, 0, 1, 3, 5)
    ]
    other = generate_samples(tiny, prompts, [seed + 100 for seed in seeds], sampling, Limits([3, 7, 11], 25, 7))
    assert sum(one.ids == two.ids for one, two in zip(together, other)) < 3


def test_log_probabilities_are_those_of_the_distribution_drawn_from(tiny):
    prompts, sampling = prompts_of(4, 11), Sampling(5.0, 0.8)
    for prompt, found in zip(prompts, generate_samples(tiny, prompts, [1, 2], sampling, Limits([], 12, 2))):
        with torch.no_grad():
            logits = tiny(torch.tensor([prompt + found.ids])).logits[0, len(prompt) - 1 : -1]
        probs = torch.softmax(logits / 5.0, -1)
        for row, token, log_prob in zip(probs, found.ids, found.log_probs, strict=True):
            ordered = sorted(row.tolist(), reverse=True)
            kept = next(n for n in range(1, 41) if sum(ordered[:n]) >= 0.8)
            assert row[token] >= ordered[kept - 1]
            assert math.log(row[token] / sum(ordered[:kept])) == pytest.approx(log_prob, abs=1e-3)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for top_p, wanted in (
        (1.0, probs),
        (0.7, torch.tensor([5, 0, 3, 0, 0]) / 8),
        (0.4, torch.tensor([1.0, 0, 0, 0, 0])),
    ):
        ids, log_probs = draw(probs.log().expand(10_000, 5), uniforms, Sampling(1.0, top_p))
        assert torch.allclose(ids.bincount(minlength=5) / 10_000, wanted, atol=2e-4)
        assert torch.allclose(log_probs, wanted.log()[ids], atol=1e-6)
    last = torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64)
    assert draw(torch.tensor([[0.0, 0.0, -torch.inf]] * 2), last, Sampling())[0].tolist() == [1, 0]


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(-1.0), Sampling(1.0, 0.0), Sampling(1.0, 1.1)])
def test_a_distribution_that_is_none_is_refused(tiny, sampling):
    with pytest.raises(ValueError, match="temperature .* top_p"):
        generate_samples(tiny, prompts_of(3), [1], sampling, Limits([], 2, 1))
