"""Tally of the readiness check: figures by file, check and kind of span, as verify.json and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from kd.preflight.read_back import READ_BACK
from kd.preflight.records import CHECKS, ROUND_TRIP_TARGET, Verified
from kd.records.conversation import NOTES, describe_notes
from kd.rendering.encode import UNSEEN
from kd.rendering.spans import BIT_NAMES
from kd.rewards.caws_figures import CawsFigures

NUM_LISTED, MAX_FAILURES = 10, 1000  # failures in the table and in verify.json; bad.jsonl has all


class Tally:
    """Figures over all records: by file, by check, by kind of span; and the failures, each with its place.

    count: tokens of a text, for the figures of CAWS.
    """

    def __init__(self, count: Callable[[str], int] | None = None):
        self.caws = CawsFigures(count)
        self.files: dict[str, Counter] = {}
        self.failed: Counter = Counter()  # records by check
        self.notes: Counter[str] = Counter()  # records by name of kd.records.conversation.NOTES
        self.failures: list[dict[str, Any]] = []  # the first MAX_FAILURES of them

    def add(self, verified: Verified) -> None:
        """Count one record."""
        counts = self.files.setdefault(verified.file, Counter())
        counts["records"] += 1
        counts["refused" if verified.refused else "flagged" if verified.problems else "ready"] += 1
        counts["unchecked_calls"] += verified.unchecked_calls
        counts["unread_calls"] += verified.unread_calls
        self.notes.update(verified.notes)
        if verified.record is not None:
            self.caws.add(verified.record)
        if not verified.ready:
            self.failed[verified.check] += 1
            if len(self.failures) < MAX_FAILURES:
                self.failures.append(
                    {
                        "file": verified.file,
                        "line": verified.line,
                        "id": verified.id,
                        "check": verified.check,
                        "what": verified.reason[:2000],
                    }
                )
        counts["text_calls"] += verified.num_text_calls
        for encoded, _, calls, spans, _, dropped, are_unseen in verified.sequences:
            counts["sequences"] += 1
            counts["tokens"] += len(encoded.input_ids)
            counts["calls"] += len(calls)
            counts["dropped_texts"] += len(dropped)
            counts["unseen_tools"] += are_unseen
            for name, bit in BIT_NAMES.items():
                counts[f"{name}_tokens"] += sum(bits & bit != 0 for bits in encoded.bits)
                counts[f"{name}_spans"] += sum(span.kind == name for span in spans)
        for kind, (_, bad) in verified.read_back.items():
            counts[f"{kind}_unread"] += bad

    @property
    def total(self) -> Counter:
        """Figures of all files together."""
        return sum(self.files.values(), Counter())

    def round_trip(self, kind: str) -> float:
        """Return the part of the spans of a kind that read back; 1 where there are none."""
        spans = self.total[f"{kind}_spans"]
        return 1 - self.total[f"{kind}_unread"] / spans if spans else 1.0

    @property
    def recall(self) -> float:
        """Return the part of what is written as a call in a text that is read as one; 1 where there is nothing."""
        read, unread = self.total["text_calls"], self.total["unread_calls"]
        return read / (read + unread) if unread else 1.0

    def ready(self, max_bad_fraction: float = 0.0) -> bool:
        """Check that at most that fraction of the records fails; spans that do not read back have ROUND_TRIP_TARGET."""
        bad = sum(count for check, count in self.failed.items() if check != "read back")
        enough = all(self.round_trip(kind) >= ROUND_TRIP_TARGET for kind in READ_BACK)
        return self.total["ready"] > 0 and bad <= max_bad_fraction * self.total["records"] and enough


def summarise_tally(tally: Tally, ready: bool, checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the content of verify.json."""
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
        "text_calls": {
            "read": tally.total["text_calls"],
            "unread": tally.total["unread_calls"],
            "recall": tally.recall,
        },
        "notes": {name: {"what": words, "records": tally.notes[name]} for name, words in NOTES.items()},
        "caws": tally.caws.summarise(),
        "run": checks,
        "failures": tally.failures,
        "num_failures": tally.failed.total(),
    }


def format_tally(tally: Tally, checks: list[dict[str, Any]]) -> str:
    """Format the table that a person reads: files, checks, spans, and the first failures."""
    columns = ("records", "ready", "flagged", "refused", "sequences", "calls", "tokens", "truth_tokens")
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
    read, unread = tally.total["text_calls"], tally.total["unread_calls"]
    if read or unread:
        lines.append(
            f"{'FAIL' if unread else 'ok':<8}calls in text: {read:,} of {read + unread:,} read "
            f"(recall {tally.recall:.1%})"
        )
    lines += [f"note    {line}" for line in [*describe_notes(tally.notes), *tally.caws.describe()]]
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
    if not tally.total["records"]:
        lines.append("FAIL    the files hold no record: give others, in --data or data.stages")
    if tally.total["dropped_texts"]:
        lines.append(
            f"note    {tally.total['dropped_texts']:,} turns have text beside their calls that the chat template "
            "leaves out; it is not trained"
        )
    if tally.total["unseen_tools"]:
        lines.append(f"note    {tally.total['unseen_tools']:,} sequences: {UNSEEN}")
    if tally.failures:
        lines += [
            "",
            f"first of {tally.failed.total():,} records that fail:",
            *(f"  {f['what'][:300]}" for f in tally.failures[:NUM_LISTED]),
        ]
    return "\n".join(lines)
