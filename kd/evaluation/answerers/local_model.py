"""Answers of a model in this process, by greedy generation or sampled."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig

from kd.errors import SpanwiseError
from kd.evaluation.answerers.answer import Answer, Progress, Prompt
from kd.records.record import Record
from kd.rendering.call_syntax import find_syntax
from kd.rendering.encode import encode_prompt
from kd.rendering.stops import join_stop_ids
from kd.rollouts.decode import Limits, Sampling, generate_greedily, generate_samples


class EvaluationError(SpanwiseError, ValueError):
    """Evaluation that cannot be made of what is there."""


class LocalModel:
    """Answerer (kd/evaluation/answerers/answer.py) by a causal LM of this process.

    An answer ends at a stop (kd/rendering/stops.py), after max_new_tokens, or where the model has no more positions; a
    prompt that leaves no position for an answer has an empty one.

    Args:
        model: whole on one device (never a ZeRO-3 shard).
        tokenizer: a fast one with a chat template, which renders the prompts and says how calls are written.
        batch_size, max_new_tokens: as in `kd.rollouts.decode.Limits`.
        sampling: distribution to draw from; None takes the most likely tokens.

    Raises:
        EvaluationError: neither template, tokenizer nor model names an end-of-turn token.
        CallSyntaxError: the calls that the chat template writes are not read back.
    """

    def __init__(
        self, model, tokenizer, *, batch_size: int = 64, max_new_tokens: int = 256, sampling: Sampling | None = None
    ):
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self._stop_ids = _stop_ids(model, tokenizer)
        self._positions = count_positions(getattr(model, "config", None))
        self._reader = find_syntax(tokenizer)

    def answer(self, prompts: Sequence[Prompt], *, progress: Progress | None = None) -> list[Answer]:
        """Answer each prompt, in the order of `prompts`.

        Raises:
            DataError: the chat template refuses one.
        """
        asked = [self._encode(prompt) for prompt in prompts]
        limits = Limits(self._stop_ids, self._max_new_tokens, self._batch_size, len(self._tokenizer), self._positions)
        if self._sampling is None:
            written = generate_greedily(self._model, asked, limits, progress=progress)
        else:
            seeds = [prompt.seed for prompt in prompts]
            drawn = generate_samples(self._model, asked, seeds, self._sampling, limits, progress=progress)
            written = [found.ids for found in drawn]
        return [self.read(prompt, ids, answer) for prompt, ids, answer in zip(prompts, asked, written)]

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if prompt.ids is not None:
            return prompt.ids
        return encode_prompt(Record("asked", prompt.messages, prompt.tools), len(prompt.messages), self._tokenizer)[1]

    def read(self, prompt: Prompt, asked: Sequence[int], ids: list[int]) -> Answer:
        """Read the answer `ids` to `asked`, the tokens of a prompt."""
        finished = bool(ids) and ids[-1] in self._stop_ids
        # Special tokens stay: <tool_call> is one in many vocabularies.
        text = self._tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=False)
        no_room = f"not asked: the prompt has {len(asked)} tokens, the model {self._positions} positions"
        return Answer(
            text, self._reader.parse(text, prompt.tools), len(ids), finished, problems=() if ids else (no_room,)
        )


def count_positions(model_config: PreTrainedConfig | None) -> int | None:
    """Return the tokens of prompt and answer that a model has positions for; None where its configuration sets none."""
    text = model_config.get_text_config() if model_config is not None else None
    return getattr(text, "max_position_embeddings", None)


def _stop_ids(model, tokenizer) -> list[int]:
    named = (getattr(getattr(model, part, None), "eos_token_id", None) for part in ("generation_config", "config"))
    ids = join_stop_ids(tokenizer, *named)
    if not ids:
        raise EvaluationError(
            "no end-of-turn token: set the tokenizer's eos_token to the token with which its chat template ends a turn"
        )
    return ids
