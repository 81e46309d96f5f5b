"""The readiness check of data: every record read, rendered and located, each span decoded again, each call held to its
tool.

A record is *ready*, or *refused* (it cannot be trained on: not read, private reasoning, a special token in a text, not
located, a call of no offered tool, arguments its schema forbids), or *flagged* (located, but a span does not read back,
or an argument is one that the schema does not list, without forbidding it). Training would refuse the first; the second
is for a person to look at, in the HTML page. `--fix` leaves out both.

Reading back uses nothing of the code that located: tokens are decoded, arguments parsed from what they decode to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kd.config.schema import RunConfig
from kd.preflight.read_back import READ_BACK, SpanReader
from kd.records.checks import DataError, ReasoningError, SpecialTokenError
from kd.records.files import expand, read_all
from kd.records.quarantine import RAW_BYTES, Item
from kd.records.record import Record
from kd.rendering.encode import Annotated, annotate
from kd.rendering.spans import BIT_NAMES
from kd.sources.demo import corpus as demo
from kd.sources.demo.source import DemoSource
from kd.toolcalls.registry import ToolRegistry

NUM_DEMO = 300  # records of the demo corpus to look at; it is made, so any of its records stand for all
NUM_LISTED, MAX_FAILURES = 10, 1000  # failures in the table and in verify.json; bad.jsonl has all
ROUND_TRIP_TARGET = 0.995  # of the spans of each kind


class Verified(NamedTuple):
    """One record as the check found it."""

    file: str
    line: int
    id: str
    record: Record | None
    refused: str  # "" where it is not
    check: str  # which check refused it, or flagged it first: one of CHECKS, or ""
    problems: list[str]  # of a flagged record
    annotated: Annotated | None  # of what could be located
    read_back: dict[str, tuple[int, int]]  # kind -> spans, and those that do not read back
    raw: bytes  # the line as it was read
    unchecked_calls: int = 0  # calls of a record that offers no tools, of names that no registry has

    @property
    def ready(self) -> bool:
        return not self.refused and not self.problems


# What a record can fail, in the order of the table.
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
    """Every item checked, in order. `tools`: for records that offer none; by default the six of
    kd/toolcalls/default_tools.py.
    """
    reader = SpanReader(tokenizer)
    for item in items:
        found = Verified(
            item.file,
            item.line,
            item.id or f"{item.file}:{item.line}",
            item.record,
            item.reason,
            "",
            [],
            None,
            {},
            item.raw,
        )
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
            problems=problems + unread,
            annotated=annotated,
            read_back=counts,
            unchecked_calls=unchecked,
        )


def _judge_calls(record: Record, annotated: Annotated, tools: ToolRegistry | None) -> tuple[str, str, list[str], int]:
    """(why the calls are refused, which check, unlisted arguments, number of calls nothing is known of)."""
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


class Tally:
    """Figures over all records: by file, by check, by kind of span; and the failures, each with its place."""

    def __init__(self):
        self.files: dict[str, Counter] = {}
        self.failed: Counter = Counter()  # records by check
        self.failures: list[dict[str, Any]] = []  # the first MAX_FAILURES of them

    def add(self, verified: Verified) -> None:
        counts = self.files.setdefault(verified.file, Counter())
        counts["records"] += 1
        counts["refused" if verified.refused else "flagged" if verified.problems else "ready"] += 1
        counts["unchecked_calls"] += verified.unchecked_calls
        if not verified.ready:
            self.failed[verified.check] += 1
            what = verified.refused or f"{verified.file}:{verified.line}: " + "; ".join(verified.problems)
            if len(self.failures) < MAX_FAILURES:
                self.failures.append(
                    {
                        "file": verified.file,
                        "line": verified.line,
                        "id": verified.id,
                        "check": verified.check,
                        "what": what[:2000],
                    }
                )
        if verified.annotated is None:
            return
        encoded, calls, spans = verified.annotated.encoded, verified.annotated.calls, verified.annotated.spans
        counts["tokens"] += len(encoded.input_ids)
        counts["calls"] += len(calls)
        for name, bit in BIT_NAMES.items():
            counts[f"{name}_tokens"] += sum(bits & bit != 0 for bits in encoded.bits)
            counts[f"{name}_spans"] += sum(span.kind == name for span in spans)
        for kind, (_, bad) in verified.read_back.items():
            counts[f"{kind}_unread"] += bad

    @property
    def total(self) -> Counter:
        return sum(self.files.values(), Counter())

    def round_trip(self, kind: str) -> float:
        """Share of the spans of a kind that read back; 1 where there are none."""
        spans = self.total[f"{kind}_spans"]
        return 1 - self.total[f"{kind}_unread"] / spans if spans else 1.0

    def ready(self, max_bad_fraction: float = 0.0) -> bool:
        """Whether at most that fraction of the records fails a check; spans that do not read back count by
        ROUND_TRIP_TARGET.
        """
        bad = sum(count for check, count in self.failed.items() if check != "read back")
        enough = all(self.round_trip(kind) >= ROUND_TRIP_TARGET for kind in READ_BACK)
        return self.total["ready"] > 0 and bad <= max_bad_fraction * self.total["records"] and enough


def bad_line(verified: Verified) -> dict[str, Any]:
    """The line of bad.jsonl, as kd.records.quarantine.Quarantine writes it."""
    what = verified.refused or f"{verified.file}:{verified.line}: " + "; ".join(verified.problems)
    raw = verified.raw[:RAW_BYTES].decode("utf-8", "backslashreplace")
    return {"file": verified.file, "line": verified.line, "reason": what, "raw": raw}


def spans_line(verified: Verified, reader: SpanReader) -> dict[str, Any]:
    """The line of --spans: the record's text, tokens, calls and spans, or why it is refused."""
    if verified.refused:
        return {"id": verified.id, "file": verified.file, "line": verified.line, "refused": verified.refused}
    found = verified.annotated
    ids = found.encoded.input_ids
    line = {
        "id": verified.id,
        "file": verified.file,
        "line": verified.line,
        "text": found.text,
        "token_ids": ids,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in found.calls],
        "spans": [
            {"kind": kind.upper(), "start": start, "end": end, "text": reader.decode(ids[start:end])}
            for kind, start, end in found.spans
        ],
    }
    return line | ({"problems": verified.problems} if verified.problems else {})


