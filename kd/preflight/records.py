"""Readiness check of data: records read, rendered and located, spans decoded again, calls held to their tools.

A record is *ready*, or *refused* (it cannot be trained on: not read, private reasoning, a special token in a text, not
located, a call of no offered tool, arguments its schema forbids), or *flagged* (located, but a span does not read back,
or an argument is one that the schema does not list, without forbidding it). Training would refuse the first kind; the
second is for a person to look at, in the HTML page. `--fix` leaves out both.

Reading back uses nothing of the code that located: tokens are decoded, arguments parsed from the decoded text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kd.config.schema import Data
from kd.preflight.read_back import SpanReader
from kd.records.checks import DataError, ReasoningError, SpecialTokenError
from kd.records.files import expand, read_all
from kd.records.quarantine import RAW_BYTES, Item
from kd.records.record import Record
from kd.rendering.encode import Annotated, annotate
from kd.sources.demo import corpus as demo
from kd.sources.demo.source import DemoSource
from kd.toolcalls.registry import ToolRegistry

NUM_DEMO = 300  # records of the demo corpus to look at; it is made, so any of its records stand for all
ROUND_TRIP_TARGET = 0.995  # of the spans of each kind


class Verified(NamedTuple):
    """Record as the check found it."""

    file: str
    line: int
    id: str
    record: Record | None
    raw: bytes  # the line as it was read
    refused: str = ""  # the reason; "" where it is not refused
    check: str = ""  # name in CHECKS of the check that refused it, or flagged it first; "" where none did
    problems: tuple[str, ...] = ()  # of a flagged record
    annotated: Annotated | None = None  # where it could be located
    read_back: Mapping[str, tuple[int, int]] = {}  # kind -> number of spans, and of those that do not read back
    unchecked_calls: int = 0  # calls of a record that offers no tools, of names that no registry has

    @property
    def ready(self) -> bool:
        """Neither refused nor flagged."""
        return not self.refused and not self.problems

    @property
    def reason(self) -> str:
        """Reason why the record is not ready, with its file and line; "" where it is."""
        if self.refused or not self.problems:
            return self.refused
        return f"{self.file}:{self.line}: " + "; ".join(self.problems)


# Checks of a record, in the order of the table: name -> what holds where it passes.
CHECKS = {
    "read": "every line is a record",
    "reasoning": "no chain-of-thought",
    "special": "no special token in what is trained or declared",
    "located": "rendered by the template, every call and answer located",
    "known": "every called tool is offered",
    "arguments": "arguments are valid by their tool's schema",
    "read back": f"spans decode to what they stand for (target {ROUND_TRIP_TARGET:.1%})",
}


def verify_records(items: Iterable[Item], tokenizer, tools: ToolRegistry | None = None) -> Iterator[Verified]:
    """Check every item, in order.

    tools: for records that offer none; by default the six of kd/toolcalls/default_tools.py.
    """
    reader = SpanReader(tokenizer)
    for item in items:
        identity = item.id or f"{item.file}:{item.line}"
        found = Verified(item.file, item.line, identity, item.record, item.raw, refused=item.reason)
        if item.record is None:
            yield found._replace(check="reasoning" if isinstance(item.error, ReasoningError) else "read")
            continue
        found = found._replace(id=item.record.id)
        where = f"{item.file}:{item.line}: "
        try:
            annotated = annotate(item.record, tokenizer)
        except DataError as error:
            yield found._replace(
                refused=where + str(error), check="special" if isinstance(error, SpecialTokenError) else "located"
            )
            continue
        refused, check, problems, unchecked = _judge_calls(item.record, annotated, tools)
        counts, unread = reader.read_back(item.record, annotated)
        check = check or ("read back" if unread else "")
        yield found._replace(
            refused=where + refused if refused else "",
            check=check,
            problems=(*problems, *unread),
            annotated=annotated,
            read_back=counts,
            unchecked_calls=unchecked,
        )


def _judge_calls(record: Record, annotated: Annotated, tools: ToolRegistry | None) -> tuple[str, str, list[str], int]:
    """Hold calls to their tools: (reason to refuse them, name of the check, unlisted arguments, number unchecked)."""
    try:
        registry = ToolRegistry(record.tools) if record.tools else tools or ToolRegistry.default()
    except ValueError as error:
        return f"tools: {error}", "arguments", [], 0
    problems, unchecked = [], 0
    for call in annotated.calls:
        spot = f"messages[{call.message}]: "
        if call.name not in registry and not record.tools and tools is None:
            unchecked += 1
            continue
        try:
            wrong = registry.validate_call(call.name, call.arguments)
            forbidden = registry.validate_call(call.name, call.arguments, closed=False) if wrong else []
        except ValueError as error:
            return spot + str(error), "arguments", problems, unchecked
        if forbidden:
            return (
                spot + "; ".join(forbidden),
                "known" if call.name not in registry else "arguments",
                problems,
                unchecked,
            )
        problems += [spot + problem for problem in wrong]
    return "", "arguments" if problems else "", problems, unchecked


def make_bad_line(verified: Verified) -> dict[str, Any]:
    """Make the line of bad.jsonl, as kd.records.quarantine.Quarantine writes it."""
    raw = verified.raw[:RAW_BYTES].decode("utf-8", "backslashreplace")
    return {"file": verified.file, "line": verified.line, "reason": verified.reason, "raw": raw}


def make_spans_line(verified: Verified, reader: SpanReader) -> dict[str, Any]:
    """Make the line of --spans: the record's text, tokens, calls and spans, or the reason why it is refused."""
    line: dict[str, Any] = {"id": verified.id, "file": verified.file, "line": verified.line}
    found = verified.annotated
    if verified.refused or found is None:
        return line | {"refused": verified.refused}
    ids = found.encoded.input_ids
    line |= {
        "text": found.text,
        "token_ids": ids,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in found.calls],
        "spans": [
            {"kind": kind.upper(), "start": start, "end": end, "text": reader.decode(ids[start:end])}
            for kind, start, end in found.spans
        ],
    }
    return line | ({"problems": list(verified.problems)} if verified.problems else {})


def read_data_items(data: Data) -> Iterator[Item]:
    """Read every line of every data file of a run, and NUM_DEMO records of each stage and split of the demo corpus."""
    patterns = [(source.files, source.format) for stage in data.stages for source in stage.train or ()]
    splits = [*data.evaluation.items(), *data.validation.items()]
    patterns += [(path, None) for _, path in splits if path != "demo"]
    for pattern, format in dict.fromkeys(patterns):
        yield from read_all(expand([pattern]), format)
    corpus = data.demo
    if corpus is None:
        return
    for index, stage in enumerate(data.stages):
        if stage.mix is not None:
            source = DemoSource(min(corpus.num_records, NUM_DEMO), corpus.seed * 1000 + index, stage.mix)
            yield from (_make_item(f"demo:{stage.name}", at, source[at]) for at in range(len(source)))
    for name, path in splits:
        if path == "demo" and name in demo.SPLITS:
            yield from (
                _make_item(f"demo:{name}", at, record)
                for at, record in enumerate(demo.records(name, NUM_DEMO, seed=corpus.seed))
            )


def _make_item(name: str, index: int, record: Record) -> Item:
    return Item(name, index + 1, record, None, b"", record.id)
