"""Log-probs of a prompt by vLLM's /v1/completions: the request, and the answer as the teacher's rows.

The prompt goes out as token ids, so nothing is tokenized twice. The answer has, for token t of the prompt, the K best
tokens of the distribution that predicts it, and token t itself where it is not among them:

    choices[0].prompt_logprobs = [null, {"<token id>": {"logprob": -0.1, "rank": 1, "decoded_token": "a"}, ...}, ...]
    choices[0].prompt_token_ids = [...]        in versions that know return_token_ids

A log-prob of -inf comes as -9999. Any other answer is refused, with the record, the position and the token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.errors import SpanwiseError
from kernels import TeacherTopK

_MINUS_INFINITY = -9999.0  # JSON has no -inf
_TOO_MUCH = 1e-4  # by which K probabilities, rounded as the server rounds, may exceed 1
_UNEXPLAINED = 1e-3  # mass that may be missing or on tokens past the vocabulary: padding of the head, which never wins
# Resolution of a sum near 1: x - log(sum of exp) is rounded in fp32 at the size of a logit, 16 to 32, for all tokens
# alike.
_RESOLUTION = 2.0**-20
_ENTRY_BYTES = 400  # generous length of one token's entry


class Prompt(NamedTuple):
    """Record to ask for. `positions` are those of its rows: a row's distribution predicts token position + 1."""

    name: str
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]


class AnswerError(SpanwiseError, ValueError):
    """Answer for one record that cannot be used."""


class NoPromptLogprobs(AnswerError):
    """Answer of a server that does not know prompt_logprobs, and so will answer no record."""


def request_body(model: str, token_ids: Sequence[int], top_k: int, temperature: float = 1.0) -> dict[str, Any]:
    """Make the request for a prompt's log-probs.

    All that could bend the distribution is switched off by name, for a server takes its defaults from the model's
    generation_config.json. One token has to be generated; it is not read. temperature: another than 1 finds servers
    that apply it to what they report (kd/endpoint/probe.py).
    """
    return {
        "model": model,
        "prompt": list(token_ids),
        "prompt_logprobs": top_k,
        "return_token_ids": True,
        "max_tokens": 1,
        "n": 1,
        "stream": False,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 0,
    }


def answer_bytes(num_tokens: int, top_k: int) -> int:
    """Return the most bytes an answer may have; more is not read."""
    return 2**20 + num_tokens * (top_k + 2) * _ENTRY_BYTES


def read_answer(answer: Any, prompt: Prompt, top_k: int, vocab_size: int) -> TeacherTopK:
    """Read an answer's rows at prompt.positions, in that order, at T = 1: TeacherTopK of N rows on the CPU.

    Ids are best first, ties by lowest id. A token past vocab_size (padding of the server's head) is left out and the
    rest scaled up to sum to 1; its slot names another token at log-prob -inf. The tail is 1 - sum of what is reported,
    kept within what fp32 can tell and what is possible: no other token can be likelier than the K-th, so V - K times
    its probability is the most. It is -inf where nothing is left. Entropies are NaN: a server tells no full entropy.

    Raises:
        AnswerError: an answer of another prompt, length or shape; fewer than top_k (at most vocab_size) tokens; a
            log-prob that is none; a sent token whose log-prob does not fit its row; probabilities that sum to more
            than 1, or leave more than other tokens can have.
        NoPromptLogprobs: the answer is a completion without them.
    """
    where = f"record {prompt.name}"
    table = _check_aligned(answer, prompt, where)
    rows = [table[p + 1] for p in prompt.positions]
    ids, log_probs = _entries(rows, prompt.positions, top_k, where)
    for position, row in zip(prompt.positions, rows):
        _check_own(row, prompt.token_ids[position + 1], top_k, f"{where}: position {position + 1}")
    ids, log_probs = _best(ids, log_probs, top_k)
    ids, known, log_probs = _keep_known(ids, log_probs, vocab_size, prompt.positions, where)
    log_tail = _log_tail(log_probs, known, vocab_size, prompt.positions, where)
    ids, log_probs = ids.int(), log_probs.float()
    unknown = torch.full((len(ids),), math.nan)
    return TeacherTopK(
        ids,
        log_probs,
        log_probs[None],
        log_tail.float()[None],
        unknown,
        unknown[None].clone(),
        ids[:, 0].clone(),
        (1.0,),
    )


