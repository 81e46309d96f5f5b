"""SpanwiseError, the base of every error that a user can mend."""

from __future__ import annotations


class SpanwiseError(Exception):
    """Error whose message says what is wrong, where, and what to do; an entry point prints it without a traceback.

    Subclasses also inherit ValueError or RuntimeError, so that callers of the library can catch the usual types.
    """

    remedy: str | None = None  # file in launch/ that provides what is missing, to be run with the same configuration
    exit_code: int = 1
