"""Figures of CAWS over a set of records: tokens of their contexts, verdicts on their changes, mean scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from kd.records.caws.change import read_change
from kd.records.caws.context import CawsError, format_caws_context_for_prompt, read_context
from kd.records.caws.verdict import judge_change
from kd.records.record import Record
from kd.rewards.caws_compliance import score_verdict
from kd.rewards.caws_structure import caws_structure
from kd.toolcalls.parsed import ParsedCalls

_FORMS = ("compact", "full")


class CawsFigures:
    """Figures of the records with a context in `caws`.

    Args:
        count: tokens of a text under the run's tokenizer; None counts none.

    Attributes:
        counts: records, those whose prompt has the context, those whose `caws` is none, and verdicts.
    """

    def __init__(self, count: Callable[[str], int] | None = None):
        self._count = count
        self._most: dict[str, int] = {}  # tokens, by name of what is measured
        self._scores = dict.fromkeys(("caws_compliance", "caws_structure"), 0.0)
        self.counts: Counter[str] = Counter()
        self._fault = ""  # of the first record whose `caws` is no context

    def add(self, record: Record) -> None:
        """Count one record; one without `caws` is passed over."""
        if record.caws is None:
            return
        try:
            context = read_context(record.caws, f"record {record.id}")
        except CawsError as error:
            self.counts["other"] += 1
            self._fault = self._fault or str(error)
            return
        self.counts["records"] += 1
        forms = {form: format_caws_context_for_prompt(context, form) for form in _FORMS}
        prompt = "\n".join(one["content"] for one in record.messages if one["role"] in ("system", "user"))
        self.counts["in_prompt"] += any(text in prompt for text in forms.values())
        if self._count is not None:
            empty = context.model_copy(update={"scope_in": (), "scope_out": (), "scope_support": ()})
            forms["compact without its scope"] = format_caws_context_for_prompt(empty, "compact")
            for name, text in forms.items():
                self._most[name] = max(self._most.get(name, 0), self._count(text))
        said = "\n".join(one["content"] for one in record.messages if one["role"] == "assistant")
        calls = [call["function"] for one in record.messages for call in one.get("tool_calls", ())]
        verdict = judge_change(context, read_change(said, calls))
        self.counts[verdict.verdict] += 1
        self._scores["caws_compliance"] += score_verdict(verdict).value
        self._scores["caws_structure"] += caws_structure(record, 0, said, ParsedCalls(calls, [], [], said, calls)).value

    def summarise(self) -> dict[str, Any]:
        """Make the part of verify.json; empty where no record has `caws`."""
        if not self.counts:
            return {}
        num = max(self.counts["records"], 1)
        scores = {name: total / num for name, total in self._scores.items()}
        return {
            **{name: self.counts[name] for name in ("records", "other", "in_prompt", "pass", "waived", "blocked")},
            "tokens": dict(self._most),
            "scores": scores,
        }

    def describe(self) -> list[str]:
        """Say the figures, a line each."""
        found = self.summarise()
        if not found:
            return []
        lines = [f"CAWS: {found['records']:,} records have a context, {found['in_prompt']:,} of them in their prompt"]
        other = f"CAWS: {found['other']:,} records have something else in `caws`; the first is {self._fault}"
        lines += [other] if found["other"] else []
        lines.append("CAWS: changes " + ", ".join(f"{found[one]:,} {one}" for one in ("pass", "waived", "blocked")))
        if found["tokens"]:
            tokens = [f"{name} {most}" for name, most in found["tokens"].items()]
            lines.append(f"CAWS: most tokens of a context, {', '.join(tokens)}")
        return [*lines, f"CAWS: mean {', '.join(f'{name} {mean:.3f}' for name, mean in found['scores'].items())}"]
