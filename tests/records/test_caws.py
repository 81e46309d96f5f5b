"""CAWS files are read or refused as the tool does, and its verdicts on changes are ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from helpers.caws_cases import (
    DAY,
    FEED,
    OTHER_FORM,
    POLICY,
    REFUNDS,
    REFUSED,
    SESSIONS,
    WAIVER,
    write_older,
    write_project,
)
from kd.records.caws.change import read_change
from kd.records.caws.context import (
    MOST_SCOPE,
    CawsError,
    extract_caws_context,
    format_caws_context_for_prompt,
    list_specs,
    read_context,
)
from kd.records.caws.files import read_policy, read_spec, read_waiver
from kd.records.caws.verdict import judge_change

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo_teacher"
GIVEN = Path(__file__).resolve().parents[3] / "shared" / "cases" / "caws"
FILES = [f"src/refunds/f{at}.py" for at in range(43)]


def context_of(folder, spec="PAY-001", **given):
    return extract_caws_context(write_project(folder, **given), spec, date=DAY)


def verdict(context, change, date=None):
    return judge_change(read_context(context, "here"), change, date)


@pytest.mark.parametrize("text", [REFUNDS, SESSIONS, FEED])
def test_a_spec_of_the_tool_is_read(tmp_path, text):
    (tmp_path / "spec.yaml").write_text(text)
    spec = read_spec(tmp_path / "spec.yaml")
    assert spec.id == yaml.safe_load(text)["id"] and spec.scope.in_ == tuple(yaml.safe_load(text)["scope"]["in"])


@pytest.mark.parametrize(("change", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_a_spec_that_the_tool_refuses_is_refused_with_its_field_and_line(tmp_path, change, field):
    assert change[0] in REFUNDS
    text = REFUNDS.replace(*change, 1)
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(CawsError, match=rf"spec\.yaml:\d+: .*{field}") as error:
        read_spec(tmp_path / "spec.yaml")
    line = int(str(error.value).split("spec.yaml:")[1].split(":")[0])
    assert 1 <= line <= len(text.splitlines())


@pytest.mark.parametrize(
    ("read", "text", "change", "field"),
    [
        (read_policy, POLICY, ("max_files: 30", "max_files: 3"), "risk_tiers"),
        (read_policy, POLICY, ("mode: warn", "mode: loud"), "gates.god_object.mode"),
        (read_policy, POLICY, ("edit_rules:", "non_governed_zones: ['**']\nedit_rules:"), "non_governed_zones"),
        (read_policy, POLICY, ("    max_loc: 200", "    max_loc: 200\n    label: strict"), "risk_tiers.1.label"),
        (read_policy, POLICY, ("  scope_boundary:\n    enabled: true\n    mode: block\n", ""), "gates.scope_boundary"),
        (read_waiver, WAIVER, ("status: active", "status: expired"), "status"),
        (read_waiver, WAIVER, ("'2027-01-31T00:00:00Z'", "'2027-01-31'"), "expires_at"),
        (read_waiver, WAIVER, ("status: active", "status: revoked"), "revocation"),
        (read_waiver, WAIVER, ("  - budget_limit", "  []"), "gates"),
        (read_waiver, WAIVER, ("id: W-0001", "id: w1"), "id"),
    ],
)
def test_a_policy_or_waiver_that_the_tool_refuses_is_refused_with_its_field(tmp_path, read, text, change, field):
    (tmp_path / "file.yaml").write_text(text)
    read(tmp_path / "file.yaml")
    assert change[0] in text
    (tmp_path / "file.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(CawsError, match=rf"file\.yaml:\d+: {field}"):
        read(tmp_path / "file.yaml")


@pytest.mark.skipif(not GIVEN.is_dir(), reason="the given corpus of CAWS files is not here")
def test_the_given_corpus_is_read_and_refused():
    assert list_specs(GIVEN / "caws") == ["AUTH-002", "PAY-001"]
    extract_caws_context(GIVEN / "caws", "FEED-003", date=DAY)
    for file in sorted((GIVEN / "invalid").glob("*.yaml")):
        with pytest.raises(CawsError, match=file.name):
            read_spec(file)


def test_verdicts_are_the_tool_s(tmp_path):
    """What it printed for the project: 44 files with a stray one, then the same under a waiver of the budget."""
    context = context_of(tmp_path / "a", waiver=None)
    many = dict.fromkeys([*FILES, "src/auth/stray.py"], 40)
    judged = verdict(context, many)
    assert judged.verdict == "blocked" and [len(gate.violations) for gate in judged.gates] == [2, 0, 1]
    assert verdict(context, {"src/refunds/a.py": 3}) == verdict(context, {"./src//refunds/a.py": 3})
    assert verdict(context, {"src/refunds/a.py": 3}).verdict == "pass"
    waived = context_of(tmp_path / "b")
    judged = verdict(waived, many)
    assert judged.verdict == "blocked" and [gate.fails for gate in judged.gates] == [False, False, True]
    assert verdict(waived, dict.fromkeys(FILES, 40)).verdict == "waived"
    assert verdict(waived, dict.fromkeys(FILES, 40), "2027-01-31T00:00:00Z").verdict == "blocked"  # it has expired
    assert verdict(context_of(tmp_path / "c", "FEED-003"), {}).verdict == "blocked"  # a draft
    other = WAIVER.replace("spec_id: PAY-001", "spec_id: PAY-002")
    assert verdict(context_of(tmp_path / "d", waiver=other), dict.fromkeys(FILES, 1)).verdict == "blocked"
    revoked = WAIVER.replace("status: active", "status: revoked\nrevocation: {revoked_at: '2026-11-30T00:00:00Z'}")
    assert verdict(context_of(tmp_path / "e", waiver=revoked), dict.fromkeys(FILES, 1)).verdict == "blocked"
    warns = POLICY.replace("mode: block", "mode: warn")
    assert verdict(context_of(tmp_path / "f", policy=warns, waiver=None), many).verdict == "pass"


@pytest.mark.parametrize(
    ("scope", "path", "allowed"),
    [
        ("in: [src/a]", "src/a", True),
        ("in: [src/a/]", "src/a/b/c.py", True),
        ("in: [src/a]", "src/ab.py", False),
        ("in: ['src/*.py']", "src/a.py", True),
        ("in: ['src/*.py']", "src/a/b.py", False),
        ("in: ['src/**/*.py']", "src/a/b.py", True),
        ("in: ['src/**/*.py']", "src/b.py", True),
        ("in: ['src/[ab].{py,md}']", "src/b.md", True),
        ("in: ['src/[ab].{py,md}']", "src/c.md", False),
        ("in: [src]\n  out: [src/b]", "src/b/c.py", False),
        ("in: [src]\n  support: [README.md]", "README.md", True),
        ("in: [src]", "README.md", False),
        ("in: [src]", ".caws/policy.yaml", True),
        ("in: [src]", "../src/a.py", False),
        ("in: [src]", "/src/a.py", False),
        ("in: [src]", "src\\a.py", False),
    ],
)
def test_scope_as_the_tool_compares_paths(tmp_path, scope, path, allowed):
    text = REFUNDS.replace("in:\n    - 'src/refunds'\n  out: []", scope)
    context = context_of(tmp_path, PAY_001=text)
    assert verdict(context, {path: 1}).verdict == ("pass" if allowed else "blocked")


def test_zones_and_root_files_of_the_policy_are_free(tmp_path):
    policy = POLICY + "non_governed_zones: ['tmp/**']\nroot_passthrough: [CHANGELOG.md]\n"
    context = context_of(tmp_path, policy=policy)
    assert verdict(context, {"tmp/a/b.txt": 1, "CHANGELOG.md": 1}).verdict == "pass"
    assert verdict(context, {"README.md": 1}).verdict == "blocked"


def test_the_older_layout_has_its_own_budget_and_waivers_that_add_to_it(tmp_path):
    context = extract_caws_context(write_older(tmp_path / "a"), date=DAY)
    assert (context["max_files"], context["max_loc"], context["risk_tier"]) == (25, 1000, 2)
    assert verdict(context, dict.fromkeys([f"src/{at}" for at in range(26)], 1)).verdict == "blocked"
    assert verdict(context, {"tests/a.py": 1}).verdict == "blocked"
    waiver = "id: WV-1\nstatus: active\ngates: [budget_limit]\nexpires_at: '2027-01-01'\ndelta: {max_files: 1}\n"
    raised = extract_caws_context(write_older(tmp_path / "b", waiver=waiver), date=DAY)
    change = dict.fromkeys([f"src/{at}" for at in range(26)], 1)
    assert verdict(raised, change).verdict == "waived" and verdict(raised, {"src/a": 1}).verdict == "pass"
    assert verdict(raised, {**change, "src/one_more": 1}).verdict == "blocked"
    assert verdict(raised, change, "2027-01-01").verdict == "blocked"
    plain = OTHER_FORM.replace("change_budget: {max_files: 25, max_loc: 1000}\n", "").replace("tier: 2", "tier: T1")
    policy = "policy:\n  tiers:\n    tier_1: {max_files: 2, max_loc: 20, coverage_threshold: 0.95}\n"
    tier = extract_caws_context(write_older(tmp_path / "c", plain, policy=policy), date=DAY)
    assert (tier["max_files"], tier["max_loc"], tier["coverage"], tier["mutation"]) == (2, 20, 95.0, 70.0)
    for wrong, field in (("risk_tier: T4", "risk_tier"), ("risk_tier: true", "risk_tier")):
        broken = write_older(tmp_path / wrong[-2:], OTHER_FORM.replace("risk_tier: 2", wrong))
        with pytest.raises(CawsError, match=field):
            extract_caws_context(broken, date=DAY)


def test_forms_of_the_context(tmp_path):
    context = context_of(tmp_path)
    full = format_caws_context_for_prompt(context)
    for said in ("PAY-001", "Retry failed refunds", "30 files", "src/refunds", "never paid twice", "A1", "W-0001"):
        assert said in full
    assert format_caws_context_for_prompt(context, "compact") == ("PAY-001 T3 30 files 1500 lines in src/refunds")
    long = {**context, "id": "CAWS-DEFECT-SCOPE-SUPPORT-01", "scope_in": ["a" * 70, "b" * 70, "c"]}
    assert format_caws_context_for_prompt(long, "compact") == (
        f"CAWS-DEFECT-SCOP..-01 T3 30 files 1500 lines in {'a' * 70} +2"
    )
    with pytest.raises(CawsError, match="PAY-001: its compact form has 31 tokens"):
        format_caws_context_for_prompt(context, "compact", count=lambda text: 31)


def test_a_project_without_a_policy_has_the_tool_s_defaults(tmp_path):
    context = context_of(tmp_path, policy=None, waiver=None)
    assert (context["max_files"], context["max_loc"], len(context["gates"])) == (30, 1500, 3)


def test_wrong_places_are_told(tmp_path):
    with pytest.raises(CawsError, match="no CAWS here"):
        list_specs(tmp_path)
    project = write_project(tmp_path)
    with pytest.raises(CawsError, match="2 active specs: name one of"):
        extract_caws_context(project, date=DAY)
    with pytest.raises(CawsError, match="no spec 'X-1'"):
        extract_caws_context(project, "X-1", date=DAY)
    with pytest.raises(CawsError, match="a day or a time"):
        extract_caws_context(project, "PAY-001", date="soon")
    with pytest.raises(CawsError, match=r"r: caws\.max_files"):
        read_context({"layout": "specs", "date": DAY, "id": "A-1", "title": "", "risk_tier": 3, "mode": "fix"}, "r")


DIFF = """Here it is:
diff --git a/src/a.py b/src/a.py
--- a/src/a.py
+++ b/src/a.py
@@ -1,2 +1,4 @@
 x = 1
