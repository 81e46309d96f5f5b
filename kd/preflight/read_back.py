"""Spans read back from their tokens: names decoded, arguments parsed, values looked up, all by code of its own.

Two things must hold of each span. Its tokens decode to the characters they stand for (a tokenizer that lower-cases or
spaces its words apart is allowed that). And those characters are the name, the arguments or a value, where only the
first and the last token may also carry a neighbour's: a span that is a token too long or too short does not read back.
"""

from __future__ import annotations

import ast
import html
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kd.records.record import Record
from kd.rendering.encode import Annotated
from kd.toolcalls.grounding import find_carried, occurs
from kd.toolcalls.json_values import same_json

READ_BACK = ("tool", "args", "integration")
_EDGES = " \t\r\n.,;:!?\"'`()[]{}<>"
_LOST = "\ufffd"  # of a character whose bytes are in two tokens
_MAX_PYTHON = 100_000  # characters


class SpanReader:
    """Reader of spans from their tokens, by one tokenizer."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._normalizer = tokenizer.backend_tokenizer.normalizer

    def decode(self, ids: list[int]) -> str:
        """Decode token ids to text, special tokens included."""
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def read_back(self, record: Record, annotated: Annotated) -> tuple[dict[str, tuple[int, int]], list[str]]:
        """Read a record's spans back: ({kind: (number of spans, number that do not read back)}, problems)."""
        counts: dict[str, tuple[int, int]] = dict.fromkeys(READ_BACK, (0, 0))
        problems: list[str] = []
        spans = [span for span in annotated.spans if span.kind in READ_BACK]
        for kind in ("tool", "args"):
            if sum(span.kind == kind for span in spans) != len(annotated.calls):
                problems.append(f"{kind.upper()}: {len(annotated.calls)} calls, and not as many spans")
                counts[kind] = len(annotated.calls), len(annotated.calls)
        if problems or not spans:
            return counts, problems
        offsets = annotated.offsets
        results = [m["content"] for m in record.messages if m["role"] == "tool"]
        numbers: Counter = Counter()
        for kind, start, end in spans:
            call = annotated.calls[numbers[kind]] if kind != "integration" else None
            numbers[kind] += 1
            expected = call and (call.name if kind == "tool" else call.arguments)
            good = self._reads(annotated, offsets, kind, start, end, expected, results)
            if not good:
                wanted = (
                    f"and not to {json.dumps(expected, ensure_ascii=False)[:80]}"
                    if call
                    else "which is no value of a result"
                )
                problems.append(
                    f"{kind.upper()} at tokens {start} to {end} decodes to "
                    f"{self.decode(annotated.encoded.input_ids[start:end])[:80]!r}, {wanted}"
                )
            counts[kind] = counts[kind][0] + 1, counts[kind][1] + (not good)
        return counts, problems

    def _reads(
        self,
        annotated: Annotated,
        offsets: list[tuple[int, int]],
        kind: str,
        start: int,
        end: int,
        expected: Any,
        results: list[str],
    ) -> bool:
        if start >= end:
            return kind == "args" and not expected  # tags: no parameter is written
        text, ids = annotated.text, annotated.encoded.input_ids[start:end]
        first, last = offsets[start], offsets[end - 1]
        written = text[first[0] : last[1]]
        room = first[1] - first[0], last[1] - last[0]  # a neighbour's characters fit in one token
        if not self._faithful(ids, written, unknown=kind != "tool"):
            return False
        if kind == "tool":
            return any(
                written.startswith(expected, at) and len(written) - at - len(expected) < max(room[1], 1)
                for at in range(max(room[0], 1))
            )
        if kind == "args":
            return _is_arguments(written, expected, room)
        return any(
            value
            and (
                any(occurs(value, result) for result in results)
                or any(c.text == value for c in find_carried(value, results))
            )
            for value in dict.fromkeys((written.strip(), written.strip(_EDGES)))
        )

    def _faithful(self, ids: list[int], written: str, *, unknown: bool) -> bool:
        """Check that the tokens decode to these characters. `unknown`: allow the token for unknown characters."""
        said, meant = self._plain(self.decode(ids)), self._plain(written)
        if said == meant or unknown and self._tokenizer.unk_token_id in ids:
            return True
        return _LOST in said and said.strip(_LOST) in meant

    def _plain(self, text: str) -> str:
        text = self._normalizer.normalize_str(text) if self._normalizer is not None else text
        return "".join(text.replace("▁", " ").split())


