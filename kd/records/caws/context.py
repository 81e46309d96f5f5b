"""Context of CAWS: what a spec allows, as a record carries it (`caws`) and as a prompt says it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from kd.config.fields import Section
from kd.records.caws.files import CawsError, read_policy, read_spec, read_waiver
from kd.records.caws.models import DEFAULT_POLICY, GATES, Count, Filled, FilledTexts, Spec, Texts
from kd.records.caws.older import read_older_spec, read_older_tier, read_older_waiver

MOST_SCOPE = 120  # characters of the paths of one scope in the compact form
MOST_ID = 24  # characters of an id in it
MOST_TOKENS = 30  # of the compact form without its scope
Form = Literal["full", "compact"]
_OLDER = "working-spec.yaml"
_BLOCKING: dict[str, Literal["block", "warn"]] = dict.fromkeys(GATES, "block")


def _check_time(text: str) -> str:
    if read_time(text) is None:
        raise ValueError("a day or a time is needed, as in 2026-11-29")
    return text


class Criterion(Section):
    """Acceptance criterion."""

    id: str
    given: str
    when: str
    then: str


class ContextWaiver(Section):
    """Waiver: it lifts the violations of its gates, or adds to the budget (older layout), until it expires."""

    id: str
    gates: Texts
    expires_at: str | None = None
    revoked: bool = False
    spec_id: str | None = None
    max_files: Count = 0
    max_loc: Count = 0


class Context(Section):
    """All that a verdict needs, and no file: `date` is the day on which waivers are looked at, in ISO form."""

    layout: Literal["specs", "working-spec"]
    date: Annotated[str, AfterValidator(_check_time)]
    id: Filled
    title: str
    risk_tier: Literal[1, 2, 3]
    mode: str
    max_files: Count
    max_loc: Count
    lifecycle_state: str = "active"
    modules: Texts = ()
    scope_in: FilledTexts = ()
    scope_out: FilledTexts = ()
    scope_support: FilledTexts = ()
    invariants: Texts = ()
    acceptance: tuple[Criterion, ...] = ()
    contracts: Texts = ()
    experiment_ends: str | None = None
    gates: dict[str, Literal["block", "warn"]] = Field(default_factory=dict)
    zones: Texts = ()
    root_passthrough: Texts = ()
    waivers: tuple[ContextWaiver, ...] = ()
    coverage: float | None = None
    mutation: float | None = None


def list_specs(place: str | Path) -> list[str]:
    """List the ids of a project's specs that are active, in order; of a working spec its own.

    Raises:
        CawsError: there is no CAWS at `place`, or a file is refused.
    """
    folder = _find_folder(place)
    specs = [read_spec(path) for path in _list_yaml(folder / "specs")]
    if specs:
        return [spec.id for spec in specs if spec.lifecycle_state == "active"]
    return [read_older_spec(folder / _OLDER).id]


def extract_caws_context(place: str | Path, spec_id: str | None = None, *, date: str) -> dict[str, Any]:
    """Extract the context of one spec as a JSON value, for a record's `caws`.

    Args:
        place: the project's folder, or its `.caws`.
        spec_id: of the spec; may be left out where one alone is active.
        date: ISO day or time at which waivers are looked at.

    Raises:
        CawsError: there is no such spec, or a file is refused; the message names file, line and field.
    """
    if read_time(date) is None:
        raise CawsError(f"date: {date!r}: a day or a time is needed, as in 2026-11-29")
    folder = _find_folder(place)
    files = _list_yaml(folder / "specs")
    context = _read_specs(folder, files, spec_id, date) if files else _read_older(folder, spec_id, date)
    return context.model_dump(exclude_defaults=True, mode="json")


def read_context(value: Any, where: str) -> Context:
    """Read a record's `caws`; `where` opens the message.

    Raises:
        CawsError: it is no context; names the field.
    """
    try:
        return Context.model_validate_json(json.dumps(value))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, ("caws", *fault["loc"])))
        raise CawsError(
            f"{where}: {field}: {fault['msg'][:1].lower()}{fault['msg'][1:]}: make it by "
            "kd.records.caws.context.extract_caws_context"
        ) from None


def format_caws_context_for_prompt(
    context: dict[str, Any] | Context, form: Form = "full", *, count: Callable[[str], int] | None = None
) -> str:
    """Write a context as a prompt says it.

    The compact form is one line of id, tier and budget, at most 30 tokens with an empty scope under the tokenizers of
    LOG.md, and then the scope: whole paths in their order as long as MOST_SCOPE characters last, and +N for the N that
    are left out. An id of more than MOST_ID characters keeps its beginning and its number. The full form has
    everything.

    Args:
        count: tokens of a text; gives an error where the line without its scope has more than 30.

    Raises:
        CawsError: it has more.
    """
    one = context if isinstance(context, Context) else read_context(context, "context")
    if form == "full":
        return _write_full(one)
    end = one.id[one.id.rfind("-") :][-6:]  # of an id without a dash the last character
    name = one.id if len(one.id) <= MOST_ID else f"{one.id[: MOST_ID - 8]}..{end}"
    line = f"{name} T{one.risk_tier} {one.max_files} files {one.max_loc} lines"
    if count is not None and (num := count(line)) > MOST_TOKENS:
        raise CawsError(
            f"spec {one.id}: its compact form has {num} tokens, over {MOST_TOKENS}: shorten its id, or use form: full"
        )
    scopes = [("in", one.scope_in + one.scope_support), ("out", one.scope_out)]
    return " ".join([line, *(f"{name} {_cut(paths)}" for name, paths in scopes if paths)])


def _cut(paths: Texts) -> str:
    kept: list[str] = []
    for path in paths:
        if len(" ".join([*kept, path])) > MOST_SCOPE:
            break
        kept.append(path)
    left = len(paths) - len(kept)
    return " ".join([*kept, *([f"+{left}"] if left else [])])


def _write_full(one: Context) -> str:
    lines = [
        f"CAWS spec {one.id}: {one.title}",
        f"Risk tier {one.risk_tier}, mode {one.mode}. Budget: {one.max_files} files, {one.max_loc} added lines.",
    ]
    for words, paths in (
        ("May change", one.scope_in),
        ("May change in support", one.scope_support),
        ("May not change", one.scope_out),
    ):
        lines += [f"{words}: {', '.join(paths)}"] if paths else []
    lines += ["Invariants:", *(f"- {text}" for text in one.invariants)] if one.invariants else []
    criteria = [f"- {one.id}: given {one.given}, when {one.when}, then {one.then}" for one in one.acceptance]
    lines += ["Acceptance:", *criteria] if criteria else []
    lines += [f"Contracts: {', '.join(one.contracts)}"] if one.contracts else []
    lines += [f"Gates: {', '.join(f'{name} ({mode})' for name, mode in one.gates.items())}"] if one.gates else []
    if one.coverage is not None and one.mutation is not None:
        lines.append(f"At least {one.coverage:g} % coverage and {one.mutation:g} % mutation score.")
    forced = [f"{waiver.id} ({', '.join(waiver.gates)})" for waiver in list_waivers_in_force(one)]
    lines += [f"Waivers in force: {', '.join(forced)}"] if forced else []
    return "\n".join(lines)


def list_waivers_in_force(context: Context, date: str | None = None) -> list[ContextWaiver]:
    """List the waivers of the spec that are neither revoked nor expired on `date`, by default the context's own."""
    now = read_time(date or context.date)
    found = []
    for waiver in context.waivers:
        ends = None if waiver.expires_at is None else read_time(waiver.expires_at)
        alive = waiver.expires_at is None or ends is not None and now is not None and ends > now
        if alive and not waiver.revoked and waiver.spec_id in (None, context.id):
            found.append(waiver)
    return found