+y = 2
++++ z
 w = 3
--- a/old.py
+++ /dev/null
@@ -1 +0,0 @@
-gone
diff --git a/m.py b/n.py
rename from m.py
rename to n.py
"""


def test_changes_are_read_from_diffs_and_calls():
    assert read_change(DIFF, []) == {"src/a.py": 2, "old.py": 0, "n.py": 0}
    calls = [
        {"name": "file.write", "arguments": {"path": "b.py", "content": "a\nb\n"}},
        {"name": "edit", "arguments": {"file_path": "b.py", "edits": [{"new_string": "c"}, {"new_string": "d\ne"}]}},
        {"name": "read_file", "arguments": {"path": "c.py"}},
        {"name": "delete_file", "arguments": {"path": "d.py"}},
        {"name": "apply_patch", "arguments": {"patch": DIFF}},
    ]
    assert read_change("", calls) == {"b.py": 5, "d.py": 0, "src/a.py": 2, "old.py": 0, "n.py": 0}


paths = st.lists(st.sampled_from(["src", "a", "b", "tests", "x.py"]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_generated_specs_policies_and_waivers(tmp_path_factory, data):
    """The verdict follows from its parts, whatever the files say; and a context is read back as it is written."""
    folder = tmp_path_factory.mktemp("caws")
    spec, policy, waiver = (yaml.safe_load(text) for text in (REFUNDS, POLICY, WAIVER))
    spec["scope"]["in"] = data.draw(st.lists(paths, min_size=1, max_size=3))
    spec["scope"]["out"] = [
        path
        for path in data.draw(st.lists(paths, max_size=2))
        if not any(entry.startswith(path + "/") for entry in spec["scope"]["in"])
    ]
    spec["title"] = data.draw(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))[:200]
    most = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 30)))
    for tier in policy["risk_tiers"].values():
        tier["max_files"], tier["max_loc"] = most
    for gate in policy["gates"].values():
        gate["mode"], gate["enabled"] = data.draw(st.sampled_from(["block", "warn", "skip"])), data.draw(st.booleans())
    waiver["gates"] = data.draw(st.lists(st.sampled_from(list(policy["gates"])), min_size=1, unique=True))
    dump = {name: yaml.safe_dump(value) for name, value in (("s", spec), ("p", policy), ("w", waiver))}
    context = extract_caws_context(
        write_project(folder, PAY_001=dump["s"], policy=dump["p"], waiver=dump["w"]), "PAY-001", date=DAY
    )
    assert read_context(context, "x").model_dump(exclude_defaults=True, mode="json") == context
    change = data.draw(st.dictionaries(paths, st.integers(0, 20), max_size=6))
    judged = verdict(context, change)
    acting = {name for name, gate in policy["gates"].items() if gate["enabled"] and gate["mode"] == "block"}
    over = len(change) > most[0] or sum(change.values()) > most[1]
    under = lambda path, entry: path == entry or path.startswith(entry + "/")  # noqa: E731
    stray = [
        path
        for path in change
        if any(under(path, one) for one in spec["scope"]["out"])
        or not any(under(path, one) for one in spec["scope"]["in"])
    ]
    wrong = {name for name, bad in (("budget_limit", over), ("scope_boundary", bool(stray))) if bad} & acting
    wanted = "pass" if not wrong else "waived" if wrong <= set(waiver["gates"]) else "blocked"
    assert judged.verdict == wanted
    line = format_caws_context_for_prompt(context, "compact")
    assert "\n" not in line and len(line) < 2 * MOST_SCOPE + 100


def test_the_compact_form_is_short_in_tokens(tmp_path):
    """Under the demo's tokenizer, whose 1,024 tokens make it the longest of those measured (LOG.md)."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))

    def count(text):
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    project = write_project(tmp_path)
    for spec in ("PAY-001", "AUTH-002", "FEED-003"):
        context = extract_caws_context(project, spec, date=DAY)
        assert "files" in format_caws_context_for_prompt({**context, "scope_in": []}, "compact", count=count)