def _is_arguments(written: str, arguments: dict, room: tuple[int, int]) -> bool:
    """Check that a text is these arguments as JSON, a JSON string, Python keywords, tags, or an object without quotes.

    Where a template writes texts without escaping them no parser reads the arguments: then each key and value must
    stand there.

    room: characters of its first and its last token, less than which may be a neighbour's.
    """
    for begin in range(min(max(room[0], 1), len(written))):
        if written[begin] in '{"':
            try:
                value, end = json.JSONDecoder().raw_decode(written, begin)
                value = json.loads(value) if isinstance(value, str) else value
            except (ValueError, RecursionError):
                continue
            if same_json(value, arguments) and len(written) - end < max(room[1], 1):
                return True
        elif written[begin] == "'" and (end := written.rfind("'") + 1) and len(written) - end < max(room[1], 1):
            if _is_quoted_json(written[begin:end], arguments):
                return True
        elif (
            written[begin] == "("
            and len(written) - 1 - written.rfind(")") < max(room[1], 1)
            and _is_python(written[begin : written.rfind(")") + 1], arguments)
        ):
            return True
    return _has_edges(written, room) and all(
        any(spelling in written for spelling in spellings) for spellings in _spellings(arguments)
    )


def _has_edges(written: str, room: tuple[int, int]) -> bool:
    """Check that a text runs from the first to the last mark of tags, of Python's, or of an object without quotes."""
    for first, last in (("]<]", ">"), ("<", ">"), ("(", ")"), ("{", "}")):
        opens, closes = written.find(first), len(written) - 1 - written.rfind(last)
        is_json = first == "{" and written[opens + 1 : opens + 2] in ('"', "}")
        if 0 <= opens < max(room[0], 1) and closes < max(room[1], 1) and not is_json:
            return True
    return False


def _is_quoted_json(text: str, arguments: dict) -> bool:
    try:
        return len(text) <= _MAX_PYTHON and same_json(json.loads(text[1:-1].replace("\\'", "'")), arguments)
    except (ValueError, RecursionError):
        return False


def _is_python(text: str, arguments: dict) -> bool:
    if len(text) > _MAX_PYTHON:
        return False
    try:
        call = ast.parse("f" + text, mode="eval").body
        if not isinstance(call, ast.Call):
            return False
        value = {keyword.arg: ast.literal_eval(_as_python(keyword.value)) for keyword in call.keywords}
        return not call.args and same_json(json.loads(json.dumps(value)), arguments)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False


def _as_python(node: ast.AST) -> ast.AST:
    """Replace JSON's true, false and null in a literal by Python's."""
    constants = {"true": True, "false": False, "null": None}

    class Renamed(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.AST:
            return ast.copy_location(ast.Constant(constants[name.id]), name) if name.id in constants else name

    return Renamed().visit(node)


def _spellings(value: Any) -> Iterator[tuple[str, ...]]:
    """Yield, for each key and leaf of a JSON value, the ways in which a template may write it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _spellings(key)
            yield from _spellings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _spellings(inner)
    elif isinstance(value, str):
        plain = (
            value,
            value.strip(),
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            repr(value)[1:-1],
        )
        yield (
            *plain,
            *(html.escape(text) for text in plain),
            html.escape(value).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
        )
    else:
        yield json.dumps(value), str(value)
