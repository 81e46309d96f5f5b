"""Categories of BFCL, and the means that its overall score is made of (its version 4).

    overall      non-live 10, live 10, irrelevance 10, multi-turn 30, agentic 40
    non-live     mean of simple (mean of its three languages), multiple, parallel and parallel multiple
    live         mean over all entries of its four categories
    irrelevance  mean of the two categories
    multi-turn   mean of the four categories
    agentic      mean of web search (mean of two) and memory (mean of three)

Relevance counts in no group. Here a mean is of what was run; BFCL counts a category that was not as 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kd.errors import SpanwiseError


class BfclError(SpanwiseError, ValueError):
    """BFCL cannot be run as asked."""


class Group(NamedTuple):
    """Mean of categories and groups: by `weights`, by the number of entries where `pooled`, else plain."""

    parts: tuple[str | Group, ...]
    weights: tuple[float, ...] = ()
    pooled: bool = False


GROUPS = {
    "non_live": Group(
        (Group(("simple_python", "simple_java", "simple_javascript")), "multiple", "parallel", "parallel_multiple")
    ),
    "live": Group(("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"), pooled=True),
    "irrelevance": Group(("irrelevance", "live_irrelevance")),
    "multi_turn": Group(
        ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
    ),
    "agentic": Group(
        (Group(("web_search_base", "web_search_no_snippet")), Group(("memory_kv", "memory_vector", "memory_rec_sum")))
    ),
}
OVERALL = Group(tuple(GROUPS.values()), weights=(10, 10, 10, 30, 40))


def list_parts(part: str | Group) -> list[str]:
    """List the categories of a group."""
    return [part] if isinstance(part, str) else [name for inner in part.parts for name in list_parts(inner)]


SCORED = (*list_parts(OVERALL), "live_relevance")
AGENTIC = tuple(list_parts(GROUPS["agentic"]))
OFFERED = tuple(name for name in SCORED if name not in AGENTIC)
COLLECTIONS = {
    "all": OFFERED,
    "single_turn": tuple(name for name in OFFERED if not name.startswith("multi_turn")),
    "non_live": tuple(n for n in OFFERED if not n.startswith(("live", "multi_turn"))),
    "live": tuple(n for n in OFFERED if n.startswith("live")),
    "multi_turn": tuple(list_parts(GROUPS["multi_turn"])),
}
"""Names that stand for several categories, as BFCL's command has them; `all` is what is offered here."""


def choose_categories(names: Sequence[str]) -> list[str]:
    """Choose the categories that are named, by themselves or in a collection, each once, in BFCL's order.

    Raises:
        BfclError: an unknown name, or a category that is not offered.
    """
    chosen = set()
    for name in names:
        if name in AGENTIC or name in ("agentic", "memory", "web_search", "format_sensitivity"):
            raise BfclError(
                f"--bfcl: {name} is not offered here: it needs the web, or memory over several conversations, or "
                "scores prompts; run it with bfcl-eval's own command against an endpoint"
            )
        if name not in COLLECTIONS and name not in OFFERED:
            close = difflib.get_close_matches(name, [*OFFERED, *COLLECTIONS], n=1, cutoff=0)
            raise BfclError(
                f"--bfcl: no category {name!r}; the nearest is {close[0]}. Categories: {', '.join(OFFERED)}; "
                f"collections: {', '.join(COLLECTIONS)}"
            )
        chosen.update(COLLECTIONS.get(name, (name,)))
    return [name for name in OFFERED if name in chosen]


def share_weight(part: str | Group, counts: Mapping[str, int]) -> dict[str, float]:
    """Share a weight of 1 out over the categories of a group that have entries, as its means do; empty where none has.

    counts: entries by category.
    """
    if isinstance(part, str):
        return {part: 1.0} if counts.get(part) else {}
    found = [(share_weight(inner, counts), number) for number, inner in enumerate(part.parts)]
    weighted = [
        (inner, part.weights[number] if part.weights else sum(counts[name] for name in inner) if part.pooled else 1.0)
        for inner, number in found
        if inner
    ]
    total = sum(weight for _, weight in weighted)
    return {name: own * weight / total for inner, weight in weighted for name, own in inner.items()}
