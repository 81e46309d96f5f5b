"""Probe of a server's log-probs of a prompt: raw, and of the right position. Three short requests as a capture opens.

    first                 tokens 0 to 5, at temperature 1
    another temperature   the same prompt: raw log-probs do not change, processed ones do
    another token         one token in the middle is another: every distribution before it stays, the next one changes

The last finds rows of another position: a row too late changes with the token that it should predict, a row too early
does not change with the token before it. A temperature that the server applies whatever is asked cannot be found so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd.endpoint.vllm import AnswerError, Prompt
from kernels import TeacherTopK

OTHER_TEMPERATURE = 0.25
_LENGTH, _CHANGED = 6, 3  # tokens of the prompt, and the place of the one that changes
_ROUNDING = 0.5  # nats by which two answers of one bf16 server may differ; a temperature of 0.25 moves far more
_SAME = 1e-4  # nats; two tokens never give one distribution


def make_probes(vocab_size: int) -> tuple[Prompt, Prompt]:
    """Make the probe and the one with another token; without positions where the vocabulary has one token."""
    positions = tuple(range(_LENGTH - 1)) if vocab_size > 1 else ()
    ids = [i % vocab_size for i in range(_LENGTH)]
    changed = [*ids]
    changed[_CHANGED] = (ids[_CHANGED] + 1) % vocab_size
    return Prompt("of the opening", tuple(ids), positions), Prompt(
        "of the opening, one token changed", tuple(changed), positions
    )


def check_raw(first: TeacherTopK, other: TeacherTopK) -> None:
    """Check that the answers at temperature 1 and at OTHER_TEMPERATURE are the same.

    Raises:
        AnswerError: they differ by more than a server's rounding.
    """
    moved = _distance(first, other).amax(0) if len(first.ids) else torch.zeros(())
    if moved > _ROUNDING:
        raise AnswerError(
            f"its log-probs change by {moved:.3g} nats when the request asks for temperature {OTHER_TEMPERATURE:g} in "
            "place of 1: they are processed, and a teacher's must be raw; start vLLM with --logprobs-mode raw_logprobs "
            "(its default)"
        )


def check_positions(first: TeacherTopK, changed: TeacherTopK) -> None:
    """Check that each row is the distribution of the token after its position, by what a changed token changes.

    Raises:
        AnswerError: a row before the change differs, or the first one after it does not.
    """
    if not len(first.ids):
        return
    moved = _distance(first, changed).tolist()
    early = [position for position in range(_CHANGED) if moved[position] > _ROUNDING]
    if not early and moved[_CHANGED] > _SAME:
        return
    problem = (
        f"the log-probs of position {early[0] + 1} change with the token at position {_CHANGED}"
        if early
        else f"the log-probs of position {_CHANGED + 1} do not change with the token before it"
    )
    raise AnswerError(
        f"{problem}: they are another position's; prompt_logprobs[t] must be the distribution of token t given those "
        "before it, as vLLM serves it: update the server, or start vLLM with --no-enable-chunked-prefill and "
        "--no-enable-prefix-caching"
    )


def _distance(one: TeacherTopK, two: TeacherTopK) -> Tensor:
    """Return the most by which a row's log-probs differ, [N], over the tokens that both answers have.

    A token that only one of them has is no more likely in the other than the last one there: it differs by at least
    what is between.
    """
    return torch.maximum(_one_way(one, two), _one_way(two, one))


def _one_way(one: TeacherTopK, two: TeacherTopK) -> Tensor:
    floor = two.log_probs.amin(-1, keepdim=True)
    same = one.ids[:, :, None] == two.ids[:, None, :]
    there = torch.where(same, two.log_probs[:, None, :], -torch.inf).amax(-1)
    found = same.any(-1)
    apart = torch.where(found, (one.log_probs - there).abs(), (one.log_probs - floor).clamp(min=0.0))
    # Excluded in both, or a slot that holds no token: -inf less -inf.
    return apart.masked_fill(one.log_probs.isneginf() & (there.isneginf() | ~found), 0.0).nan_to_num().amax(-1)
