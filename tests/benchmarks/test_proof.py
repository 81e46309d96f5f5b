"""Matrix of the proof: what it runs, what it keeps, and how it compares; no run is made here."""

from __future__ import annotations

import json
import os
import sys
from threading import Barrier

import pytest

from benchmarks import proof as matrix
from benchmarks.proof import METHODS, STUDIES, Cell, choose_rate, list_cells
from benchmarks.proof_cells import RATES, RECORDS, TUNING_SEED, USUAL
from kd.config.load import load_config

SEEDS = (1337, 1338, 1339)


def row(method: str, num_records: int, seed: int, right: str, rate: float | None = None, **more) -> dict:
    """Make a result in which record i is exact where right[i] is 1."""
    score = {
        "metrics": {name: right.count("1") / len(right) for name in matrix.KEPT},
        "parts": {name: [right, "1" * len(right)] for name in matrix.KEPT},
    }
    scores = {"student": {"unseen_values": score}}
    best = {"value": 1.0, "step": 5}
    return {
        **Cell(method, num_records, seed, rate)._asdict(),
        "steps": 100,
        "training_seconds": 60.0,
        "processor_seconds": 50.0,
        "tokens": 1,
        "commit": "0123456789",
        "best": best,
        "scores": scores,
        **more,
    }


def test_every_run_comes_once_and_after_those_it_needs():
    cells = list(list_cells(tuple(STUDIES), SEEDS))
    assert len(set(cells)) == len(cells) and {cell.method for cell in cells if cell.rate is None} == set(METHODS)
    for at, cell in enumerate(cells):
        before = set(cells[:at])
        if METHODS[cell.method].tuned and cell.rate is None:
            source = "ce_scratch" if "scratch" in cell.method else "ce"
            assert {Cell(source, cell.num_records, TUNING_SEED, rate) for rate in RATES} <= before
        if METHODS[cell.method].as_long_as is not None:
            assert Cell(METHODS[cell.method].as_long_as, cell.num_records, cell.seed) in before
            assert Cell(METHODS[cell.method].paced_by, cell.num_records, cell.seed) in before
    assert {cell.num_records for cell in cells if cell.method == "ce"} == set(RECORDS)


def test_every_configuration_loads_and_none_chooses_by_what_it_is_measured_on(tmp_path):
    proof = matrix.Proof(tmp_path / "proof.json", tmp_path, 2)
    proof._need = lambda cell: {"best": {"value": 1.0}, "steps": 800, "processor_seconds": len(cell.method)}
    keys = set()
    for cell in list_cells(tuple(STUDIES), SEEDS[:1]):
        overrides = proof._resolve(cell)
        config = load_config(str(matrix.CONFIG), overrides)
        assert config.data.validation == {"validation": "demo"} and config.training.keep_best == "truth"
        assert set(config.data.evaluation) == (set() if cell.rate else {"unseen_values", "unseen_tools"})
        keys.add(proof._key(overrides))
    assert len(keys) == len(list(list_cells(tuple(STUDIES), SEEDS[:1])))


def test_results_are_found_again_under_their_configuration_alone(tmp_path, monkeypatch):
    cell, results = Cell("kd_spans", USUAL, 1337), tmp_path / "proof.json"
    proof = matrix.Proof(results, tmp_path / "runs", 2)
    key = proof._key(proof._resolve(cell))
    assert proof.done(cell) is None
    mine = row("kd_spans", USUAL, 1337, "10", key=key, code=matrix.hash_code())
    results.write_text(json.dumps({"rows": [mine]}))
    assert matrix.Proof(results, tmp_path / "elsewhere", 2).done(cell)["seed"] == 1337
    assert matrix.Proof(results, tmp_path, 1).done(cell) is None  # of another number of ranks
    assert matrix.Proof(results, tmp_path, 2).done(cell._replace(seed=1338)) is None
    monkeypatch.setattr(matrix, "hash_code", lambda: "other code")
    assert matrix.Proof(results, tmp_path, 2).done(cell) is None
    assert matrix.Proof(results, tmp_path, 2, any_code=True).done(cell) == mine
    changed = tmp_path / "demo.yaml"
    changed.write_text(matrix.CONFIG.read_text().replace("1.5e-3", "3e-3"))
    monkeypatch.setattr(matrix, "CONFIG", changed)
    assert matrix.Proof(results, tmp_path, 2, any_code=True).done(cell) is None


ODD_ROWS = {
    "no row": lambda mine: 5,
    "no key": lambda mine: mine.pop("key"),
    "a key of another type": lambda mine: mine.update(key=[1]),
    "a number as text": lambda mine: mine.update(processor_seconds="60"),
    "another method": lambda mine: mine.update(method="magic"),
    "no scores": lambda mine: mine.pop("scores"),
    "scores without the student": lambda mine: mine.update(scores={"best": {}}),
    "scores of other types": lambda mine: mine.update(scores={"student": {"unseen_values": 5}}),
    "verdicts of unequal lengths": lambda mine: mine["scores"]["student"]["unseen_values"]["parts"].update(
        exact_arguments=["11", "1"]
    ),
    "verdicts that are none": lambda mine: mine["scores"]["student"]["unseen_values"]["parts"].update(
        exact_arguments=["xx", "11"]
    ),
}


