"""Greedy generation in batches from a whole, unsharded causal LM.

transformers' `generate` obeys the model's generation_config (sampling, repetition penalties) and keeps computing
prompts that have ended. A measurement wants the argmax and nothing else, and most calls are short: here a prompt whose
answer has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

# Leaving costs a copy of the cache, about as much as one step: wait until a quarter of the batch has ended.
_KEEP_FRACTION = 0.75


@torch.inference_mode()
def generate_greedily(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Iterable[int],
    max_new_tokens: int,
    batch_size: int,
    vocab_size: int | None = None,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt by its most likely token, one at a time; returns token ids in the order of `prompts`.

    Args:
        model: a transformers causal LM, whole on one device. It is put in eval mode and back.
        prompts: token ids, at least one each. They are sorted by length, so a batch carries little padding.
        stop_ids: an answer ends with the first of these; it is the last id of that prompt's result.
        max_new_tokens: an answer that has not ended by then is cut; its last id is then no stop id.
        batch_size: prompts computed together. It changes speed and memory; the padding is masked, so it changes a
            result only where rounding decides between two tokens.
        vocab_size: len(tokenizer), where the model is wider: columns beyond it were never trained and are never chosen.
        max_length: of prompt and answer together, the positions that the model has. A prompt that leaves no room is not
            given to the model, and its result is empty.
        progress: called as progress(num_done, num_prompts) after each batch.

    Raises:
        ValueError: an empty prompt, or a size below 1.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be at least 1")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no tokens: render it with the chat template and add_generation_prompt=True")
    stops = frozenset(stop_ids)
    # Longest first: if memory is going to run out, it does so at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    room = [max_new_tokens if max_length is None else min(max_new_tokens, max_length - len(p)) for p in prompts]
    order = [index for index in order if room[index] > 0]
    outputs: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            _continue(
                model,
                [prompts[at] for at in batch],
                [outputs[at] for at in batch],
                stops,
                [room[at] for at in batch],
                vocab_size,
            )
            if progress is not None:
                progress(min(first + batch_size, len(order)), len(order))
    finally:
        model.train(was_training)
    return outputs


def _continue(
    model,
    prompts: list[Sequence[int]],
    outputs: list[list[int]],
    stops: frozenset[int],
    limits: list[int],
    vocab_size: int | None,
) -> None:
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)

    def has_ended(at: int) -> bool:
        return bool(outputs[at]) and (outputs[at][-1] in stops or len(outputs[at]) >= limits[at])

    cache, live = None, list(range(len(prompts)))  # live[i]: index of the prompt that place i of the batch continues
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
        chosen = out.logits[:, -1, :vocab_size].argmax(dim=-1)
        ended = []
        for at, token in zip(live, chosen.tolist()):
            # One that ended stays in the batch until it is worth dropping; tokens after its end are not kept.
            if not has_ended(at):
                outputs[at].append(token)
            ended.append(has_ended(at))
        if all(ended):
            return
        positions = positions[:, -1:] + 1
        keep = [index for index, done in enumerate(ended) if not done]
        if len(keep) <= _KEEP_FRACTION * len(live) and hasattr(cache, "batch_select_indices"):
            index = torch.tensor(keep, device=device)
            cache.batch_select_indices(index)
            chosen, mask, positions = chosen[index], mask[index], positions[index]
            live = [live[kept] for kept in keep]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
