# type: ignore  # pyright checks kd, kernels and launch (pyproject.toml)
"""benchmarks/peers.py at tiny sizes: methods that compute the same agree, and a peer that is missing stops nothing."""

import json
import shlex

import pytest

from benchmarks import peers

TINY = shlex.split("--size tiny --vocab 300 --length 16 --batch 2 --warmup 1 --steps 1 --rounds 1 --threads 1")


def row(method, rounds, loss=1.0):
    return {"vocab": 300, "method": method, "first_loss": loss, "step_ms": {}, "rounds_ms": rounds} | {
        "rounds_processor_ms": rounds,
        "rounds_peak_bytes": rounds,
    }


def test_our_steps_and_plain_ones_compute_the_same(tmp_path):
    out = tmp_path / "peers.json"
    methods = ["spanwise_live", "spanwise_ce", "distillkit", "eager", "ce"]
    assert peers.main([*TINY, "--methods", *methods, "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["distillkit"]["status"] == "missing" and rows["distillkit"]["reason"] == "distillkit is not installed"
    for name in ("spanwise_live", "spanwise_ce", "eager", "ce"):
        assert rows[name]["status"] == "measured", rows[name]
        assert rows[name]["peak_bytes"] > rows[name]["libraries_bytes"] > 1e7 and rows[name]["tokens_s"] > 0
        assert rows[name]["parts_ms"]["backward"] > 0 and rows[name]["parts_ms"]["optimizer"] > 0
    assert [set(row["losses"]) for row in results["agreement"]] == [{"spanwise_live", "eager"}, {"spanwise_ce", "ce"}]
    assert all(row["agrees"] and row["apart"] < 1e-5 for row in results["agreement"])
    assert rows["eager"]["first_loss"] != pytest.approx(rows["ce"]["first_loss"])
    assert {(row["ours"], row["over"], row["of"]) for row in results["ratios"]} == {
        (ours, peer, of)
        for ours, peer in (("spanwise_live", "eager"), ("spanwise_ce", "ce"))
        for of in ("time", "processor time", "memory")
    }
    text = out.with_suffix(".md").read_text()
    assert "distillkit | missing: distillkit is not installed" in text and "they agree" in text


def test_ratios_are_of_the_same_round():
    """A round that broke is in no pair; two methods below are added up."""
    rows = [
        row("spanwise_live", [30.0, 60.0, None]),
        row("spanwise_ce", [10.0, 20.0, 1.0]),
        row("teacher_forward", [10.0, 20.0, 1.0]),
    ]
    found, of_processor = peers.ratios(rows)
    assert found["over"] == "spanwise_ce + teacher_forward" and found["of"] == "time"
    assert of_processor == found | {"of": "processor time"}
    assert (found["median"], found["pairs"]) == (1.5, 2)


def test_losses_that_differ_are_told():
    for loss, agrees in ((1.0 + 1e-6, True), (1.001, False), (float("nan"), False)):
        (found,) = peers.agreement([row("spanwise_ce", []), row("ce", [], loss)], 1e-5)
        assert found["agrees"] == agrees


def test_a_broken_peer_is_told_from_a_missing_one(tmp_path, monkeypatch):
    job = peers.Job(str(tmp_path), "tiny", 300, 16, 2, 8, 1, 1, 1, "none.json")
    monkeypatch.setitem(peers.NEEDS, "trl_gkd", "no_such_package")
    assert peers.run("trl_gkd", job, 60)["status"] == "missing"
    broken = peers.run("ce", job, 60)  # there is no job.json
    assert broken["status"] == "broken" and "job.json" in broken["reason"]
    assert peers.summarize("ce", job, [broken])["status"] == "broken"
    assert peers.summarize("ce", job, [])["status"] == "not run"
