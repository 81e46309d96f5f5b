"""SpanwiseError, the base of every error that a user can mend."""

from __future__ import annotations


class SpanwiseError(Exception):
    """Error whose message says what is wrong, where, and what to do; an entry point prints it without a traceback.

    Subclasses also inherit ValueError or RuntimeError, so that callers of the library can catch the usual types.
    """

    remedy: str | None = None  # file in launch/ that provides what is missing, to be run with the same configuration
    exit_code: int = 1


def text_of(error: BaseException) -> str:
    """Return an exception's text, also of one whose own `__str__` fails."""
    try:
        return str(error)
    except BaseException:  # of a type that its own module made
        return "it cannot say what it is"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, and the next where it ends in a colon.

    The type stands before it unless it is an OSError or ValueError.
    """
    lines = text_of(error).strip().splitlines() or [""]
    shown = lines[0]
    if shown.endswith(":") and len(lines) > 1:
        shown = f"{shown} {lines[1].strip()}"
    named = isinstance(error, (OSError, ValueError)) and shown
    return shown if named else f"{type(error).__name__}: {shown}".rstrip(": ")
