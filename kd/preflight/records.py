"""Readiness check of data: records read, rendered and located, spans decoded again, calls held to their tools.

A record is *ready*, or *refused* (it cannot be trained on: not read, private reasoning, a call of no offered tool,
arguments its schema forbids, a special token in a text, not located), or *flagged* (located, but a text in the shape of
a call is not read as one, a span does not read back, or an argument is one that the schema does not list, without
forbidding it). Training refuses the first kind, for it reads and renders with the same two functions as this file
(kd.records.files.read_each, kd.rendering.encode.annotate_sequences); the second is for a person to look at, in the HTML
page. `--fix` leaves out both. Tools given for records that offer none are no part of training: what they forbid is
flagged.

Reading back uses nothing of the code that located: tokens are decoded, arguments parsed from the decoded text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kd.config.schema import Data
from kd.preflight.read_back import READ_BACK, SpanReader
from kd.records.calls import find_unread, judge_calls
from kd.records.checks import DataError, SpecialTokenError, UnknownToolError
from kd.records.files import expand, read_all
from kd.records.quarantine import RAW_BYTES, Item
from kd.records.record import Record
from kd.rendering.encode import Annotated, TurnsChoice, annotate_sequences
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
    sequences: tuple[Annotated, ...] = ()  # where it could be located
    read_back: Mapping[str, tuple[int, int]] = {}  # kind -> number of spans, and of those that do not read back
    unchecked_calls: int = 0  # calls of a record that offers no tools, of names that no registry has
    unread_calls: int = 0  # texts in the shape of a call that are trained as prose
    notes: tuple[str, ...] = ()  # names of kd.records.conversation.NOTES

    @property
    def ready(self) -> bool:
        """Neither refused nor flagged."""
        return not self.refused and not self.problems

    @property
    def num_text_calls(self) -> int:
        """Number of calls that are read in the text of turns without `tool_calls`."""
        calls, record = [call for sequence in self.sequences for call in sequence.calls], self.record
        return sum(not record.messages[call.message].get("tool_calls") for call in calls) if record else 0

    @property
    def reason(self) -> str:
        """Reason why the record is not ready, with its file and line; "" where it is."""
        if self.refused or not self.problems:
            return self.refused
        return f"{self.file}:{self.line}: " + "; ".join(self.problems)


# Checks of a record, in the order of the table: name -> what holds where it passes.
CHECKS = {
    "read": "every line is a record, and every turn one that a model generates",
    "reasoning": "no chain-of-thought",
    "known": "every called tool is offered",
    "arguments": "arguments are valid by their tool's schema",
    "special": "no special token in what is trained or declared",
    "located": "rendered by the template, nothing left out, every call and answer located and read back as a call",
    "text calls": "what names a tool in the shape of a call is read as one",
    "read back": f"spans decode to what they stand for (target {ROUND_TRIP_TARGET:.1%})",
}


def verify_records(
    items: Iterable[Item], tokenizer, tools: ToolRegistry | None = None, turns: TurnsChoice = "auto"
) -> Iterator[Verified]:
    """Check every item, in order.

    tools: for records that offer none; by default the six of kd/toolcalls/default_tools.py.
    turns: data.turns.
    """
    reader = SpanReader(tokenizer)
    for item in items:
        identity = item.id or f"{item.file}:{item.line}"
        found = Verified(item.file, item.line, identity, item.record, item.raw, item.reason, notes=item.notes)
        if item.record is None:
            yield found._replace(check="read" if item.error is None else item.error.check)
            continue
        record = item.record
        found = found._replace(id=record.id)
        where = f"{item.file}:{item.line}"
        try:
            sequences = annotate_sequences(record, tokenizer, turns)
        except DataError as error:
            yield found._replace(
                refused=f"{where}: {error}", check=error.check if isinstance(error, SpecialTokenError) else "located"
            )
            continue
        judged = judge_calls(record.messages, record.tools, where, tools)
        forbidden = [str(judged.refusal).removeprefix(f"{where}: ")] if judged.refusal is not None else []
        unread = [
            f"messages[{index}]: {text[:60]!r} has the shape of a call and is trained as prose: write it as tool_calls"
            for index, text in find_unread(record.messages, record.tools)
        ]
        counts, lost = _read_back(reader, record, sequences)
        problems = {
            "known" if isinstance(judged.refusal, UnknownToolError) else "arguments": (*judged.problems, *forbidden),
            "text calls": unread,
            "read back": lost,
        }
        yield found._replace(
            check=next((check for check, several in problems.items() if several), ""),
            problems=tuple(problem for several in problems.values() for problem in several),
            sequences=tuple(sequences),
            read_back=counts,
            unchecked_calls=judged.num_unchecked,
            unread_calls=len(unread),
        )


def _read_back(
    reader: SpanReader, record: Record, sequences: list[Annotated]
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Read back the spans of all sequences of a record; as SpanReader.read_back."""
    counts: dict[str, tuple[int, int]] = dict.fromkeys(READ_BACK, (0, 0))
    problems: list[str] = []
    for sequence in sequences:
        found, lost = reader.read_back(record, sequence)
        counts = {kind: (spans + found[kind][0], bad + found[kind][1]) for kind, (spans, bad) in counts.items()}
        problems += lost
    return counts, problems


def make_bad_line(verified: Verified) -> dict[str, Any]:
    """Make the line of bad.jsonl, as kd.records.quarantine.Quarantine writes it."""
    raw = verified.raw[:RAW_BYTES].decode("utf-8", "backslashreplace")
    return {"file": verified.file, "line": verified.line, "reason": verified.reason, "raw": raw}


def make_spans_lines(verified: Verified, reader: SpanReader) -> Iterator[dict[str, Any]]:
    """Make the lines of --spans, one a sequence: its text, tokens, calls and spans, or why the record is refused."""
    place: dict[str, Any] = {"id": verified.id, "file": verified.file, "line": verified.line}
    if verified.refused or not verified.sequences:
        yield place | {"refused": verified.refused}
        return
    for sequence in verified.sequences:
        line = place | {"id": sequence.encoded.record_id} | _describe_spans(sequence, reader)
        yield line | ({"problems": list(verified.problems)} if verified.problems else {})


def _describe_spans(found: Annotated, reader: SpanReader) -> dict[str, Any]:
    ids = found.encoded.input_ids
    return {
        "text": found.text,
        "token_ids": ids,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in found.calls],
        "spans": [
            {"kind": kind.upper(), "start": start, "end": end, "text": reader.decode(ids[start:end])}
            for kind, start, end in found.spans
        ],
    }


def read_data_items(data: Data) -> Iterator[Item]:
    """Read every line of every data file of a run, and NUM_DEMO records of each stage and split of the demo corpus."""
    patterns = [(source.files, source.format) for stage in data.stages for source in stage.train or ()]
    splits = [*data.evaluation.items(), *data.validation.items()]
    patterns += [(path, None) for _, path in splits if path != "demo"]
    for pattern, format in dict.fromkeys(patterns):
        yield from read_all(expand([pattern]), format, rewrite_calls=data.rewrite_calls)
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
