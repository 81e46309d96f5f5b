"""Spans checked with nothing of the code that places them, for any template and any record.

Where a call truly is comes from rendering the record again with a mark in place of each name. What arguments a text
says is read by JSON's, Python's or the tags' own rules.
"""

from __future__ import annotations

import ast
import html
import json
import re
from typing import Any

from kd.records.record import Record
from kd.rendering.encode import Annotated
from kd.rendering.spans import BIT_NAMES
from kd.rendering.turns import render


class Misplaced(AssertionError):
    """A span is not where the record's call is."""


def true_names(record: Record, tokenizer, text: str) -> list[int]:
    """Find where each call's name stands in `text`, from a rendering that has marks in their places."""
    marks = iter(f"\ue000{number}\ue001" for number in range(100_000))
    marked = [
        {**m, "tool_calls": [{**c, "function": {**c["function"], "name": next(marks)}} for c in m["tool_calls"]]}
        if m.get("tool_calls")
        else m
        for m in record.messages
    ]
    other, _ = render(Record(record.id, marked, record.tools), tokenizer)
    names = [call["function"]["name"] for m in record.messages for call in m.get("tool_calls", ())]
    starts, rebuilt, done = [-1] * len(names), "", 0
    for match in re.finditer("\ue000(\\d+)\ue001", other):
        rebuilt, number, done = rebuilt + other[done : match.start()], int(match[1]), match.end()
        starts[number] = (
            len(rebuilt) if starts[number] < 0 else starts[number]
        )  # a template may name a call again beside its result
        rebuilt += names[number]
    if rebuilt + other[done:] != text or min(starts, default=0) < 0:
        raise Misplaced(
            f"record {record.id}: the rendering with marked names is another one, so nothing says where the names are"
        )
    return starts


def says(written: str, arguments: dict) -> bool:
    """Check that the text of an ARGS span says `arguments` and nothing else."""
    if written.startswith("("):
        return _says_python(written, arguments)
    if written.startswith("<"):
        return _says_tags(written, arguments)
    if not written:
        return not arguments
    try:
        value = json.loads(written)
        return _same(json.loads(value) if isinstance(value, str) else value, arguments)
    except ValueError:
        return False


