"""Turns of a conversation, made such that each assistant turn could have been generated in one piece after its prompt.

    assistant messages one after another   joined: texts with an empty line between them, calls as parallel ones
    text after calls without their results refused: no template has a place for it
    an empty assistant turn                refused: it teaches to say nothing
    results out of the calls' order        put in that order, by id, else by name where names tell, else as they stand
    two results for one call, or one more than there are calls, or with an id of no call of the turn before it
                                           refused
    a result that follows no assistant turn
                                           refused; after a turn without calls it may be of a call in its text
    calls without all their results        refused where an assistant turn follows; at a record's end they are kept
    user messages one after another, a system message further on, messages after the last assistant turn
                                           kept as they are: they are prompts, and the template has the last word
    an assistant message before all others kept: it is what a model says after a generation prompt alone

The rules are the same for every file type, template and rank; what they change is counted (NOTES).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from kd.records.checks import DataError

Message = dict[str, Any]

NOTES = {
    "joined": "assistant messages that follow one another are joined into one turn",
    "reordered": "results are put in the order of their calls",
    "nulls": "nulls that a columnar table fills in are left out",
    "integers": "whole fractions (3.0) of a columnar table are integers again, as the tool's schema says",
    "variables": "their own chat_template_kwargs are left out (tokenizer.template_variables holds for all records)",
    "rewritten": "calls written as text are rewritten as tool_calls",
    "read": "calls written as text are trained as they stand (data.rewrite_calls: true has the template write them)",
    "unread": "a text names a tool in the shape of a call, and is trained as prose",
}
"""Names of what reading changed or noticed in a record, and the words for it: those of verify and of training."""


def describe_notes(notes: Counter[str]) -> list[str]:
    """Say how many records each note is of, a line each, in the order of NOTES."""
    return [f"{notes[name]:,} records: {words}" for name, words in NOTES.items() if notes[name]]


def settle_turns(messages: list[Message], where: str) -> tuple[list[Message], list[str]]:
    """Apply the rules of this file to checked messages; returns them, and the names of NOTES that hold.

    Raises:
        DataError: a rule refuses the record; names the message.
    """
    joined, places = _join(messages, where)
    settled, reordered, cursor = [], False, 0
    last = max((at for at, message in enumerate(joined) if message["role"] == "assistant"), default=-1)
    while cursor < len(joined):
        message, spot = joined[cursor], f"{where}: messages[{places[cursor]}]"
        cursor += 1
        settled.append(message)
        if message["role"] == "tool":
            raise DataError(f"{spot}: a result, and no call is made before it; remove it, or add the turn that calls")
        if message["role"] != "assistant":
            continue
        calls = message.get("tool_calls", [])
        if not calls and not message["content"].strip():
            raise DataError(
                f"{spot}: an assistant turn with neither text nor a call teaches to say nothing; remove it, or the "
                "record"
            )
        end = cursor
        while end < len(joined) and joined[end]["role"] == "tool":
            end += 1
        results = joined[cursor:end]
        order = _order(results, calls, [f"{where}: messages[{place}]" for place in places[cursor:end]])
        if len(results) < len(calls) and last >= cursor:
            raise DataError(
                f"{spot}: {len(calls)} calls and {len(results)} results before the conversation goes on; add the "
                "missing results, or end the record with these calls"
            )
        reordered |= order != sorted(order)
        settled += [results[at] for at in order]
        cursor = end
    notes = ["joined"] * (len(joined) < len(messages)) + ["reordered"] * reordered
    return settled, notes


def _join(messages: list[Message], where: str) -> tuple[list[Message], list[int]]:
    """Join assistant messages that follow one another: (messages, the place of each, or of its first part)."""
    joined: list[Message] = []
    places: list[int] = []
    for index, message in enumerate(messages):
        before = joined[-1] if joined else {"role": ""}
        if not message["role"] == before["role"] == "assistant":
            joined.append(message)
            places.append(index)
            continue
        if before.get("tool_calls") and message["content"].strip():
            raise DataError(
                f"{where}: messages[{index}]: text after calls whose results are missing: a turn has its text before "
                "its calls; add the results, or put the text first"
            )
        texts = [text for text in (before["content"], message["content"]) if text.strip()]
        content = f"{texts[0].rstrip()}\n\n{texts[1].lstrip()}" if len(texts) > 1 else "".join(texts)
        calls = [*before.get("tool_calls", []), *message.get("tool_calls", [])]
        joined[-1] = {**message, **before, "content": content, **({"tool_calls": calls} if calls else {})}
    for message, place in zip(joined, places):
        ids = [str(call["id"]) for call in message.get("tool_calls", ()) if call.get("id") is not None]
        if len(set(ids)) < len(ids):
            raise DataError(f"{where}: messages[{place}].tool_calls: two calls have the same id; give each its own")
    return joined, places


def _order(results: list[Message], calls: list[dict], spots: list[str]) -> list[int]:
    """Order a turn's results by its calls: their positions in `results`, the first call's first.

    Where the turn has no calls, its text may hold them: the order stays.
    """
    open_calls = dict(enumerate(calls))
    place: dict[int, int] = {}  # position of a result -> of its call
    for at, result in enumerate(results):
        identity = result.get("tool_call_id")
        if identity is None:
            continue
        found = next((n for n, call in enumerate(calls) if str(call.get("id", "")) == str(identity)), None)
        if found is None:
            raise DataError(
                f"{spots[at]}.tool_call_id: no call before it has the id {str(identity)[:40]!r}: a result follows the "
                "turn that makes its call"
            )
        if found not in open_calls:
            raise DataError(
                f"{spots[at]}.tool_call_id: a second result of the call {str(identity)[:40]!r}; keep one, or write "
                "both into one message"
            )
        place[at] = found
        del open_calls[found]
    unnamed = [at for at in range(len(results)) if at not in place]
    if calls and len(unnamed) > len(open_calls):
        raise DataError(
            f"{spots[unnamed[len(open_calls)]]}: a result of no call: the turn before it makes {len(calls)} calls, and "
            f"{len(results)} results follow"
        )
    if not calls:
        return unnamed
    names = [results[at].get("name") for at in unnamed]
    if Counter(names) == Counter(call["function"]["name"] for call in open_calls.values()):
        for at in unnamed:
            found = next(n for n, call in open_calls.items() if call["function"]["name"] == results[at]["name"])
            place[at] = found
            del open_calls[found]
    else:
        place |= dict(zip(unnamed, open_calls))
    return sorted(place, key=place.__getitem__)
