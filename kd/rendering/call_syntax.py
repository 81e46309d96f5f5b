"""Syntax in which a tokenizer's chat template writes calls, found by rendering calls with it, never by its name.

The calls have arguments of every type, and texts in which quotes, markup and line breaks stand, so that the reader
learns how they are written. A template that refuses some of them (parallel calls, text beside a call) is read without
them. What is learned counts only where it reads the template's own renderings back as the calls that they were made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from kd.errors import SpanwiseError
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.template_needs import TemplateKey
from kd.rendering.tokens import compile_special_tokens
from kd.rendering.turns import render_sequences
from kd.toolcalls.compare import same_calls_in_order
from kd.toolcalls.json_values import show_json
from kd.toolcalls.locate import locate_in
from kd.toolcalls.reader import CallReader
from kd.toolcalls.syntax.frame import Probe
from kd.toolcalls.syntax.registry import SYNTAXES

_TYPES = {"place": "string", "days": "integer", "share": "number", "live": "boolean", "sizes": "array", "box": "object"}
_RICH = {"place": "Tromsø", "days": 3, "share": 2.5, "live": True, "sizes": [4, 7], "box": {"depth": 9}}
_QUOTES = {"place": 'the "Old <b>Mill</b>" & Co', "days": 12}
_SIGNS = {"place": "it's a 'b' of\nC:\\new (d), 5", "days": 12}
_TYPED = {
    "type": "object",
    "properties": {
        key: {"type": kind, "description": ""}
        | ({"properties": {"depth": {"type": "integer", "description": ""}}} if kind == "object" else {})
        | ({"items": {"type": "integer"}} if kind == "array" else {})
        for key, kind in _TYPES.items()
    },
    "required": ["place"],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": _TYPED}}
    for name in ("find_place", "see_days")
]
_PLAIN = {"place": "Tromsø", "days": 3}
_ANSWER, _WORDS = "It is 41 km, then.", "Let me look."
_CALLS: list[tuple[str, list[tuple[str, dict]]]] = [  # said before the calls, and these; the first is the plainest
    ("", [("find_place", _PLAIN)]),
    ("", [("find_place", _PLAIN), ("see_days", {"days": 5}), ("find_place", {"place": "Bodø"})]),
    ("", [("see_days", {})]),
    ("", [("find_place", _RICH)]),
    ("", [("find_place", _QUOTES)]),
    (_WORDS, [("find_place", _PLAIN)]),
    ("", [("find_place", {"place": None})]),
    ("", [("find_place", _SIGNS)]),
]


class CallSyntaxError(SpanwiseError, ValueError):
    """Chat template whose own calls are not read back, so that no answer could be judged."""


def find_syntax(tokenizer, *, special_tokens: bool = True) -> CallReader:
    """Find the reader of the calls that this tokenizer's chat template writes; kept once found.

    special_tokens: whether the texts to be read keep the special tokens; without them a template whose marks are
        special tokens writes another form.

    Raises:
        CallSyntaxError: a call that the template writes is not read back as this call.
    """
    found = _find(TemplateKey(tokenizer, TOOLS), special_tokens)
    if isinstance(found, str):
        raise CallSyntaxError(f"{tokenizer.name_or_path or 'the tokenizer'}: {found}")
    return found


@lru_cache(maxsize=64)
def _find(key: TemplateKey, special_tokens: bool) -> CallReader | str:
    probes = list(_render_probes(key.tokenizer, special_tokens))
    if not any(probe.calls for probe in probes):
        return (
            "the chat template writes no call that was asked of it, or refuses it: use a template with tool_calls, or "
            "leave out data.evaluation and rewards"
        )
    answer, *called = probes
    for name in SYNTAXES.names():
        learn = SYNTAXES[name].learn
        # a template may leave out some of what it is asked, as all calls but the first
        shown = [probe for probe in called if locate_in(name, probe.text, 0, len(probe.text), probe.calls)]
        while learn and called[0] in shown:
            read = learn([answer, *shown])
            unread = _find_unread(CallReader(name, read), [answer, *shown]) if read else shown[-1]
            if read and unread is None:
                return CallReader(name, read)
            shown.remove(unread if unread and unread in shown[1:] else shown[-1])  # the plainest goes last
    written = called[0].text
    return (
        f"the chat template writes a call in a form that evaluation does not read back ({show_json(written)}); those "
        f"that are: {', '.join(SYNTAXES.names())}. Use another template, add the syntax (docs/extending.md), or leave "
        "out data.evaluation"
    )


def _render_probes(tokenizer, special_tokens: bool) -> Iterator[Probe]:
    """Render the answer and each conversation of _CALLS that the template takes."""
    special = None if special_tokens else compile_special_tokens(tokenizer)

    def render_turn(*conversations: list[dict], turn: int = 0) -> str | None:
        """Render a turn, the first, of the first of the conversations that the template takes."""
        for messages in conversations:
            try:
                text, (_, start, end) = render_sequences(Record("probe", messages, TOOLS), tokenizer)[turn]
            except (DataError, IndexError):
                continue
            return special.sub("", text[start:end]) if special is not None else text[start:end]
        return None

    answered = False
    for said, made in _CALLS:
        calls = [{"name": name, "arguments": arguments} for name, arguments in made]
        messages = _make_conversation(said, calls)
        # some templates write an answer after results into the turn that called, and some leave out a last call
        text = render_turn(messages, messages[:-1], messages[:2])
        if text is None:
            continue
        if not answered:
            answer = render_turn(messages, [messages[0], messages[-1]], turn=-1)
            yield Probe(answer or _ANSWER, _ANSWER, [], [])
            answered = True
        ids = [f"functions.{call['name']}:{at}" for at, call in enumerate(calls)] + [f"probe{at}abc" for at in range(3)]
        yield Probe(text, said if said and said in text else "", calls, ids)
        if said:  # and a call after a result, which some templates open in another way
            first = _make_conversation("", calls, "first")[:-1]
            text = render_turn([*first, *messages[1:]], [*first, *messages[1:-1]], turn=1)
            if text is not None:
                yield Probe(text, said if said in text else "", calls, [*ids, *(f"first{at}abc" for at in range(3))])


def _make_conversation(said: str, calls: Sequence[dict], identity: str = "probe") -> list[dict]:
    made = [{"id": f"{identity}{at}abc", "type": "function", "function": call} for at, call in enumerate(calls)]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": "41 km"}
        for call in made
    ]
    return [
        {"role": "user", "content": "How long is the way?"},
        {"role": "assistant", "content": said, "tool_calls": made},
        *results,
        {"role": "assistant", "content": _ANSWER},
    ]


def _find_unread(reader: CallReader, probes: Sequence[Probe]) -> Probe | None:
    """Find the first probe that is not read back as its calls."""
    for probe in probes:
        parsed = reader.parse(probe.text, TOOLS)
        if parsed.problems or not same_calls_in_order(parsed.calls, probe.calls):
            return probe
    return None
