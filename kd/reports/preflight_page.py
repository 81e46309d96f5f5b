"""Page of the readiness check: records as rendered, each token coloured by the most specific span it is in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from kd.preflight.read_back import READ_BACK
from kd.preflight.records import CHECKS, Verified
from kd.preflight.tally import Tally
from kd.rendering.encode import Annotated
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kd.reports.html import Html, el, page

# The most specific first: a token with several bits takes the first one's colour and names all in its title.
SHOWN = {TOOL: "tool", ARGS: "args", INTEGRATION: "integration", TRUTH: "truth"}
LEGEND = {
    "tool": ("TOOL", "the called function's name"),
    "args": ("ARGS", "the call's arguments"),
    "integration": ("INTEGRATION", "text that carries a value out of a tool's result"),
    "truth": ("TRUTH", "the rest of what the assistant writes"),
    "none": ("untrained", "prompts, results, role headers"),
}
STYLE = "\n" + Path(__file__).with_name("preflight_page.css").read_text(encoding="utf-8")


def build_verify_page(
    title: str, tally: Tally, shown: list[Verified], verdict: str, run_checks: list[dict[str, Any]]
) -> str:
    """Build one self-contained document: the verdict, the tables, a legend, and `shown` records, failures first."""
    order = sorted(shown, key=lambda verified: (verified.ready, not verified.refused))
    return page(
        title,
        Html(f"<style>{STYLE}</style>"),
        el("p", "Readiness", class_="eyebrow"),
        el("h1", title),
        el("p", verdict),
        el("h2", "Checks"),
        _checks(tally, run_checks),
        el("h2", "Files"),
        _files(tally),
        el("h2", "What is trained"),
        el(
            "p",
            "Each token has the colour of the most specific span it is in; point at one to see all of its spans.",
            class_="soft",
        ),
        _legend(),
        *(_record(verified) for verified in order),
        el("footer", f"{len(shown)} of {tally.total['records']} records shown; failures first."),
    )


def _checks(tally: Tally, run_checks: list[dict[str, Any]]) -> Html:
    rows = [
        el("tr", el("th", what), _verdict(not tally.failed[check]), el("td", f"{tally.failed[check]:,} records fail"))
        for check, what in CHECKS.items()
    ]
    rows += [
        el(
            "tr",
            el("th", check["name"]),
            _verdict(check["ok"]),
            el("td", check["detail"], style="text-align: left; white-space: normal"),
        )
        for check in run_checks
    ]
    return el("div", el("table", el("tbody", *rows)), class_="scroll")


def _verdict(ok: bool | None) -> Html:
    return el(
        "td",
        el(
            "span",
            "not run" if ok is None else "ok" if ok else "fails",
            class_="badge " + ("chip" if ok is None else "right" if ok else "wrong"),
        ),
    )


def _files(tally: Tally) -> Html:
    columns = [
        "records",
        "ready",
        "flagged",
        "refused",
        "sequences",
        "calls",
        "tokens",
        "truth_tokens",
        *(f"{kind}_spans" for kind in READ_BACK),
    ]
    head = el("thead", el("tr", el("th", "file"), *(el("th", column.replace("_", " ")) for column in columns)))
    rows = [
        el("tr", el("th", file), *(el("td", f"{counts[column]:,}") for column in columns))
        for file, counts in [*tally.files.items(), ("all", tally.total)]
    ]
    return el("div", el("table", head, el("tbody", *rows)), class_="scroll")


def _legend() -> Html:
    return el(
        "p",
        *(el("span", el("mark", f" {name} ", class_=kind), " ", what) for kind, (name, what) in LEGEND.items()),
        class_="legend",
    )


def _record(verified: Verified) -> Html:
    state = "refused" if verified.refused else "flagged" if verified.problems else "ready"
    calls = [el("span", call.name, class_="chip") for found in verified.sequences for call in found.calls]
    meta = el(
        "div",
        el("b", verified.id),
        el("span", f"{verified.file}:{verified.line}"),
        el("span", state, class_="badge " + ("right" if verified.ready else "wrong")),
        *calls,
        class_="meta",
    )
    why = [verified.refused] if verified.refused else verified.problems
    reasons = el("ul", *(el("li", reason) for reason in why), class_="why") if why else None
    return el(
        "article",
        meta,
        reasons,
        *(el("pre", *_segments(found), class_="spans") for found in verified.sequences),
        class_=state,
    )


def _segments(found: Annotated) -> Iterator[Html]:
    """Cut the text into runs of tokens with equal bits; characters that no token has go with the run before them."""
    text, bits, offsets = found.text, found.encoded.bits, found.offsets
    runs = [
        (key, [offsets[at][0] for at in group]) for key, group in groupby(range(len(bits)), key=lambda at: bits[at])
    ]
    starts = [0, *(places[0] for _, places in runs[1:]), len(text)]
    for (mask, _), start, end in zip(runs, starts, starts[1:]):
        kinds = [name for bit, name in SHOWN.items() if mask & bit]
        if kinds:
            yield el("mark", text[start:end], class_=kinds[0], title=", ".join(LEGEND[kind][0] for kind in kinds))
        else:
            yield el("span", text[start:end])
