"""Endpoint as the teacher: top-k log-probs of every supervised row, one request a record, at capture.

It speaks vLLM's API (kd/endpoint/vllm.py): /v1/completions with the prompt as token ids and `prompt_logprobs`. The
OpenAI API itself has no log-probs of a prompt, nor has `transformers serve`; a server that ignores the option is
refused at once. Tried with vLLM 0.32.0 on a CPU. Start vLLM with

    vllm serve MODEL --max-logprobs K --max-model-len L

K is teacher.cache.top_k or more (vLLM's own limit is 20), L the longest record in tokens and one more. vLLM makes the
logits of all prompt tokens of one of its steps, so --max-num-batched-tokens bounds their memory (4 bytes x vocabulary a
token, at least). The model must have the run's tokenizer; the texts of 20 tokens or more are compared. teacher.path is
still read for tokenizer and configuration, and for its weights by nothing but evaluation.baselines and student.init:
teacher_layers.

A server tells K probabilities at temperature 1 and no entropy: what needs another temperature or an entropy is refused
(see kd/config/conflicts/). Their last bits depend on what else is in its batch, so two captures agree to its
rounding.

A record that the server refuses, or that it fails at with all attempts while it still answers another, is missing, with
the reason. Where it then fails at that other one too, the circuit opens: all requests end, with one EndpointError, and
no record is called missing for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any

import torch

from kd.batching.micro_batch import MicroBatch
from kd.endpoint.connections import check_files_left
from kd.endpoint.http import SYSTEM_CLOCK, Clock, EndpointError
from kd.endpoint.vllm import Prompt
from kd.teacher.endpoint.records import EndpointTask, Records
from kernels import TeacherTopK


class EndpointTeacher:
    """RowSource of a capture (kd/teacher/capture/rows.py) over a server, at temperature 1.

    Raises:
        EndpointError: no key, no connection, no such model there, or no prompt_logprobs of top_k.
    """

    def __init__(self, task: EndpointTask, clock: Clock = SYSTEM_CLOCK):
        if not 1 <= task.top_k <= task.vocab_size:
            raise EndpointError(
                f"teacher.cache.top_k is {task.top_k}; it must lie between 1 and the vocabulary, {task.vocab_size}"
            )
        self._top_k = task.top_k
        self._records = Records(task)
        self._asked: dict[Prompt, Future] = {}
        check_files_left()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        try:
            self._run(self._records.open(clock))
        except BaseException:
            self._end()
            raise

    @property
    def num_requests(self) -> int:
        """Requests sent so far, further attempts included."""
        return self._records.wire.num_requests

    def prefetch(self, micro_batches: Iterable[MicroBatch]) -> None:
        """Begin to ask for records that `target_rows` will be called with, more at once than one micro-batch has."""
        for micro in micro_batches:
            for prompt in list_prompts(micro):
                if prompt not in self._asked:
                    self._asked[prompt] = asyncio.run_coroutine_threadsafe(self._records.rows(prompt), self._loop)

    def target_rows(self, micro: MicroBatch) -> TeacherTopK:
        """Return the rows of `micro`, in its order, on the CPU; log-probs are NaN in rows of a `missing` record.

        Raises:
            EndpointError: the endpoint answers no more, or more records are missing than settings.max_missing allows.
        """
        self.prefetch([micro])
        asked = list_prompts(micro)
        parts = [self._result(prompt) for prompt in asked]
        for prompt in set(asked):
            del self._asked[prompt]
        return _join(
            [
                _nothing(len(prompt.positions), self._top_k) if part is None else part
                for prompt, part in zip(asked, parts)
            ],
            self._top_k,
        )

    def missing(self, micro: MicroBatch) -> dict[int, str]:
        """Return the records without targets, as index into micro.record_ids -> reason; see RowSource.missing."""
        missing = self._records.missing
        return {i: missing[prompt] for i, prompt in enumerate(list_prompts(micro)) if prompt in missing}

    def close(self) -> None:
        """End all requests and the connection."""
        if not self._loop.is_closed():
            self._run(self._records.close())
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _result(self, prompt: Prompt) -> TeacherTopK | None:
        try:
            return self._asked[prompt].result()
        except CancelledError:  # with the first error of another
            stopped = self._records.stopped
        assert stopped is not None
        raise stopped


def list_prompts(micro: MicroBatch) -> list[Prompt]:
    """List the records of a micro-batch, padded or packed, in the order of micro.record_ids."""
    width, mask = micro.input_ids.shape[1], micro.attention_mask.flatten().tolist()
    starts = (
        range(0, len(mask), width)
        if micro.packed is None
        else [s for s in micro.packed.cu_seq_lens.tolist()[:-1] if mask[s]]
    )
    ends = [*starts[1:], len(mask)]
    ids, rows, record = micro.input_ids.flatten().tolist(), micro.rows.tolist(), micro.record.tolist()
    positions: list[list[int]] = [[] for _ in micro.record_ids]
    for row, i in zip(rows, record):
        positions[i].append(row - starts[i])
    return [
        Prompt(name, tuple(ids[t] for t in range(start, end) if mask[t]), tuple(of))
        for name, start, end, of in zip(micro.record_ids, starts, ends, positions)
    ]


def _nothing(num_rows: int, k: int) -> TeacherTopK:
    """Return rows of which nothing is known."""
    ids, unknown = torch.zeros(num_rows, k, dtype=torch.int32), torch.full((num_rows, k), float("nan"))
    return TeacherTopK(
        ids, unknown, unknown[None], unknown[None, :, 0], unknown[:, 0], unknown[None, :, 0], ids[:, 0], (1.0,)
    )


def _join(parts: list[TeacherTopK], k: int) -> TeacherTopK:
    by_temperature = ("log_probs_t", "log_tail", "entropy_t")
    fields = {
        name: torch.cat([getattr(part, name) for part in parts or [_nothing(0, k)]], int(name in by_temperature))
        for name in TeacherTopK._fields
        if name != "temperatures"
    }
    return TeacherTopK(**fields, temperatures=(1.0,))
