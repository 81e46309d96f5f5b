"""Agreement of our judge with BFCL's own checker, on answers made from its data by mutation.

    python3 -m venv /tmp/bfcl && /tmp/bfcl/bin/pip install bfcl-eval==2026.3.23
    python benchmarks/bfcl_agreement.py --python /tmp/bfcl/bin/python

Texts of every single-turn category are read and judged by both, theirs in its own environment. It writes counts by
category and mutation, and every kind of difference with its rule and who is right, to
benchmarks/results/bfcl_agreement.json, and exits with 1 where a difference has no rule.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from benchmarks.bfcl_mutations import make_answers
from benchmarks.measure import check_out, count, write_json
from kd.evaluation.bfcl_rules.answer import judge_calls
from kd.evaluation.bfcl_rules.entry import read_entry
from kd.evaluation.bfcl_rules.reading import read_as_bfcl
from kd.paths import path_option
from kd.toolcalls.reader import HERMES

CHECKER = Path(__file__).with_name("bfcl_checker.py")
RULES = {"raises": "BFCL's checker ends in an exception on this answer, and a run with it; ours refuses the answer"}

OURS = {
    "matching": "BFCL gives each wanted call the first answered one that fits; every wanted call has one of its own, "
    "so the answer is right: `bfcl` says no, `allowed` yes",
    "broken block": "a block is no JSON, or names a key twice; a caller would fail on it, and where no call fits it is "
    "an attempt: `bfcl` says yes, `allowed` no, or `over_called`",
}
"""Where BFCL's verdict is ours too, but not our judgement."""


def ask(python: str, mode: str, lines: str = "") -> list[Any]:
    """Run BFCL's checker in its environment."""
    try:
        done = subprocess.run([python, str(CHECKER), mode], input=lines, capture_output=True, text=True)
    except OSError as error:
        sys.exit(
            f"error: --python: {python!r}: {error.strerror}: give the interpreter of an environment with bfcl-eval"
        )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        sys.exit(f"error: --python: {python} {CHECKER.name} {mode}: {said}: is bfcl-eval installed there?")
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(python: str, every: int = 1, seed: int = 0) -> dict[str, Any]:
    """Judge all answers, or those to every n-th entry of each category, twice.

    Returns:
        num_answers, num_equal; by category and by mutation [answers, valid, equal]; names of errors; differences.
    """
    places: Counter[str] = Counter()
    entries = []
    for entry in ask(python, "entries"):
        if places[entry["category"]] % every == 0:
            entries.append(entry)
        places[entry["category"]] += 1
    answers = [
        (entry, name, text)
        for entry in entries
        for name, text in make_answers(entry, random.Random(f"{seed} {entry['id']}"))
    ]
    sent = (json.dumps({"id": entry["id"], "text": text}) for entry, _, text in answers)
    theirs = ask(python, "judge", "\n".join(sent))
    by_category: dict[str, list[int]] = {}
    by_mutation: dict[str, list[int]] = {}
    errors: Counter[str] = Counter()
    differences: dict[str, dict[str, Any]] = {}
    both: Counter[str] = Counter()
    apart = {name: {"rule": rule, "count": 0, "examples": []} for name, rule in OURS.items()}
    for (entry, name, text), their in zip(answers, theirs, strict=True):
        judged = read_entry(entry["id"], entry["function"], entry["truth"])
        parsed = HERMES.parse(text)
        ours = judge_calls(read_as_bfcl(text, parsed), judged)
        equal = ours.valid == their["valid"]
        for table, key in ((by_category, entry["category"]), (by_mutation, name)):
            row = table.setdefault(key, [0, 0, 0])
            row[0] += 1
            row[1] += bool(their["valid"])
            row[2] += equal
        errors[ours.error or "valid"] += 1
        known = (
            "matching" if ours.fair and not ours.valid else "broken block" if ours.valid and parsed.problems else None
        )
        if known:
            apart[known]["count"] += 1
            apart[known]["examples"] = [*apart[known]["examples"], f"{entry['id']}: {name}"][:5]
        if equal and ours.error != their["error"]:
            both[f"{ours.error} / {their['error']}"] += 1
        if equal:
            continue
        rule = "raises" if their["valid"] is None else f"unexplained: {name}"
        kind = differences.setdefault(rule, {"count": 0, "rule": RULES.get(rule), "examples": []})
        kind["count"] += 1
        if len(kind["examples"]) < 5:
            kind["examples"].append(
                {"id": entry["id"], "mutation": name, "ours": ours.error or "valid", "theirs": their}
            )
    return {
        "package": ask(python, "version")[0],
        "num_entries": len(entries),
        "num_answers": len(answers),
        "num_equal": sum(row[2] for row in by_category.values()),
        "columns": ["answers", "valid by BFCL", "equal verdicts"],
        "by_category": by_category,
        "by_mutation": dict(sorted(by_mutation.items())),
        "errors": dict(errors.most_common()),
        "same_verdict_other_error": dict(both.most_common()),
        "differences": differences,
        "both_verdicts_kept": apart,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of an environment with bfcl-eval")
    parser.add_argument("--every", type=count, default=1, help="take every n-th entry of a category; 1 by default")
    parser.add_argument("--out", type=path_option, default=Path(__file__).parent / "results" / "bfcl_agreement.json")
    args = parser.parse_args()
    check_out(args.out)
    found = compare(args.python, args.every)
    write_json(args.out, found)
    print(json.dumps({key: found[key] for key in ("num_answers", "num_equal", "differences")}, indent=1))
    return any(kind["rule"] is None for kind in found["differences"].values())


if __name__ == "__main__":
    sys.exit(main())