def read_texts(answer: Any, prompt: Prompt, decode: Callable[[int], str]) -> dict[int, tuple[str, str]]:
    """Return the texts of tokens in an answer that read_answer took: id -> the server's, and the run's tokenizer's.

    White space and pieces of a character are not compared, as servers show them in several ways; tokens with nothing
    else are left out.
    """
    table = answer["choices"][0]["prompt_logprobs"]
    seen = {key: entry.get("decoded_token") for p in prompt.positions for key, entry in table[p + 1].items()}
    pairs = (
        (int(key), (theirs.strip(), decode(int(key)).strip()))
        for key, theirs in seen.items()
        if isinstance(theirs, str)
    )
    return {token: pair for token, pair in pairs if all(text and text.isascii() for text in pair)}


def _check_aligned(answer: Any, prompt: Prompt, where: str) -> list[Any]:
    """Return prompt_logprobs, after a check that each entry speaks of the token that was sent."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise AnswerError(f"{where}: the answer is no completion with one choice")
    table, echoed = choices[0].get("prompt_logprobs"), choices[0].get("prompt_token_ids")
    if table is None:
        raise NoPromptLogprobs(f"{where}: the answer has no prompt_logprobs: the server ignores this option of vLLM's")
    if not isinstance(table, list) or len(table) != len(prompt.token_ids):
        found = f"a list of {len(table)}" if isinstance(table, list) else "no list"
        raise AnswerError(f"{where}: {len(prompt.token_ids)} tokens were sent and prompt_logprobs is {found}")
    if echoed is not None and not isinstance(echoed, list):
        raise AnswerError(f"{where}: prompt_token_ids is no list")
    if echoed is not None and len(echoed) != len(prompt.token_ids):
        raise AnswerError(f"{where}: {len(prompt.token_ids)} tokens were sent and the server had {len(echoed)}")
    for t, token in enumerate(prompt.token_ids):
        if echoed is not None and echoed[t] != token:
            raise AnswerError(f"{where}: position {t}: token {token} was sent and the server had {_shown(echoed[t])}")
        if t and (not isinstance(table[t], dict) or str(token) not in table[t]):
            first = next(iter(table[t]), None) if isinstance(table[t], dict) else None
            raise AnswerError(
                f"{where}: position {t}: token {token} was sent and the answer is not about it"
                + (f", but about {_shown(first)}" if first is not None else "")
            )
    return table


def _shown(token: Any) -> str:
    """Show a server's token in a message; no other words of the server are repeated."""
    return f"token {token}" if str(token).isdecimal() and len(str(token)) < 12 else "no token"


def _entries(rows: list[dict], positions: Sequence[int], least: int, where: str) -> tuple[Tensor, Tensor]:
    """Return ids [N, W] int64 and log-probs [N, W] fp64, with id -1 at -inf after a row's last."""
    all_ids, all_logs = [], []
    for position, entries in zip(positions, rows):
        at = f"{where}: position {position + 1}"
        try:
            ids = [int(key) for key in entries]
            logs = [entry["logprob"] + 0.0 for entry in entries.values()]
        except (TypeError, ValueError, KeyError, OverflowError):
            raise AnswerError(f'{at}: an entry is not of the form "<token id>": {{"logprob": <number>}}') from None
        if len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= 2**31:
            raise AnswerError(f"{at}: a token is there twice, or an id is no token's")
        if len(ids) < least:
            raise AnswerError(f"{at}: {len(ids)} tokens where {least} were asked for")
        for token, log in zip(ids, logs):
            if math.isnan(log) or log > _TOO_MUCH:
                raise AnswerError(f"{at}: the log-prob of token {token} is {log}")
        all_ids.append(ids)
        all_logs.append([-math.inf if log <= _MINUS_INFINITY else min(log, 0.0) for log in logs])
    width = max(map(len, all_ids), default=least)
    ids = torch.tensor([row + [-1] * (width - len(row)) for row in all_ids], dtype=torch.int64)
    logs = torch.tensor([row + [-math.inf] * (width - len(row)) for row in all_logs], dtype=torch.float64)
    return ids.reshape(len(rows), width), logs.reshape(len(rows), width)


