"""Characters of sampled tokens, and where an answer begins to repeat itself. Sampled ids are never tokenized again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

_MOST_PERIOD = 64  # tokens of the longest repetition that is looked for
_TIMES = 3  # repetitions that make an answer a loop


def find_offsets(ids: Sequence[int], tokenizer) -> tuple[str, list[tuple[int, int]]]:
    """Decode token ids to a text and the characters [start, end) of each; a token that ends inside a character has it.

    Special tokens stay: <tool_call> is one in many vocabularies.
    """
    text = tokenizer.decode(ids, skip_special_tokens=False)
    pieces = [_piece(tokenizer, token) for token in ids]
    if "".join(pieces) == text:
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        return text, list(zip(ends, ends[1:]))
    # Characters of several tokens, or spaces that depend on a neighbour: by the text of each beginning.
    ends = [0]
    for count in range(1, len(ids) + 1):
        begun = tokenizer.decode(ids[:count], skip_special_tokens=False).rstrip("\ufffd")
        ends.append(max(ends[-1], min(len(begun), len(text))))
    ends[-1] = len(text)
    offsets = []
    for at, (start, end) in enumerate(zip(ends, ends[1:])):
        if start == end:  # a part of the character that a later token completes
            end = next((later for later in ends[at + 2 :] if later > start), end)
            end = min(end, start + 1)
        offsets.append((start, end))
    return text, offsets


@lru_cache(maxsize=1 << 16)
def _piece(tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False)


def find_repetition(ids: Sequence[int]) -> int | None:
    """Find where an answer that ends in one passage three times or more begins to repeat it; None where it does not.

    Returns:
        The first token of the second time.
    """
    for period in range(1, min(_MOST_PERIOD, len(ids) // _TIMES) + 1):
        start = len(ids) - period
        while start and ids[start - 1] == ids[start - 1 + period]:
            start -= 1
        if len(ids) - start >= _TIMES * period and (period > 1 or len(ids) - start >= 8):
            return start + period
    return None
