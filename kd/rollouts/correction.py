"""Least correction of a wrong call: the record's own turn, written as the student wrote it as far as that is right.

The record's calls are put in the student's order, and their arguments in the order in which the student gave them; the
chat template then writes the turn, so that spans, stop and tokens are those of any record. Where the student's tokens
and the turn's part is the first wrong token: from there on the turn is trained, after the student's own words.

What the student had to be told is one of three:

    syntax  its calls were right once json-repair had mended them
    schema  they were right once their values had the types that the tools ask for, and unknown arguments were gone
    record  neither: the record's own calls
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.encode import annotate_sequences
from kd.rewards.reward import list_wanted
from kd.toolcalls.compare import count_arguments, same_calls
from kd.toolcalls.json_values import same_json
from kd.toolcalls.parsed import ParsedCalls

KINDS = ("syntax", "schema", "record")
_READ = {"integer": int, "number": float, "boolean": lambda text: {"true": True, "false": False}[text.lower()]}


class Correction(NamedTuple):
    """Correction of an answer: its first `kept` tokens, then `ids` with their span bits."""

    kept: int
    ids: list[int]
    bits: list[int]
    kind: str  # one of KINDS


def is_wrong(record: Record, turn: int, calls: ParsedCalls, finished: bool) -> bool:
    """Tell whether an answer's calls are invalid or not the record's, or it calls where the record does not."""
    wanted = list_wanted(record, turn)
    if wanted:
        return not (finished and calls.valid and same_calls(calls.calls, wanted))
    return bool(calls.spans) and bool(record.tools)


def correct(
    record: Record, turn: int, prompt: Sequence[int], written: Sequence[int], calls: ParsedCalls, tokenizer
) -> Correction | None:
    """Correct a wrong answer, `written` after `prompt` (token ids); None where the template cannot write the turn
    so."""
    wanted = list_wanted(record, turn)
    candidates = [wanted]
    if wanted:
        follow = follow_order(calls.repaired_calls, wanted)
        candidates += [follow] * (json.dumps(follow) != json.dumps(wanted))
    best, kind = None, find_kind(record, turn, calls)
    for candidate in candidates:
        found = _encode(record, turn, candidate, tokenizer)
        if found is None or list(found[0][: len(prompt)]) != list(prompt):
            continue
        ids, bits = found[0][len(prompt) :], found[1][len(prompt) :]
        same = next(
            (at for at, pair in enumerate(zip(ids, written)) if pair[0] != pair[1]), min(len(ids), len(written))
        )
        if same < len(ids) and (best is None or same > best.kept):
            best = Correction(same, ids[same:], bits[same:], kind)
    return best


def find_kind(record: Record, turn: int, calls: ParsedCalls) -> str:
    """Find what a wrong answer had to be told, one of KINDS."""
    wanted = list_wanted(record, turn)
    if not wanted or not calls.valid_after_repair:
        return "record"
    if same_calls(calls.repaired_calls, wanted):
        return "syntax"
    coerced = [coerce(call, record.tools) for call in calls.repaired_calls]
    return "schema" if same_calls(coerced, wanted) else "record"


def follow_order(written: Sequence[dict], wanted: Sequence[dict]) -> list[dict[str, Any]]:
    """Put the wanted calls, and each one's arguments, in the order in which they were written, what was not last."""
    left, found = list(wanted), []
    for call in written:
        same_name = [other for other in left if other["name"] == call["name"]]
        if not same_name:
            continue
        best = max(same_name, key=lambda other: count_arguments([call], [other]).right)
        left = [other for other in left if other is not best]
        arguments = best["arguments"]
        keys = [*(key for key in call["arguments"] if key in arguments), *arguments]
        found.append({**best, "arguments": {key: arguments[key] for key in dict.fromkeys(keys)}})
    return [*found, *left]


def coerce(call: dict[str, Any], tools: Sequence[dict]) -> dict[str, Any]:
    """Give a call's values the types that its tool's schema asks for, and leave out arguments that it does not know."""
    functions = (tool.get("function", tool) for tool in tools)
    schema = next((one.get("parameters") or {} for one in functions if one.get("name") == call["name"]), {})
    properties = schema.get("properties") or {}
    kept = {}
    for key, value in call["arguments"].items():
        kind = (properties.get(key) or {}).get("type")
        if key not in properties:
            continue
        if kind == "string" and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = json.dumps(value)
        elif isinstance(value, str) and kind in _READ:
            with contextlib.suppress(ValueError, KeyError):
                value = _READ[kind](value.strip())
        kept[key] = value
    return {**call, "arguments": kept}


def _encode(record: Record, turn: int, wanted: list[dict], tokenizer) -> tuple[list[int], list[int]] | None:
    """Encode the record up to its turn, whose calls are `wanted`: (ids, bits); None where the template refuses it."""
    message = record.messages[turn]
    if wanted:
        made = message["tool_calls"]
        by_call = [next(one for one in made if same_json(one["function"], call)) for call in wanted]
        message = {**message, "tool_calls": [{**one, "function": call} for one, call in zip(by_call, wanted)]}
    asked = replace(record, messages=[*record.messages[:turn], message])
    number = sum(one["role"] == "assistant" for one in record.messages[:turn])
    try:
        (found,) = annotate_sequences(asked, tokenizer, "each", only=number)
    except DataError:
        return None
    return found.encoded.input_ids, found.encoded.bits
