"""Files of CAWS, as its command-line tool (12.0) writes them: a spec, the policy, a waiver.

The rules are the tool's, the words ours. An older layout, one `working-spec.yaml` for the whole project, is read by
kd/records/caws/older.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from kd.config import yaml as strict_yaml
from kd.config.fields import Section
from kd.records.caws.models import Policy, Spec, Waiver
from kd.records.checks import DataError

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_MOST_BYTES = 1 << 20
_BROAD = {"**", "*", "**/*", ".", "./", "./**", "/**"}
Model = TypeVar("Model", bound=Section)


class CawsError(DataError):
    """CAWS file that the tool would refuse, or that is not there; the message names file, line and field."""


_REMEDIES = {
    "spec.change_budget": "budgets come from the policy's risk_tiers: remove it",
    "spec.acceptance_criteria": "the key is acceptance: rename it",
    "spec.mode": "write feature, refactor, fix, doc or chore",
    "spec.risk_tier": "write the number 1, 2 or 3, without quotes or a letter",
    "spec.id": "write capitals and a number, as in PAY-001",
    "spec.scope.include": "the key is scope.in",
    "spec.scope.exclude": "the key is scope.out",
    "spec.scope.out": "write folders and files without * and ?",
    "spec.acceptance.id": "write A and a number, as in A1",
}


def read_file(path: Path) -> tuple[dict[str, Any], dict[tuple, int]]:
    """Read a YAML file that is one mapping: the mapping, and the line of each key.

    Raises:
        CawsError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        parsed = strict_yaml.parse(raw.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise CawsError(f"{path}: cannot be read as text in UTF-8 ({error}): give a file that can") from None
    except strict_yaml.YamlError as error:
        raise CawsError(f"{path}:{error.line}: not valid YAML: {error}") from None
    if len(raw) > _MOST_BYTES:
        raise CawsError(f"{path}: more than {_MOST_BYTES >> 20} MiB: it is no file of CAWS")
    if parsed.problems:
        first = parsed.problems[0]
        raise CawsError(f"{path}:{first.line}: {'.'.join(map(str, first.path))}: {first.message}")
    if not isinstance(parsed.data, dict):
        raise CawsError(f"{path}: a mapping (key: value lines) is needed: it is no file of CAWS")
    return parsed.data, parsed.lines


def read_spec(path: Path) -> Spec:
    """Read a spec. Raises CawsError."""
    return _read(path, "spec", Spec, _find_spec_faults)


def read_policy(path: Path) -> Policy:
    """Read the policy. Raises CawsError."""
    return _read(path, "policy", Policy, _find_policy_faults)


def read_waiver(path: Path) -> Waiver:
    """Read a waiver. Raises CawsError."""
    return _read(path, "waiver", Waiver, _find_waiver_faults)


def _read(path: Path, kind: str, model: type[Model], find: Callable[[Any], Iterator[tuple[str, str]]]) -> Model:
    data, lines = read_file(path)
    value: Model | None = None
    faults: list[tuple[tuple, str]] = []
    try:
        value = model.model_validate(data)
        faults = [(tuple(field.split(".")), problem) for field, problem in find(value)]
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        # A list whose every item is faulty is not short: pydantic counts only the good ones.
        inside = {fault["loc"][:size] for fault in found for size in range(len(fault["loc"]))}
        faults = [
            (fault["loc"], _explain(kind, fault["loc"], fault["type"], fault["msg"]))
            for fault in found
            if fault["type"] != "too_short" or fault["loc"] not in inside
        ]
    if value is None or faults:
        told = "\n  ".join(f"{path}:{find_line(lines, place)}: {_dot(place)}: {problem}" for place, problem in faults)
        raise CawsError(told if len(faults) == 1 else f"{path}: {len(faults)} problems\n  {told}")
    return value


def _explain(kind: str, place: tuple, fault: str, message: str) -> str:
    words = {
        "missing": "required: add it",
        "extra_forbidden": "no such field: remove it",
        "too_short": "must not be empty: add an entry",
    }
    remedy = _REMEDIES.get(".".join([kind, *(str(part) for part in place if isinstance(part, str))]))
    said = words.get(fault, message[:1].lower() + message[1:])
    return said if remedy is None or fault == "missing" else f"{said.partition(':')[0]}: {remedy}"


def find_line(lines: dict[tuple, int], place: tuple) -> int:
    """Find the line of a key, or of the nearest one that it stands in; 1 of none."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _dot(place: tuple) -> str:
    return ".".join(map(str, place)) or "the top"


def _find_spec_faults(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yield (field, problem): what the tool's schema cannot say."""
    if spec.risk_tier < 3 and spec.mode != "chore" and not spec.contracts:
        yield "contracts", f"tier {spec.risk_tier} needs one: add a contract, or write risk_tier: 3 or mode: chore"
    if spec.risk_tier == 1:
        for field, texts in (("observability", spec.observability), ("rollback", spec.rollback)):
            if not texts:
                yield field, "tier 1 needs one entry: add it"
        if not spec.non_functional.security:
            yield "non_functional.security", "tier 1 needs one entry: add it"
    if spec.experimental_mode is not None and spec.risk_tier != 3:
        yield "experimental_mode", "it is of tier 3 alone: remove it"
    ended = spec.lifecycle_state in ("closed", "archived")
    if ended != (spec.resolution is not None):
        yield "resolution", "a closed or archived spec has one, and no other: " + ("add it" if ended else "remove it")
    if spec.supersedes == spec.id:
        yield "supersedes", "it names the spec itself: remove it"
    yield from _find_successor_faults(spec)
    for out in spec.scope.out:
        for surface, entries in (("in", spec.scope.in_), ("support", spec.scope.support)):
            for entry in entries:
                if _plain(entry).startswith(_plain(out) + "/"):
                    yield "scope.out", f"{out!r} shadows {entry!r} of scope.{surface}: narrow or remove it"
    known = {criterion.id for criterion in spec.acceptance}
    for at, evidence in enumerate(spec.evidence):
        if evidence.criterion_id not in known:
            yield f"evidence.{at}.criterion_id", f"no criterion {evidence.criterion_id}: name one of acceptance"
        if evidence.status == "waived" and not (evidence.waiver_reason or "").strip():
            yield f"evidence.{at}.waiver_reason", "a waived criterion has one: add it"


def _find_successor_faults(spec: Spec) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for at, one in enumerate(spec.successors):
        place = f"successors.{at}"
        if one.disposition == "declined" and not (one.rationale or "").strip():
            yield f"{place}.rationale", "a declined one has a rationale: add it"
        if one.disposition == "absorbed" and one.absorbed_by is None:
            yield f"{place}.absorbed_by", "an absorbed one names the spec that did: add it"
        if spec.id in (one.target_spec_id, one.absorbed_by) or one.absorbed_by == one.target_spec_id:
            yield place, "it names the same spec twice, or the spec itself: name another"
        if one.target_spec_id in seen:
            yield place, f"{one.target_spec_id} is there twice: keep one"
        seen.add(one.target_spec_id)


def _plain(entry: str) -> str:
    return entry[:-1] if len(entry) > 1 and entry.endswith("/") else entry


def _find_policy_faults(policy: Policy) -> Iterator[tuple[str, str]]:
    one, two, three = (policy.budget(tier) for tier in (1, 2, 3))
    for field in ("max_files", "max_loc"):
        if not getattr(one, field) <= getattr(two, field) <= getattr(three, field):
            yield "risk_tiers", f"{field} falls from one tier to the next: order them from strict to free"
    if not policy.non_governed_zones_force:
        for zone in sorted(_BROAD & set(policy.non_governed_zones)):
            yield "non_governed_zones", f"{zone!r} frees everything: narrow it"


def _find_waiver_faults(waiver: Waiver) -> Iterator[tuple[str, str]]:
    times = {"created_at": waiver.created_at, "expires_at": waiver.expires_at}
    if waiver.revocation is not None:
        times["revocation.revoked_at"] = waiver.revocation.revoked_at
    for field, text in times.items():
        if not _TIME.fullmatch(text):
            yield field, "a time with its zone is needed, as in 2027-01-31T00:00:00Z"
    if (waiver.status == "revoked") != (waiver.revocation is not None):
        yield "revocation", "a revoked waiver has one, and no other: add or remove it"