def _same(one: Any, other: Any) -> bool:
    """Compare as JSON: true is not 1, and 1.0 is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, str) == isinstance(other, str)


def _says_python(written: str, arguments: dict) -> bool:
    try:
        names = {"true": True, "false": False, "null": None}
        call = ast.parse("f" + written, mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) and not call.args else [ast.keyword("", ast.Name("?"))]
        values = {
            k.arg: names[k.value.id] if isinstance(k.value, ast.Name) else ast.literal_eval(k.value) for k in keywords
        }
        return _same(json.loads(json.dumps(values)), arguments)
    except (SyntaxError, ValueError, KeyError, TypeError):
        pass
    rest = written[1:-1]  # a string between quotes as it is, which is no Python where it ends in a backslash
    for number, (key, value) in enumerate(arguments.items()):
        forms = [
            json.dumps(value),
            json.dumps(value, ensure_ascii=False),
            repr(value),
            *(f"{quote}{value}{quote}" for quote in "'\"" if isinstance(value, str)),
        ]
        found = next((form for form in forms if rest.startswith(f"{key}={form}")), None)
        if found is None:
            return False
        rest = rest[len(key) + 1 + len(found) :].removeprefix(", " if number + 1 < len(arguments) else "")
    return not rest


def _says_tags(written: str, arguments: dict) -> bool:
    """Find every key and value in order, each in some way of writing it, with tags alone between them."""
    rest, between = written, []
    for key, value in arguments.items():
        for part in (key, value):
            text = part if isinstance(part, str) else None
            forms = (
                [
                    text,
                    text.strip(),
                    html.escape(text),
                    html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
                ]
                if text is not None
                else [
                    json.dumps(part),
                    json.dumps(part, ensure_ascii=False),
                    str(part),
                    html.escape(str(part)),
                    html.escape(json.dumps(part, ensure_ascii=False)),
                ]
            )
            found = min(((rest.find(form), -len(form), form) for form in forms if form in rest), default=None)
            if found is None:
                return False
            between.append(rest[: found[0]])
            rest = rest[found[0] + len(found[2]) :]
    return bool(arguments) and all(re.fullmatch(r"[\s<>/=\"'\w:|.｜▁-]*", text) for text in [*between, rest])


def check_located(record: Record, found: Annotated, tokenizer) -> None:
    """Check every span of a record.

    Raises:
        Misplaced: a TOOL span is not the name at its place, an ARGS span does not say the arguments, a token has a bit
            that no span gives it, or a turn lacks its message's words or has another's.
    """
    text, offsets = found.text, found.offsets
    calls = [call["function"] for m in record.messages for call in m.get("tool_calls", ())]
    if any(m.get("tool_calls") for m in record.messages):
        tools, args = ([s for s in found.spans if s.kind == kind] for kind in ("tool", "args"))
        _must(len(tools) == len(args) == len(found.calls), record, "as many spans as calls")
        structured = [n for n, call in enumerate(found.calls) if record.messages[call.message].get("tool_calls")]
        starts = true_names(record, tokenizer, text)
        _must(
            [(found.calls[n].name, found.calls[n].arguments) for n in structured]
            == [(c["name"], c["arguments"]) for c in calls],
            record,
            "calls understood",
        )
        for at, number in enumerate(structured):
            name = calls[at]["name"]
            _only(offsets, tools[number], starts[at], starts[at] + len(name), f"record {record.id}: TOOL {name}")
            window = (
                starts[at - 1] + len(calls[at - 1]["name"]) if at else 0,
                starts[at + 1] if at + 1 < len(starts) else len(text),
            )
            _check_arguments(
                text,
                offsets,
                args[number],
                calls[at]["arguments"],
                window,
                (starts[at], starts[at] + len(name)),
                f"record {record.id}: ARGS of {name}",
            )
    for name, bit in BIT_NAMES.items():
        spanned = {t for span in found.spans if span.kind == name for t in range(span.start, span.end)}
        _must(
            spanned == {t for t, bits in enumerate(found.encoded.bits) if bits & bit},
            record,
            f"a token has the bit {name} outside its spans, or lacks it",
        )
    _check_turns(record, found, offsets)


def _must(holds: bool, record: Record, what: str) -> None:
    if not holds:
        raise Misplaced(f"record {record.id}: {what}")


def _only(offsets: list[tuple[int, int]], span, start: int, end: int, what: str) -> None:
    """Check that the tokens of `span` are those with a character of text[start:end], and no other."""
    meant = [t for t, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    with_empty = [t for t in range(span.start, span.end) if offsets[t][1] > offsets[t][0]]
    if with_empty != meant:
        raise Misplaced(f"{what}: tokens {span.start} to {span.end}, and not {meant}")


def _check_arguments(text, offsets, span, arguments: dict, window, name, what: str) -> None:
    if span.start == span.end:
        if arguments:
            raise Misplaced(f"{what}: an empty span")
        return
    first, last = offsets[span.start], offsets[span.end - 1]
    for start in range(max(first[0], window[0]), first[1]):
        for end in range(min(last[1], window[1]), last[0], -1):
            if (
                text[start : start + 1] in '{("<'
                and (end <= name[0] or start >= name[1])
                and says(text[start:end], arguments)
            ):
                _only(offsets, span, start, end, what)
                return
    raise Misplaced(f"{what}: {text[first[0] : last[1]]!r} is not {json.dumps(arguments, ensure_ascii=False)}")


def _check_turns(record: Record, found: Annotated, offsets) -> None:
    turns = [found.text[offsets[s.start][0] : offsets[s.end - 1][1]] for s in found.spans if s.kind == "truth"]
    messages = [m for m in record.messages if m["role"] == "assistant"]
    _must(len(turns) == len(messages), record, "a turn without its span")
    for turn, message in zip(turns, messages):
        said = message["content"].strip()
        _must(not said or said in turn or bool(message.get("tool_calls")), record, "a turn without its content")
        _must(
            all(c["function"]["name"] in turn for c in message.get("tool_calls", ())), record, "a turn without its call"
        )
    own = "\n".join(json.dumps(m, ensure_ascii=False) + m["content"] for m in messages)
    for message in record.messages:
        content = message["content"].strip()
        if message["role"] != "assistant" and len(content) > 40 and content not in own:
            _must(not any(content in turn for turn in turns), record, f"a {message['role']}'s words in a trained turn")