def config_items(config: RunConfig) -> Iterator[Item]:
    """Every line of every data file of a run, and NUM_DEMO records of each stage and each split that the demo corpus
    makes.
    """
    patterns = [(source.files, source.format) for stage in config.data.stages for source in stage.train or ()]
    patterns += [(path, None) for path in config.data.evaluation.values() if path != "demo"]
    for pattern, format in dict.fromkeys(patterns):
        yield from read_all(expand([pattern]), format)
    corpus = config.data.demo
    for index, stage in enumerate(config.data.stages if corpus is not None else ()):
        if stage.mix is not None:
            source = DemoSource(min(corpus.num_records, NUM_DEMO), corpus.seed * 1000 + index, stage.mix)
            yield from (_made(f"demo:{stage.name}", at, source[at]) for at in range(len(source)))
    for name, path in config.data.evaluation.items():
        if path == "demo" and name in demo.SPLITS:
            yield from (
                _made(f"demo:{name}", at, record)
                for at, record in enumerate(demo.records(name, NUM_DEMO, seed=corpus.seed))
            )


def _made(name: str, index: int, record: Record) -> Item:
    return Item(name, index + 1, record, None, b"", record.id)


def summary(tally: Tally, ready: bool, checks: list[dict[str, Any]]) -> dict[str, Any]:
    """What verify.json holds."""
    trips = {
        kind: {
            "spans": tally.total[f"{kind}_spans"],
            "unread": tally.total[f"{kind}_unread"],
            "share": tally.round_trip(kind),
        }
        for kind in READ_BACK
    }
    return {
        "ready": ready,
        "records": dict(tally.total),
        "files": {file: dict(counts) for file, counts in tally.files.items()},
        "checks": [{"name": name, "what": what, "failed": tally.failed[name]} for name, what in CHECKS.items()],
        "round_trip": trips,
        "run": checks,
        "failures": tally.failures,
        "num_failures": tally.failed.total(),
    }


def format_tally(tally: Tally, checks: list[dict[str, Any]]) -> str:
    """The table a person reads: files, checks, spans, and the first failures."""
    columns = ("records", "ready", "flagged", "refused", "calls", "tokens", "truth_tokens")
    width = max(map(len, [*tally.files, "all files"]))
    lines = [f"{'':<{width}}" + "".join(f"{column.replace('_', ' '):>14}" for column in columns)]
    for file, counts in [*tally.files.items(), ("all files", tally.total)]:
        lines.append(f"{file:<{width}}" + "".join(f"{counts[column]:>14,}" for column in columns))
    lines.append("")
    for name, what in CHECKS.items():
        lines.append(
            f"{'FAIL' if tally.failed[name] else 'ok':<8}{what}: "
            + (f"not so in {tally.failed[name]:,}" if tally.failed[name] else "all")
        )
    for kind in READ_BACK:
        spans, bad = tally.total[f"{kind}_spans"], tally.total[f"{kind}_unread"]
        lines.append(
            f"{'FAIL' if tally.round_trip(kind) < ROUND_TRIP_TARGET else 'ok':<8}{kind.upper()}: {spans - bad:,} of "
            f"{spans:,} spans read back"
        )
    for check in checks:
        lines.append(
            f"{'not run' if check['ok'] is None else 'ok' if check['ok'] else 'FAIL':<8}{check['name']}: "
            f"{check['detail']}"
        )
    if tally.total["unchecked_calls"]:
        lines.append(
            f"note    {tally.total['unchecked_calls']:,} calls are of tools that no record declares, so they are not "
            "checked; give --tools"
        )
    if tally.failures:
        lines += [
            "",
            f"first of {tally.failed.total():,} records that fail:",
            *(f"  {f['what'][:300]}" for f in tally.failures[:NUM_LISTED]),
        ]
    return "\n".join(lines)
