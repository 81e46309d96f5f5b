"""The older layout of CAWS: one `.caws/working-spec.yaml`, with a budget of its own and waivers that add to it.

    id, title, risk_tier (T1 to T3, or 1 to 3), mode, change_budget {max_files, max_loc}, scope {in, out}, invariants,
    acceptance [{id, given, when, then}], contracts, ...

The policy has its tiers under `risk_tiers.<n>` or `policy.tiers.tier_<n>`, with least coverage and mutation score.
Fields that nothing here needs are left alone: this layout had no list of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from kd.records.caws.files import CawsError, find_line, read_file

_TIERS = {"T1": 1, "T2": 2, "T3": 3, "1": 1, "2": 2, "3": 3, 1: 1, 2: 2, 3: 3}
_DEFAULTS = {1: (15, 600), 2: (25, 1000), 3: (30, 1500)}
_THRESHOLDS = {1: (90, 70), 2: (80, 50), 3: (70, 30)}


class OlderSpec(NamedTuple):
    """Working spec, with what a context needs; lists are tuples."""

    id: str
    title: str
    risk_tier: int
    mode: str
    budget: tuple[int, int] | None
    scope_in: tuple[str, ...]
    scope_out: tuple[str, ...]
    invariants: tuple[str, ...]
    acceptance: tuple[dict[str, str], ...]


class OlderTier(NamedTuple):
    """Budget of a tier, and the least coverage and mutation score in percent."""

    max_files: int
    max_loc: int
    coverage: float
    mutation: float


class OlderWaiver(NamedTuple):
    """Waiver: what it adds to the budget, until when."""

    id: str
    gates: tuple[str, ...]
    expires_at: str | None
    revoked: bool
    max_files: int
    max_loc: int


class _Reader:
    """Fields of one file, each refused with its line."""

    def __init__(self, path: Path):
        self.path = path
        self.data, self._lines = read_file(path)

    def fail(self, field: str, problem: str) -> CawsError:
        return CawsError(f"{self.path}:{find_line(self._lines, tuple(field.split('.')))}: {field}: {problem}")

    def get(self, field: str, default: Any = None) -> Any:
        value: Any = self.data
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def text(self, field: str) -> str:
        value = self.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(field, "text is needed: add it")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        value = self.get(field, ())
        if not isinstance(value, tuple) or not all(isinstance(one, str) and one for one in value):
            raise self.fail(field, "a list of texts is needed")
        return value

    def count(self, field: str, default: int) -> int:
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fail(field, "a whole number, 0 or more, is needed")
        return value


def read_older_spec(path: Path) -> OlderSpec:
    """Read a working spec. Raises CawsError."""
    file = _Reader(path)
    tier = file.get("risk_tier")
    if isinstance(tier, bool) or not isinstance(tier, (str, int)) or tier not in _TIERS:
        raise file.fail("risk_tier", "T1, T2 or T3 is needed")
    budget = None
    if file.get("change_budget") is not None:
        files, lines = (file.get(f"change_budget.{key}") for key in ("max_files", "max_loc"))
        if files is None or lines is None:
            raise file.fail("change_budget", "max_files and max_loc are needed")
        budget = (file.count("change_budget.max_files", 0), file.count("change_budget.max_loc", 0))
    criteria = file.get("acceptance", ())
    keys = ("id", "given", "when", "then")
    if not isinstance(criteria, tuple) or not all(
        isinstance(one, dict) and all(isinstance(one.get(key), str) for key in keys) for one in criteria
    ):
        raise file.fail("acceptance", "a list of {id, given, when, then} is needed")
    return OlderSpec(
        file.text("id"),
        file.text("title"),
        _TIERS[tier],
        str(file.get("mode", "feature")),
        budget,
        file.texts("scope.in"),
        file.texts("scope.out"),
        file.texts("invariants"),
        tuple({key: one[key] for key in keys} for one in criteria),
    )


def read_older_tier(path: Path | None, tier: int) -> OlderTier:
    """Read a tier of the policy; defaults where there is no policy, or it says nothing. Raises CawsError."""
    files, lines = _DEFAULTS[tier]
    coverage, mutation = _THRESHOLDS[tier]
    if path is None:
        return OlderTier(files, lines, coverage, mutation)
    file = _Reader(path)
    place = f"policy.tiers.tier_{tier}" if file.get("policy.tiers") is not None else f"risk_tiers.{tier}"
    return OlderTier(
        file.count(f"{place}.max_files", files),
        file.count(f"{place}.max_loc", lines),
        _read_percent(file, f"{place}.coverage_threshold", f"{place}.coverage", coverage),
        _read_percent(file, f"{place}.mutation_threshold", f"{place}.mutation", mutation),
    )


def _read_percent(file: _Reader, field: str, other: str, default: float) -> float:
    value = file.get(field, file.get(other, default))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise file.fail(field, "a number from 0 to 100 is needed")
    return value * 100 if 0 < value <= 1 else value


def read_older_waiver(path: Path) -> OlderWaiver:
    """Read a waiver; what it adds stands under `delta`. Raises CawsError."""
    file = _Reader(path)
    expires = file.get("expires_at")
    if expires is not None and not isinstance(expires, str):
        raise file.fail("expires_at", "a time is needed, as in 2027-01-31T00:00:00Z")
    return OlderWaiver(
        str(file.get("waiver_id", file.get("id", path.stem))),
        file.texts("gates"),
        expires,
        file.get("status", "active") != "active",
        file.count("delta.max_files", 0),
        file.count("delta.max_loc", 0),
    )
