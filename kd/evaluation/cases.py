"""Cases of an evaluation: each assistant turn of each held-out record, with the true history before it.

    call         the record calls tools here, at first or after earlier results
    no_tool      tools are offered, none was used since the user spoke, and the record answers without one
    integration  the turn after tool results, where the record's answer carries values out of them
                 (kd/toolcalls/grounding.py)

A turn that is none of these (an answer that carries nothing, small talk with no tools offered) is not asked.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kd.evaluation.bfcl_rules.entry import Entry, find_entry
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.call_syntax import find_syntax
from kd.rendering.encode import encode_prompt
from kd.rendering.turns import render_sequences
from kd.toolcalls.compare import same_calls
from kd.toolcalls.grounding import find_carried
from kd.toolcalls.reader import CallReader
from kd.toolcalls.registry import ToolRegistry


@dataclass(frozen=True)
class Case:
    """Turn to generate. `index` orders the cases of a split; results made on several ranks are merged by it."""

    index: int
    record: int  # position of the record in its split
    record_id: str
    turn: int  # index of the assistant message in record.messages
    kind: str  # "call" | "no_tool" | "integration"
    prompt: str  # rendered by the chat template up to the generation prompt; "" for an endpoint, which renders itself
    prompt_ids: Sequence[int] | None  # its tokens, as training has them before this turn
    user: str  # the last user message, for people
    results: list[str]  # tool results since that message
    tools: list[dict[str, Any]]
    gold_calls: list[dict[str, Any]]  # {"name", "arguments"}
    gold_text: str
    carried: list[str]  # the values an integration answer must hold, as the gold answer writes them
    entry: Entry  # what BFCL's rules judge by
    history: list[dict[str, Any]]  # messages before the turn
    caws: dict[str, Any] | None = None  # context that the answer is judged by


def build_cases(records: Iterable[Record], tokenizer=None, share: tuple[int, int] = (0, 1)) -> list[Case]:
    """Build the cases of one split, in the order of the records.

    Args:
        tokenizer: one with a chat template; None renders nothing, for an endpoint.
        share: (rank, world size): every world size-th case, from the rank-th on. What ranks make of their shares is
            merged (kd/evaluation/evaluate.py).

    Raises:
        DataError: the template refuses a record, or its tools are no JSON Schemas or two of them have one name.
    """
    cases: list[Case] = []
    index = 0
    for number, record in enumerate(records):
        for turn, message in enumerate(record.messages):
            if message["role"] != "assistant":
                continue
            history = record.messages[:turn]
            user_at = max((at for at, past in enumerate(history) if past["role"] == "user"), default=-1)
            results = [past["content"] or "" for past in history[user_at + 1 :] if past["role"] == "tool"]
            calls = _list_calls(message)
            text = message.get("content") or ""
            carried: list[str] = []
            if calls:
                kind = "call"
            elif results:
                carried = list(dict.fromkeys(value.text for value in find_carried(text, results)))
                kind = "integration" if carried and history[-1]["role"] == "tool" else ""
            else:
                kind = "no_tool" if record.tools and user_at >= 0 else ""
            if not kind:
                continue
            if index % share[1] == share[0]:
                _check_tools(record)
                prompt, prompt_ids = _encode(record, turn, tokenizer) if tokenizer is not None else ("", None)
                user = history[user_at]["content"] if user_at >= 0 else ""
                cases.append(
                    Case(
                        index=index,
                        record=number,
                        record_id=record.id,
                        turn=turn,
                        kind=kind,
                        prompt=prompt,
                        prompt_ids=prompt_ids,
                        user=user,
                        results=results,
                        tools=record.tools,
                        gold_calls=calls,
                        gold_text=text,
                        carried=carried,
                        entry=find_entry(record, calls),
                        history=history,
                    )
                )
            index += 1
    return cases


def explain_unwritable(records: Sequence[Record], tokenizer) -> str | None:
    """Say which records call in a way that the chat template does not write, or None: an answer that is written as the
    template writes theirs is read as other calls, and is wrong.
    """
    reader = find_syntax(tokenizer)
    found = [record.id for record in records if not _writes_calls(record, tokenizer, reader)]
    if not found:
        return None
    return (
        f"{len(found)} of {len(records)} records, such as {found[0]}, call in a way that the chat template does not "
        "write so that it is read back (null left out, a text that looks like a number, further calls dropped): no "
        "answer in its form is right there; spanwise verify says why of each"
    )


def _writes_calls(record: Record, tokenizer, reader: CallReader) -> bool:
    called = {index: _list_calls(one) for index, one in enumerate(record.messages) if one.get("tool_calls")}
    try:
        written = render_sequences(record, tokenizer) if called else []
    except DataError:
        return True  # its prompts may be written all the same, and a rendering that is not there says nothing
    turns = ((called.get(index, []), text[start:end]) for text, (index, start, end) in written)
    return all(same_calls(reader.parse(turn, record.tools).calls, calls) for calls, turn in turns if calls)


def _list_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message.get("tool_calls") or []
    ]


def _encode(record: Record, turn: int, tokenizer) -> tuple[str, array[int]]:
    """Encode a prompt, its ids in 4 bytes each: a conversation's prompts together grow as the square of its turns."""
    prompt, ids = encode_prompt(record, turn, tokenizer)
    return prompt, array("i", ids)


def _check_tools(record: Record) -> None:
    try:
        ToolRegistry(record.tools)
    except ValueError as error:
        raise DataError(f"record {record.id}: tools: {error}") from error
