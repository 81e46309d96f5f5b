"""Prompts and their answers, and the one interface by which anything answers: a local model, an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from kd.toolcalls.parsed import ParsedCalls

Progress = Callable[[int, int], None]  # (prompts done, prompts)


class Prompt(NamedTuple):
    """Conversation before the turn that is to be written.

    Attributes:
        messages: as a record has them (kd/records/record.py): arguments of calls are objects.
        tools: declarations as a record has them.
        ids: tokens of it, where they are known; else a local model encodes it as training does.
        seed: of its draws, where answers are sampled.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    ids: Sequence[int] | None = None
    seed: int = 0


class Answer(NamedTuple):
    """Answer to one prompt.

    Attributes:
        text: as written, without the token that ends it. An endpoint's own calls are not in it.
        calls: those read in `text`, or an endpoint's own.
        num_tokens: generated, the one that ends the answer included; 0 where nothing was asked.
        finished: it was ended by the one who answers, and not cut.
        problems: of the asking: no room for an answer, a request that was refused. Those of calls are in `calls`.
        own_calls: an endpoint's own, which came apart from the text, as (name, arguments as JSON text).
    """

    text: str
    calls: ParsedCalls
    num_tokens: int
    finished: bool
    problems: tuple[str, ...] = ()
    own_calls: tuple[tuple[str, str], ...] = ()


class Answerer(Protocol):
    """Model or endpoint that answers prompts, with settings of its own."""

    def answer(self, prompts: Sequence[Prompt], *, progress: Progress | None = None) -> list[Answer]:
        """Answer each prompt, in the order of `prompts`, each by itself.

        Raises:
            SpanwiseError: a prompt cannot be rendered, or nothing more can be asked.
        """
        ...
