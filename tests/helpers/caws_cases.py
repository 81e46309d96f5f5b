"""Files of CAWS as its tool (12.0) writes them for a made-up project, and files that it refuses."""

from __future__ import annotations

from pathlib import Path

REFUNDS = """\
id: PAY-001
title: 'Retry failed refunds'
risk_tier: 3
mode: feature
lifecycle_state: active
created_at: '2026-11-29T07:09:41.925Z'
updated_at: '2026-11-29T07:09:41.925Z'
blast_radius:
  modules:
    - 'src/refunds'
  data_migration: false
operational_rollback_slo: 5m
scope:
  in:
    - 'src/refunds'
  out: []
invariants:
  - 'A refund is never paid twice'
acceptance:
  - id: A1
    given: 'a refund failed with a timeout'
    when: 'the job runs'
    then: 'it is tried again at most 3 times'
non_functional: {}
contracts: []
"""
SESSIONS = """\
id: AUTH-002
title: 'Rotate session keys'
risk_tier: 1
mode: refactor
lifecycle_state: active
blast_radius:
  modules:
    - 'src/auth'
scope:
  in:
    - 'src/auth'
    - 'tests/auth'
  out: []
invariants:
  - 'Old sessions stay valid for one hour'
acceptance:
  - id: A1
    given: 'a key is 24 hours old'
    when: 'a session is signed'
    then: 'a new key signs it'
observability:
  - 'metric session_key_age_seconds'
rollback:
  - 'restore the former key file'
non_functional:
  security:
    - 'keys are read from the vault alone'
contracts:
  - name: 'session-api'
    type: api
    path: 'docs/session.yaml'
"""
FEED = """\
id: FEED-003
title: 'Page the feed'
risk_tier: 2
mode: feature
lifecycle_state: draft
blast_radius:
  modules:
    - 'TODO: list one or more modules this spec touches.'
scope:
  in:
    - 'src/feed'
invariants:
  - 'TODO: describe one invariant this spec guarantees.'
acceptance:
  - id: A1
    given: 'The spec implementation is complete.'
    when: 'The acceptance statement is evaluated.'
    then: 'pages hold 50 entries'
non_functional: {}
contracts:
  - name: 'feed'
    type: behavior
"""
POLICY = """\
version: 1
risk_tiers:
  '1':
    max_files: 5
    max_loc: 200
  '2':
    max_files: 15
    max_loc: 600
  '3':
    max_files: 30
    max_loc: 1500
gates:
  budget_limit:
    enabled: true
    mode: block
  spec_completeness:
    enabled: true
    mode: block
  scope_boundary:
    enabled: true
    mode: block
  god_object:
    enabled: true
    mode: warn
  todo_detection:
    enabled: true
    mode: warn
edit_rules:
  policy_and_code_same_pr: true
"""
WAIVER = """\
id: W-0001
title: 'bulk import of refund fixtures'
status: active
gates:
  - budget_limit
reason: 'generated fixtures'
approved_by: 'owner@example.com'
created_at: '2026-11-29T07:10:08.250Z'
expires_at: '2027-01-31T00:00:00Z'
scope:
  spec_id: PAY-001
"""
REFUSED = {  # name -> (change of REFUNDS, field that is named)
    "a tier with a letter": (("risk_tier: 3", "risk_tier: T3"), "risk_tier"),
    "a tier in quotes": (("risk_tier: 3", "risk_tier: '3'"), "risk_tier"),
    "a mode of old": (("mode: feature", "mode: development"), "mode"),
    "an id in small letters": (("id: PAY-001", "id: pay1"), "id"),
    "out shadows in": (("out: []", "out: ['src']"), "scope.out"),
    "out shadows support": (("out: []", "out: ['docs']\n  support: ['docs/a.md']"), "scope.out"),
    "a glob in out": (("out: []", "out: ['src/*']"), "scope.out"),
    "a budget of its own": (("contracts: []", "contracts: []\nchange_budget: {max_files: 9}"), "change_budget"),
    "no contracts": (("contracts: []\n", ""), "contracts"),
    "no scope": (("  in:\n    - 'src/refunds'\n", "  in: []\n"), "scope.in"),
    "no criterion": (("  - id: A1\n", "  - id: B1\n"), "acceptance.0.id"),
    "tier 2 without a contract": (("risk_tier: 3", "risk_tier: 2"), "contracts"),
    "closed without a resolution": (("lifecycle_state: active", "lifecycle_state: closed"), "resolution"),
    "a title too long": (("'Retry failed refunds'", "'" + "x" * 201 + "'"), "title"),
    "a key twice": (("mode: feature", "mode: feature\nmode: fix"), "mode"),
}
OTHER_FORM = """\
id: PAY-004
title: Retry refunds
risk_tier: 2
mode: feature
change_budget: {max_files: 25, max_loc: 1000}
scope: {in: [src/], out: [tests/]}
invariants: [A refund is never paid twice]
acceptance:
  - {id: A1, given: a failed refund, when: the job runs, then: it is tried again}
"""
DAY = "2026-12-01"  # of all verdicts; the waiver is in force


def write_project(folder: Path, *, waiver: str | None = WAIVER, policy: str | None = POLICY, **specs: str) -> Path:
    """Write a project; `specs` are texts by id with _ for -, the three of this file by default."""
    specs = specs or {"PAY_001": REFUNDS, "AUTH_002": SESSIONS, "FEED_003": FEED}
    files = {f"specs/{name.replace('_', '-')}.yaml": text for name, text in specs.items()}
    files |= {"waivers/W-0001.yaml": waiver, "policy.yaml": policy}
    for name, text in files.items():
        if text is not None:
            path = folder / ".caws" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def write_older(folder: Path, text: str = OTHER_FORM, *, policy: str | None = None, waiver: str | None = None) -> Path:
    """Write a project of the older layout."""
    for name, content in {"working-spec.yaml": text, "policy.yaml": policy, "waivers/WV-1.yaml": waiver}.items():
        if content is not None:
            path = folder / ".caws" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return folder
