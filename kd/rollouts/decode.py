"""Generation in batches from a whole, unsharded causal LM: greedy, or sampled with the log-probability of each token.

transformers' `generate` obeys the model's generation_config (sampling, repetition penalties) and keeps computing
prompts that have ended. A measurement wants what it asks for and nothing else, and most calls are short: here a prompt
whose answer has ended leaves the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Leaving costs a copy of the cache, less than one step: wait until a tenth of the batch has ended.
_KEEP_FRACTION = 0.9


class Limits(NamedTuple):
    """Bounds of a generation.

    Attributes:
        stop_ids: an answer ends with the first of these; it is the last id of that prompt's result.
        max_new_tokens: an answer that has not ended by then is cut; its last id is then no stop id.
        batch_size: prompts computed together. It changes speed and memory; the padding is masked, so it changes a
            result only where rounding decides between two tokens.
        vocab_size: len(tokenizer), where the model is wider: columns beyond it were never trained and are never chosen.
        max_length: of prompt and answer together, the positions that the model has. A prompt that leaves no room is not
            given to the model, and its result is empty.
    """

    stop_ids: Iterable[int]
    max_new_tokens: int
    batch_size: int
    vocab_size: int | None = None
    max_length: int | None = None


class Sampling(NamedTuple):
    """Distribution to draw from: the model's at `temperature` (above 0), cut to the fewest tokens whose probabilities
    sum to `top_p` (above 0, at most 1; nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).
    """

    temperature: float = 1.0
    top_p: float = 1.0


class Sampled(NamedTuple):
    """Sampled answer: its tokens, and the log-probability (nats) of each in the distribution that it was drawn from."""

    ids: list[int]
    log_probs: list[float]


Progress = Callable[[int, int], None]  # (prompts done, prompts), after each batch
_Choose = Callable[[list[int], Tensor], tuple[Tensor, Tensor | None]]  # (prompts, logits [B, V]) -> ids, log-probs [B]


def generate_greedily(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], limits: Limits, *, progress: Progress | None = None
) -> list[list[int]]:
    """Continue each prompt by its most likely token, one at a time; returns token ids in the order of `prompts`.

    Args:
        model: a transformers causal LM, whole on one device. It is put in eval mode and back.
        prompts: token ids, at least one each. They are sorted by length, so a batch carries little padding.

    Raises:
        ValueError: an empty prompt, or a size below 1.
    """
    return [ids for ids, _ in _generate(model, prompts, limits, lambda _, logits: (logits.argmax(-1), None), progress)]


def generate_samples(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    *,
    progress: Progress | None = None,
) -> list[Sampled]:
    """Continue each prompt by tokens drawn at random; as `generate_greedily`.

    seeds: one a prompt. A prompt's draws depend on its seed alone, not on the other prompts, their order or the batch;
        for several samples of a prompt repeat it with other seeds.

    Raises:
        ValueError: as `generate_greedily`, or a temperature or top_p that is not in its range.
    """
    temperature, top_p = sampling
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature ({temperature}) must be above 0, and top_p ({top_p}) above 0 and at most 1")
    generators = [random.Random(seed) for seed in seeds]

    def choose(at: list[int], logits: Tensor) -> tuple[Tensor, Tensor]:
        uniforms = torch.tensor([generators[index].random() for index in at], dtype=torch.float64)
        return draw(logits, uniforms.to(logits.device), sampling)

    return [Sampled(*found) for found in _generate(model, prompts, limits, choose, progress)]


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw a token of each row by inverting its distribution function, in the order of the vocabulary.

    That order, unlike one by probability, is the same where rounding has swapped two tokens that are about as likely.

    Args:
        logits: [B, V], any float type.
        uniforms: [B] float64 in [0, 1), on the same device.

    Returns:
        Token ids [B] int64, and their log-probabilities [B] fp32 under `sampling`.
    """
    log_probs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        probs, order = log_probs.exp().sort(dim=-1, descending=True, stable=True)
        outside = probs.cumsum(dim=-1) - probs >= sampling.top_p  # the mass before a token; the first is always inside
        log_probs = log_probs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
        log_probs = log_probs - log_probs.logsumexp(dim=-1, keepdim=True)
    mass = log_probs.double().exp().cumsum(dim=-1)
    total = mass[:, -1]
    wanted = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(mass, wanted[:, None], right=True)
    ids = ids.clamp(max=mass.shape[-1] - 1)  # of a row that is NaN
    return ids[:, 0], log_probs.gather(-1, ids)[:, 0]


@torch.inference_mode()
def _generate(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], limits: Limits, choose: _Choose, progress: Progress | None
) -> list[tuple[list[int], list[float]]]:
    max_new_tokens, batch_size, max_length = limits.max_new_tokens, limits.batch_size, limits.max_length
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be at least 1")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no tokens: render it with the chat template and add_generation_prompt=True")
    limits = limits._replace(stop_ids=frozenset(limits.stop_ids))
    # Longest first: if memory is going to run out, it does so at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    room = [max_new_tokens if max_length is None else min(max_new_tokens, max_length - len(p)) for p in prompts]
    order = [index for index in order if room[index] > 0]
    outputs: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(order), batch_size):
            batch = {at: prompts[at] for at in order[first : first + batch_size]}
            _continue(model, batch, outputs, room, limits, choose)
            if progress is not None:
                progress(min(first + batch_size, len(order)), len(order))
    finally:
        model.train(was_training)
    return outputs


def _continue(
    model,
    prompts: dict[int, Sequence[int]],
    outputs: list[tuple[list[int], list[float]]],
    room: list[int],
    limits: Limits,
    choose: _Choose,
) -> None:
    device = next(model.parameters()).device
    width = max(map(len, prompts.values()))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts.values()], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts.values()], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache, live = None, list(prompts)  # live[i]: the prompt that place i of the batch continues
    ended = [False] * len(live)
    while True:
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        chosen, log_probs = choose(live, out.logits[:, -1, : limits.vocab_size])
        likelihoods = [] if log_probs is None else log_probs.tolist()
        for place, (at, token) in enumerate(zip(live, chosen.tolist())):
            if ended[place]:  # it stays in the batch until it is worth dropping; tokens after its end are not kept
                continue
            written, known = outputs[at]
            written.append(token)
            if log_probs is not None:
                known.append(likelihoods[place])
            ended[place] = token in limits.stop_ids or len(written) >= room[at]
        if all(ended):
            return
        positions = positions[:, -1:] + 1
        keep = [index for index, done in enumerate(ended) if not done]
        if len(keep) <= _KEEP_FRACTION * len(live) and hasattr(cache, "batch_select_indices"):
            index = torch.tensor(keep, device=device)
            cache.batch_select_indices(index)
            chosen, mask, positions = chosen[index], mask[index], positions[index]
            live, ended = [live[kept] for kept in keep], [False] * len(keep)
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
