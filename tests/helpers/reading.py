"""Contents of a record, read without the code under test."""

from __future__ import annotations


def calls_of(record) -> list[dict]:
    """List the functions called in a record, in order: name and arguments."""
    return [call["function"] for message in record.messages for call in message.get("tool_calls", ())]


def leaves(value) -> list[str]:
    """List every value inside a JSON value, as text."""
    if isinstance(value, (dict, list)):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in leaves(inner)]
    return [str(value)]