@pytest.mark.parametrize("change", ODD_ROWS.values(), ids=ODD_ROWS.keys())
@pytest.mark.parametrize("option", ["--list", "--show"])
def test_an_odd_row_is_told_by_its_number(tmp_path, monkeypatch, change, option):
    mine = row("kd_spans", USUAL, 1337, "10", key="k", code="c")
    results = tmp_path / "proof.json"
    results.write_text(json.dumps({"rows": [mine]}))
    assert matrix.read_rows(results) == [mine]
    changed = json.loads(json.dumps(mine))
    rows = [mine, 5 if change(changed) == 5 else changed]
    results.write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(sys, "argv", ["proof", option, "--out", str(results), "--output", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match=r"row 2 is none of these runs|is not known as a benchmark's results"):
        matrix.main()


def test_a_file_as_the_folder_of_runs_and_a_pipe_as_results_are_told(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["proof", "--out", str(tmp_path / "p.json"), "--output", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match="error: --output: .*runs is a file"):
        matrix.main()
    os.mkfifo(tmp_path / "pipe.json")
    monkeypatch.setattr(sys, "argv", ["proof", "--list", "--out", str(tmp_path / "pipe.json")])
    with pytest.raises(SystemExit, match="error: --out: .*pipe.json is no file but a pipe"):
        matrix.main()


def test_a_run_waits_for_those_that_decide_its_configuration(tmp_path):
    proof = matrix.Proof(tmp_path / "proof.json", tmp_path, 2)
    assert proof.done(Cell("ce", USUAL, 1337)) is None
    with pytest.raises(KeyError):
        proof._resolve(Cell("ce", USUAL, 1337))
    losses = {Cell("ce", USUAL, TUNING_SEED, rate): loss for rate, loss in zip(RATES, (3.0, 1.0, 2.0, 4.0))}
    assert choose_rate(Cell("ce", USUAL, 1337), losses) == RATES[1]


def test_runs_are_made_at_once_and_none_before_those_it_needs(tmp_path, monkeypatch):
    proof, made = matrix.Proof(tmp_path / "proof.json", tmp_path, 1), []
    both = Barrier(2, timeout=20)  # passed by two runs at once alone

    def make(cell):
        if cell.rate is not None:
            both.wait()
        made.append(cell)
        best = {"value": cell.rate or 1.0, "step": 5}
        mine = row(*cell[:3], "10", cell.rate, best=best, key=proof._key(proof._resolve(cell)), code=matrix.hash_code())
        proof._rows[mine["key"], mine["code"]] = mine
        return mine

    monkeypatch.setattr(proof, "make", make)
    cells = [cell for cell in list_cells(("records",), (1337,)) if cell.num_records == USUAL]
    ended = [cell for cell, _ in proof.make_all(cells, jobs=2)]
    assert sorted(ended) == sorted(made) == sorted(cells)
    for at, cell in enumerate(made):
        if METHODS[cell.method].tuned and cell.rate is None:
            assert {Cell("ce", USUAL, TUNING_SEED, rate) for rate in RATES} <= set(made[:at])
    assert made.index(Cell("ce_same_seconds", USUAL, 1337)) > made.index(Cell("kd_spans_sampled", USUAL, 1337))
    assert list(proof.make_all(cells, jobs=2)) == []


def test_methods_are_compared_record_by_record_over_the_seeds_that_both_have():
    rows = [row("ce", 500, 1, "0101"), row("ce", 500, 2, "0001"), row("kd_spans", 500, 1, "1101")]
    found = matrix.compare(rows, "kd_spans", "ce", 500, "unseen_values", "exact_arguments")
    assert found.difference == pytest.approx(0.25) and found.num_discordant == 1 and found.num_records == 4
    assert matrix.compare(rows, "kd", "ce", 500, "unseen_values", "exact_arguments") is None
    assert "| 500 | kd_spans | 1 | 100 | 50 | unseen_values | 75.0 (+25.0," in matrix.write_table(rows)


def test_the_last_step_is_what_counts():
    one = row("ce", 500, 1, "00")
    one["scores"]["best"] = row("ce", 500, 1, "11")["scores"]["student"]
    assert matrix.parts_of([one], "unseen_values", "exact_arguments").value == 0.0


def test_how_many_records_of_the_baseline_do_as_well():
    rows = [row("ce", 100, 1, "0001"), row("ce", 10_000, 1, "0111"), row("kd", 100, 1, "0011")]
    assert matrix.find_equal(rows, "kd", "unseen_values", "exact_arguments") == {100: "1000"}
    rows.append(row("kd", 200, 1, "1111"))
    assert matrix.find_equal(rows, "kd", "unseen_values", "exact_arguments")[200] == "over 10000"


def test_the_plot_is_drawn(tmp_path):
    rows = [row("ce", n, 1, "0001") for n in (100, 1000)] + [row("kd_spans", n, 1, "0101") for n in (100, 1000)]
    matrix.draw(rows, tmp_path / "proof.svg")
    assert "training records" in (tmp_path / "proof.svg").read_text() or (tmp_path / "proof.svg").stat().st_size > 5000
