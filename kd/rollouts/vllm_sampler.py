"""Sampler by a vLLM server that reads the student's weights anew once a round.

The server is started over the folder of `rollouts.server.weights`, in its development mode (VLLM_SERVER_DEV_MODE=1). A
round exports the student into that folder and asks for POST /collective_rpc {"method": "reload_weights"}, then POST
/reset_prefix_cache, so that no key or value of the old weights is used again. Answers come from /v1/completions, prompt
and answer as token ids: nothing is tokenized twice. Its seeds are its own, and so are its draws: another version may
answer otherwise, and a resumed run samples the rounds that were not in its checkpoint again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from kd.distributed.collectives import on_rank_0
from kd.errors import SpanwiseError, first_line
from kd.rollouts.decode import Sampled
from kd.rollouts.sampler import OpenSampler

_MOST_SEED = 2**63 - 1


class ServerError(SpanwiseError, RuntimeError):
    """Server that cannot be asked, or whose answer cannot be used."""


class VllmSampler:
    """Sampler over a server; see kd.rollouts.sampler.Sampler."""

    def __init__(self, request: OpenSampler):
        rollouts = request.rollouts
        assert rollouts.server is not None, "kd/config/conflicts/rollouts.py asks for it"
        self._server, self._export, self._stop_ids = rollouts.server, request.export, request.stop_ids
        self._vocab_size = len(request.tokenizer)
        try:
            self._client = httpx2.Client(base_url=self._server.url, timeout=self._server.timeout_seconds)
        except (ValueError, ImportError, httpx2.InvalidURL):  # its words may repeat a proxy's password
            raise ServerError(
                f"{self._server.url}: the proxy of the environment cannot be used: mend HTTP_PROXY, HTTPS_PROXY or "
                "ALL_PROXY, or name the server's host in NO_PROXY"
            ) from None
        self._pool = ThreadPoolExecutor(rollouts.batch_size)
        self._body: dict[str, Any] = {
            "model": self._server.model,
            "temperature": rollouts.temperature,
            "top_p": rollouts.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": rollouts.max_new_tokens,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": request.stop_ids,
            "ignore_eos": True,
            "skip_special_tokens": False,
        }

    def refresh(self) -> None:
        """Export the student and have the server read it; all ranks together."""
        self._export(Path(self._server.weights))
        on_rank_0(self._reload)

    def _reload(self) -> None:
        self._post("/collective_rpc", {"method": "reload_weights"})
        self._post("/reset_prefix_cache", {})

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Sampled]:
        """Ask for each prompt, all at once.

        Raises:
            ServerError: the server does not answer, or not with the sampled tokens and their log-probabilities.
        """
        return list(self._pool.map(self._ask, prompts, seeds))

    def close(self) -> None:
        """End connections and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _ask(self, prompt: Sequence[int], seed: int) -> Sampled:
        response = self._post("/v1/completions", {**self._body, "prompt": list(prompt), "seed": seed & _MOST_SEED})
        try:
            answer = json.loads(response.content)
        except (ValueError, RecursionError):
            raise ServerError(
                f"{self._server.url}: {len(response.content)} bytes that are no JSON answer it: is it a vLLM?"
            ) from None
        try:
            (choice,) = answer["choices"]
            ids, known = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            finished = choice["finish_reason"] == "stop"
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f"{self._server.url}: its answer has no {error}: rollouts need a vLLM that knows return_token_ids"
            ) from error
        if not isinstance(ids, list) or not isinstance(known, list):
            raise ServerError(f"{self._server.url}: its token_ids or token_logprobs are no list: is it a vLLM?")
        fits = len(ids) == len(known) and all(type(one) is int and 0 <= one < self._vocab_size for one in ids)
        if not (fits and ids and all(isinstance(one, float | int) and math.isfinite(one) for one in known)):
            raise ServerError(
                f"{self._server.url}: {len(ids)} tokens and {len(known)} log-probabilities, or a token past the "
                f"tokenizer's {self._vocab_size}: serve the run's own student and tokenizer"
            )
        if finished != (ids[-1] in self._stop_ids):
            raise ServerError(
                f"{self._server.url}: an answer ends in token {ids[-1]} ({choice['finish_reason']}), and the run's "
                f"stops are {', '.join(map(str, self._stop_ids))}"
            )
        return Sampled(list(ids), [float(one) for one in known])

    def _post(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        try:
            answer = self._client.post(path, json=body)
        except httpx2.HTTPError as error:
            raise ServerError(
                f"{self._server.url}{path}: {first_line(error)}: start the server over rollouts.server.weights, or use "
                "engine: local"
            ) from None
        if answer.status_code != 200:
            hint = ": start the server with VLLM_SERVER_DEV_MODE=1" if answer.status_code == 404 else ""
            raise ServerError(f"{self._server.url}{path}: status {answer.status_code}: {answer.text[:200]!r}{hint}")
        return answer


def open_vllm(request: OpenSampler) -> VllmSampler:
    """Open a VllmSampler."""
    return VllmSampler(request)