def read_time(text: str) -> datetime | None:
    """Read a time of CAWS; a day alone is its first moment, a time without a zone is in UTC; None where it is none."""
    text = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), text.strip().replace("Z", "+00:00"))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _find_folder(place: str | Path) -> Path:
    place = Path(place)
    for folder in (place / ".caws", place):
        if (folder / "specs").is_dir() or (folder / _OLDER).is_file():
            return folder
    raise CawsError(f"{place}: no CAWS here: give a project with .caws/specs/ or .caws/{_OLDER}")


def _list_yaml(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.y*ml") if path.suffix in (".yaml", ".yml") and path.is_file())


def _read_specs(folder: Path, files: list[Path], spec_id: str | None, date: str) -> Context:
    specs = {spec.id: spec for spec in map(read_spec, files)}
    active = [spec.id for spec in specs.values() if spec.lifecycle_state == "active"]
    if spec_id is None and len(active) != 1:
        raise CawsError(f"{folder / 'specs'}: {len(active)} active specs: name one of {', '.join(specs)}")
    spec = specs.get(spec_id or active[0])
    if spec is None:
        raise CawsError(f"{folder / 'specs'}: no spec {spec_id!r}: it has {', '.join(specs)}")
    path = folder / "policy.yaml"
    policy = read_policy(path) if path.is_file() else DEFAULT_POLICY
    gates = {name: gate for name in GATES if (gate := getattr(policy.gates, name)).acts}
    budget = policy.budget(spec.risk_tier)
    waivers = [read_waiver(path) for path in _list_yaml(folder / "waivers")]
    return _make_context(
        spec,
        layout="specs",
        date=date,
        max_files=budget.max_files,
        max_loc=budget.max_loc,
        gates={name: gate.mode for name, gate in gates.items()},
        zones=policy.non_governed_zones,
        root_passthrough=policy.root_passthrough,
        waivers=tuple(
            ContextWaiver(
                id=one.id,
                gates=one.gates,
                expires_at=one.expires_at,
                revoked=one.status == "revoked",
                spec_id=one.scope.spec_id if one.scope else None,
            )
            for one in waivers
        ),
    )


def _make_context(spec: Spec, **given: Any) -> Context:
    experiment = spec.experimental_mode
    return Context(
        id=spec.id,
        title=spec.title,
        risk_tier=spec.risk_tier,
        mode=spec.mode,
        lifecycle_state=spec.lifecycle_state,
        modules=spec.blast_radius.modules,
        scope_in=spec.scope.in_,
        scope_out=spec.scope.out,
        scope_support=spec.scope.support,
        invariants=spec.invariants,
        acceptance=tuple(
            Criterion(id=one.id, given=one.given, when=one.when, then=one.then) for one in spec.acceptance
        ),
        contracts=tuple(f"{one.name} ({one.type})" for one in spec.contracts),
        experiment_ends=experiment.expires_at if experiment is not None and experiment.enabled else None,
        **given,
    )


def _read_older(folder: Path, spec_id: str | None, date: str) -> Context:
    spec = read_older_spec(folder / _OLDER)
    if spec_id not in (None, spec.id):
        raise CawsError(f"{folder / _OLDER}: no spec {spec_id!r}: it has {spec.id}")
    path = folder / "policy.yaml"
    tier = read_older_tier(path if path.is_file() else None, spec.risk_tier)
    files, lines = spec.budget or (tier.max_files, tier.max_loc)
    waivers = [read_older_waiver(path) for path in _list_yaml(folder / "waivers")]
    return Context(
        layout="working-spec",
        date=date,
        id=spec.id,
        title=spec.title,
        risk_tier=spec.risk_tier,  # type: ignore[arg-type]  # checked as it was read
        mode=spec.mode,
        max_files=files,
        max_loc=lines,
        scope_in=spec.scope_in,
        scope_out=spec.scope_out,
        invariants=spec.invariants,
        acceptance=tuple(Criterion(**one) for one in spec.acceptance),
        gates=_BLOCKING,
        waivers=tuple(
            ContextWaiver(
                id=one.id,
                gates=one.gates,
                expires_at=one.expires_at,
                revoked=one.revoked,
                max_files=one.max_files,
                max_loc=one.max_loc,
            )
            for one in waivers
        ),
        coverage=tier.coverage,
        mutation=tier.mutation,
    )
