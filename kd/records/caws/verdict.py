"""Verdict of CAWS on a change: budget, scope, completeness, and the waivers in force on a day.

The gates are those of the tool's `gates run`: god_object and todo_detection, which read the sources, are not judged.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from kd.records.caws.change import Change
from kd.records.caws.context import Context, list_waivers_in_force, read_time
from kd.records.caws.models import GATES

_GLOB = re.compile(r"[*?[\](){}!@+|]")
_EXEMPT = (".caws", ".claude")


class GateVerdict(NamedTuple):
    """One gate: its violations in words, and the waivers in force that lift them."""

    gate: str
    mode: Literal["block", "warn"]
    violations: tuple[str, ...]
    waived_by: tuple[str, ...]
    share: float  # in [0, 1], of the gate that is kept

    @property
    def fails(self) -> bool:
        return bool(self.violations) and not self.waived_by


class Verdict(NamedTuple):
    """`blocked` where a blocking gate fails, `waived` where waivers alone keep one from it, else `pass`."""

    verdict: Literal["pass", "waived", "blocked"]
    gates: tuple[GateVerdict, ...]


def judge_change(context: Context, change: Change, date: str | None = None) -> Verdict:
    """Judge a change.

    date: ISO day or time at which waivers and experiments expire; by default the context's own.
    """
    forced = list_waivers_in_force(context, date)
    adds = [waiver for waiver in forced if context.layout == "working-spec" and "budget_limit" in waiver.gates]
    max_files = context.max_files + sum(waiver.max_files for waiver in adds)
    max_loc = context.max_loc + sum(waiver.max_loc for waiver in adds)
    judged = {
        "budget_limit": _judge_budget(change, max_files, max_loc),
        "spec_completeness": _judge_completeness(context, date or context.date),
        "scope_boundary": _judge_scope(context, change),
    }
    gates = []
    for name in GATES:
        if (mode := context.gates.get(name)) is not None:
            violations, share = judged[name]
            lifting = [
                waiver.id
                for waiver in forced
                if name in waiver.gates and not (context.layout == "working-spec" and name == "budget_limit")
            ]
            gates.append(GateVerdict(name, mode, violations, tuple(lifting) if violations else (), share))
    blocking = [gate for gate in gates if gate.mode == "block"]
    if any(gate.fails for gate in blocking):
        return Verdict("blocked", tuple(gates))
    lifted = any(gate.waived_by for gate in blocking) or _needs(change, context) and bool(adds)
    return Verdict("waived" if lifted else "pass", tuple(gates))


def _needs(change: Change, context: Context) -> bool:
    """Tell whether a change is over the budget without what waivers add to it."""
    return len(change) > context.max_files or sum(change.values()) > context.max_loc


def _judge_budget(change: Change, max_files: int, max_loc: int) -> tuple[tuple[str, ...], float]:
    counts = [(len(change), max_files, "files"), (sum(change.values()), max_loc, "inserted lines")]
    violations = tuple(f"{count} {what}, over the {most} allowed" for count, most, what in counts if count > most)
    return violations, min(min(1.0, most / count) if count else 1.0 for count, most, _ in counts)


def _judge_completeness(context: Context, date: str) -> tuple[tuple[str, ...], float]:
    now, ends = read_time(date), read_time(context.experiment_ends or "")
    violations = []
    if context.lifecycle_state != "active":
        violations.append(f"spec {context.id} is {context.lifecycle_state}, not active")
    if context.layout == "specs" and not context.modules:
        violations.append(f"spec {context.id} names no module of its blast radius")
    if now is not None and ends is not None and ends < now:
        violations.append(f"the experiment of spec {context.id} ended on {context.experiment_ends}")
    return tuple(violations), 1 - len(violations) / 3


def _judge_scope(context: Context, change: Change) -> tuple[tuple[str, ...], float]:
    violations = tuple(problem for path in change if (problem := _find_scope_problem(context, path)))
    return violations, 1 - len(violations) / len(change) if change else 1.0


def _find_scope_problem(context: Context, path: str) -> str:
    """Say why a path may not change, or ""."""
    clean = normalise(path)
    if clean is None:
        return f"{path!r} is no path inside the project"
    if _is_under(clean, _EXEMPT) or _matches(clean, context.zones):
        return ""
    if _is_under(clean, context.scope_out):
        return f"{clean} is in the scope's out"
    if "/" not in clean and clean in context.root_passthrough:
        return ""
    if _matches(clean, context.scope_in + context.scope_support):
        return ""
    unbounded = context.layout == "working-spec" and not context.scope_in
    return "" if unbounded else f"{clean} is in no entry of the scope"


def normalise(path: str) -> str | None:
    """Write a path as the tool compares it; None where it is none, or leads out of the project."""
    if not path or "\0" in path or "\\" in path or path.startswith("/"):
        return None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts) if parts and ".." not in parts else None


def _is_under(path: str, folders: tuple[str, ...]) -> bool:
    plain = [folder.rstrip("/") for folder in folders if folder.rstrip("/")]
    return any(path == folder or path.startswith(folder + "/") for folder in plain)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(
        _translate(pattern).fullmatch(path) is not None if _GLOB.search(pattern) else _is_under(path, (pattern,))
        for pattern in patterns
    )


def _translate(pattern: str) -> re.Pattern[str]:
    """Translate a glob: * and ? stay within a folder, ** does not, [abc] and {a,b} choose."""
    made, at, depth = "", 0, 0
    while at < len(pattern):
        rest, char = pattern[at:], pattern[at]
        if rest.startswith("**/"):
            made, at = made + "(?:.*/)?", at + 3
            continue
        if rest.startswith("**"):
            made, at = made + ".*", at + 2
            continue
        choice = re.match(r"\[!?[^\]/]+\]", rest)
        if choice:
            inner = choice[0][1:-1]
            inner = inner.replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
            made, at = made + f"[{'^' + inner[1:] if inner.startswith('!') else inner}]", at + len(choice[0])
            continue
        if char == "{" and "}" in rest:
            made, depth = made + "(?:", depth + 1
        elif char == "}" and depth:
            made, depth = made + ")", depth - 1
        elif char == "," and depth:
            made += "|"
        else:
            made += {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char))
        at += 1
    try:
        return re.compile(made + ")" * depth, re.DOTALL)
    except re.error:
        return re.compile(re.escape(pattern))
