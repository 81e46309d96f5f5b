"""Our judge and BFCL's own checker give the same verdicts. Needs its package with all that it requires: make an
environment with bfcl-eval, and name its interpreter in BFCL_PYTHON. tests/evaluation/bfcl/ needs the package alone.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from benchmarks.bfcl_agreement import compare
from benchmarks.bfcl_mutations import make_answers
from helpers.jobs import REPOSITORY

CHECKER = "bfcl_eval.eval_checker.eval_runner"  # it imports each vendor's client
PYTHON = os.environ.get("BFCL_PYTHON") or sys.executable


def test_a_sample_agrees():
    if subprocess.run([PYTHON, "-c", f"import {CHECKER}"], capture_output=True).returncode:
        pytest.skip("bfcl-eval is not installed whole: name an interpreter that has it in BFCL_PYTHON")
    found = compare(PYTHON, every=40)
    assert found["num_answers"] > 1000 and len(found["by_category"]) == 13
    assert found["num_equal"] == found["num_answers"] and not found["same_verdict_other_error"], found["differences"]


def test_the_recorded_run_agrees():
    """The acceptance: 20,000 answers or more, over every single-turn category, each difference with its rule."""
    found = json.loads((REPOSITORY / "benchmarks/results/bfcl_agreement.json").read_text())
    assert found["num_answers"] >= 20_000 and len(found["by_category"]) == 13
    assert all(kind["rule"] for kind in found["differences"].values())
    differing = sum(kind["count"] for kind in found["differences"].values())
    assert found["num_equal"] + differing == found["num_answers"]
    assert all(0 < valid < answers for answers, valid, _ in found["by_category"].values())


def test_mutations_are_the_same_each_time_and_of_many_kinds():
    entry = {
        "id": "parallel_0",
        "category": "parallel",
        "function": [
            {
                "name": "f",
                "parameters": {
                    "properties": {"n": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
                    "required": ["n"],
                },
            }
        ],
        "truth": [{"f": {"n": [1], "tags": [["a"], ""]}}, {"f": {"n": [2], "tags": [["b"], ""]}}],
    }
    once, twice = (dict(make_answers(entry, random.Random(0))) for _ in range(2))
    assert once == twice and len(once) > 30 and len(set(once.values())) == len(once)
    assert {"right", "float for integer", "broken block beside", "key twice", "other order"} <= once.keys()