def _check_own(row: dict, token: int, top_k: int, at: str) -> None:
    """Check the sent token's log-prob against its row's best: it is one of them, or no more likely than the last.

    Its rank, where the server tells it, counts the tokens that are more likely. vLLM counts equally likely ones too.
    """
    own = row[str(token)]["logprob"]
    above = sum(entry["logprob"] > own + _TOO_MUCH for entry in row.values())
    as_likely = sum(entry["logprob"] >= own - _TOO_MUCH for entry in row.values())
    rank = row[str(token)].get("rank")
    if len(row) == top_k + 1 and as_likely <= top_k:
        problem = f"more than the last of the {top_k} best, among which it is not"
    elif type(rank) is int and not (above < rank and (rank <= as_likely or as_likely >= top_k)):
        problem = f"rank {rank}, while {above} of the tokens there are more likely"
    else:
        return
    raise AnswerError(f"{at}: token {token} has log-prob {own:.4g}, {problem}: the others are another position's")


def _best(ids: Tensor, log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of each row, best first, ties by lowest id; the sent token is left out if not among them."""
    by_id = ids.masked_fill(ids < 0, 2**31).argsort(dim=-1, stable=True)
    order = by_id.gather(1, log_probs.gather(1, by_id).argsort(dim=-1, descending=True, stable=True))[:, :k]
    return ids.gather(1, order), log_probs.gather(1, order)


def _keep_known(
    ids: Tensor, log_probs: Tensor, vocab_size: int, positions: Sequence[int], where: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep tokens of the vocabulary alone, and scale their log-probs to sum to 1 over it.

    Returns:
        ids, known, log-probs, all [N, K]. Where `known` is False the id is a token not among the others, at -inf.
    """
    known = ids < vocab_size
    outside = log_probs.exp().masked_fill(known, 0.0).sum(-1)
    if (bad := outside > _UNEXPLAINED).any():
        n = int(bad.nonzero()[0])
        raise AnswerError(
            f"{where}: position {positions[n] + 1}: the server gives {outside[n]:.3g} to tokens such as "
            f"{int(ids[n].max())}, past the {vocab_size} of the run's tokenizer: it serves another model"
        )
    order = (~known).int().argsort(dim=-1, stable=True)
    ids, known, log_probs = (x.gather(1, order) for x in (ids, known, log_probs - torch.log1p(-outside)[:, None]))
    for n in (~known).any(-1).nonzero().flatten().tolist():
        taken = set(ids[n][known[n]].tolist())
        ids[n, ~known[n]] = torch.tensor([i for i in range(ids.shape[1]) if i not in taken][: int((~known[n]).sum())])
    return ids, known, log_probs.masked_fill(~known, -math.inf)


def _log_tail(log_probs: Tensor, known: Tensor, vocab_size: int, positions: Sequence[int], where: str) -> Tensor:
    """Return the log of the mass on the tokens that are not known, [N] fp64."""
    total = log_probs.exp().sum(-1)
    others = vocab_size - known.sum(-1)
    most = others * log_probs.masked_fill(~known, 0.0).amin(-1).exp()
    for n in (
        ((total > 1 + _TOO_MUCH) | (1 - total > most * (1 + _UNEXPLAINED) + _UNEXPLAINED)).nonzero().flatten().tolist()
    ):
        why = (
            ""
            if total[n] > 1
            else f", and the {others[n]} others cannot have the rest, each being at most as likely as the last of these"
        )
        raise AnswerError(f"{where}: position {positions[n] + 1}: the probabilities sum to {total[n]:.6g}{why}")
    return (1 - total).clamp(min=_RESOLUTION).minimum(most).clamp(max=1.0).log()
