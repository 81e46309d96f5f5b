"""Models of CAWS' files: the fields that the tool (12.0) takes, and no other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from kd.config.fields import Section

GATES = ("budget_limit", "spec_completeness", "scope_boundary")
"""Gates that a change alone decides; god_object and todo_detection need the sources."""

SpecId = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]*(-[A-Z0-9]+)*-[0-9]+[a-z]*$")]
Filled = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Texts = tuple[str, ...]
FilledTexts = tuple[Filled, ...]


class Blocker(Section):
    reason: Filled
    waiting_on: str | None = None
    since: str | None = None


class Successor(Section):
    target_spec_id: SpecId
    disposition: Literal["required", "declined", "absorbed"]
    rationale: Filled | None = None
    absorbed_by: SpecId | None = None


class BlastRadius(Section):
    modules: Annotated[FilledTexts, Field(min_length=1)]
    data_migration: bool | None = None


class Scope(Section):
    """Paths that may change: `in_` may hold globs, `out` not; `support` may change too, and is nobody's own."""

    in_: Annotated[FilledTexts, Field(alias="in", min_length=1)]
    out: tuple[Annotated[str, StringConstraints(pattern=r"^[^*?]+$")], ...] = ()
    support: FilledTexts = ()


class Criterion(Section):
    id: Annotated[str, StringConstraints(pattern=r"^A\d+$")]
    given: Filled
    when: Filled
    then: Filled
    test_command: str | None = None
    test_nodeids: Texts | None = None
    evidence: str | None = None
    narrative: str | None = None


class NonFunctional(Section):
    performance: Texts | None = None
    security: Texts | None = None
    accessibility: Texts | None = None
    reliability: Texts | None = None


class Contract(Section):
    name: Filled
    type: Literal["api", "schema", "contract-test", "behavior"]
    path: str | None = None
    description: str | None = None


class Experiment(Section):
    enabled: bool
    rationale: Filled
    expires_at: str


class Evidence(Section):
    criterion_id: Annotated[str, StringConstraints(pattern=r"^A\d+$")]
    status: Literal["pass", "fail", "unchecked", "waived"]
    recorded_at: str
    evidence_ref: Filled | None = None
    waiver_reason: Filled | None = None
    test_nodeid: str | None = None
    command: str | None = None
    exit_code: int | None = None
    artifact_path: str | None = None
    commit_sha: Annotated[str, StringConstraints(pattern="^[0-9a-f]{7,40}$")] | None = None


class Spec(Section):
    """One spec, `.caws/specs/<id>.yaml`."""

    id: SpecId
    title: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    risk_tier: Literal[1, 2, 3]
    mode: Literal["feature", "refactor", "fix", "doc", "chore"]
    lifecycle_state: Literal["draft", "active", "closed", "archived"]
    blast_radius: BlastRadius
    scope: Scope
    invariants: Annotated[FilledTexts, Field(min_length=1)]
    acceptance: Annotated[tuple[Criterion, ...], Field(min_length=1)]
    non_functional: NonFunctional
    contracts: tuple[Contract, ...]
    resolution: Literal["completed", "superseded", "abandoned"] | None = None
    blockers: tuple[Blocker, ...] | None = None
    supersedes: SpecId | None = None
    superseded_by: SpecId | None = None
    successors: tuple[Successor, ...] = ()
    worktree: Annotated[str, StringConstraints(pattern="^[a-zA-Z0-9_-]+$")] | None = None
    operational_rollback_slo: str | None = None
    observability: Texts = ()
    rollback: Texts = ()
    experimental_mode: Experiment | None = None
    created_at: str | None = None
    updated_at: str | None = None
    owner: str | None = None
    closure_notes: str | None = None
    evidence: tuple[Evidence, ...] = ()


class TierBudget(Section):
    max_files: Count
    max_loc: Count
    description: str | None = None


class Gate(Section):
    enabled: bool
    mode: Literal["block", "warn", "skip"]
    description: str | None = None
    thresholds: dict[str, Any] | None = None

    @property
    def acts(self) -> bool:
        return self.enabled and self.mode != "skip"


class Gates(Section):
    budget_limit: Gate
    spec_completeness: Gate
    scope_boundary: Gate
    god_object: Gate | None = None
    todo_detection: Gate | None = None


class WaiverRules(Section):
    min_approvers_for_budget_raise: Annotated[int, Field(ge=1)] | None = None
    max_active_waivers_per_gate: Count | None = None
    default_expiry_days: Annotated[int, Field(ge=1)] | None = None


class EditRules(Section):
    policy_and_code_same_pr: bool | None = None
    require_signed_commits: bool | None = None
    require_dual_control_for_governance: bool | None = None


class Agents(Section):
    last_modified_paths_ttl_seconds: Annotated[int, Field(ge=60, le=86400)] | None = None


class Tiers(Section):
    one: Annotated[TierBudget, Field(alias="1")]
    two: Annotated[TierBudget, Field(alias="2")]
    three: Annotated[TierBudget, Field(alias="3")]


class Policy(Section):
    """The policy, `.caws/policy.yaml`."""

    version: Literal[1]
    risk_tiers: Tiers
    gates: Gates
    waivers: WaiverRules | None = None
    non_governed_zones: FilledTexts = ()
    non_governed_zones_force: bool = False
    root_passthrough: tuple[Annotated[str, StringConstraints(pattern="^[^/]+$")], ...] = ()
    edit_rules: EditRules | None = None
    agents: Agents | None = None

    def budget(self, tier: int) -> TierBudget:
        """Return the budget of a tier, 1 to 3."""
        return (self.risk_tiers.one, self.risk_tiers.two, self.risk_tiers.three)[tier - 1]


DEFAULT_POLICY = Policy.model_validate(
    {
        "version": 1,
        "risk_tiers": {
            "1": {"max_files": 5, "max_loc": 200},
            "2": {"max_files": 15, "max_loc": 600},
            "3": {"max_files": 30, "max_loc": 1500},
        },
        "gates": {name: {"enabled": True, "mode": "block"} for name in GATES},
    }
)
"""Policy of a project without one."""


class _Open(Section):
    """Section whose further fields are left alone, as the tool leaves those of waivers."""

    model_config = ConfigDict(extra="ignore")


class WaiverScope(_Open):
    spec_id: str | None = None


class Uses(_Open):
    max_uses: Count | None = None


class Revocation(_Open):
    revoked_at: str
    revoked_by: str | None = None
    reason: str | None = None


class Waiver(_Open):
    """A waiver, `.caws/waivers/<id>.yaml`."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]*(-[A-Z0-9]+)*-\d+[a-z]?$")]
    title: Annotated[str, StringConstraints(pattern=r"^\s*\S.{3,}\S\s*$")]
    status: Literal["active", "revoked"]
    gates: Annotated[FilledTexts, Field(min_length=1)]
    reason: Annotated[str, StringConstraints(pattern=r"^\s*\S(?s:.+)\S\s*$")]
    approved_by: Annotated[str, StringConstraints(pattern=r"\S")]
    created_at: str
    expires_at: str
    scope: WaiverScope | None = None
    constraints: Uses | None = None
    revocation: Revocation | None = None
