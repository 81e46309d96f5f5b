"""Models are paired by record id: within one evaluation, and over the files of several runs."""

from __future__ import annotations

import json
import random
import re

import pytest

from kd.evaluation.comparison import ComparisonError, compare_models, find_ties, read_evaluations
from kd.evaluation.files import format_comparison, format_table, write_evaluation
from kd.evaluation.metrics import METRICS, Metric, summarise
from kd.reports.comparison_page import write_comparison
from kd.reports.run_page import write_report
from launch import evaluate as evaluate_command

GOLD = {"calls": [{"name": "f", "arguments": {}}], "text": "", "carried": []}


def outcome(number: int, right: bool, **changed) -> dict:
    verdicts = dict.fromkeys(("names", "exact", "json", "schema", "repaired_json"), right)
    return {
        "case": number,
        "record": number,
        "record_id": f"r{number}",
        "turn": 1,
        "kind": "call",
        "prompt": {"user": "q", "tools": ["f"], "results": []},
        "gold": GOLD,
        "outcome": verdicts,
        "finished": True,
        "num_tokens": 9,
        **changed,
    }


def scores(right: list[bool], order=None, **changed) -> dict:
    return summarise([outcome(number, right[number], **changed) for number in order or range(len(right))])


STRONG, WEAK = [True] * 150 + [False] * 50, [True] * 60 + [False] * 140
CLOSE = [True] * 149 + [False] * 50 + [True]


def test_pairs_and_ties():
    evaluation = {"teacher": {"s": scores(STRONG)}, "student": {"s": scores(CLOSE)}, "untrained": {"s": scores(WEAK)}}
    pairs = compare_models(evaluation)["s"]
    assert list(pairs) == [("teacher", "student"), ("teacher", "untrained"), ("student", "untrained")]
    lost = pairs["teacher", "untrained"]["exact_arguments"]
    assert lost.difference == pytest.approx(0.45) and lost.num_discordant == 90 and not lost.within_noise
    assert pairs["teacher", "student"]["exact_arguments"].num_discordant == 2
    assert "integration" not in lost._fields and "integration" not in pairs["teacher", "untrained"]
    assert find_ties(evaluation, "s", "exact_arguments") == {"student"}
    table = format_table(evaluation).splitlines()
    assert [("~" in line) for line in table[2::2]][:3] == [False, True, False]
    assert "75.0 %" in table[1] and re.search(r"\b68\.\d to 80\.\d", table[2])


def test_records_are_paired_by_id_whatever_their_order():
    shuffled = random.Random(0).sample(range(200), 200)
    one, two = scores(STRONG), scores(CLOSE, order=shuffled)
    assert two["records"]["ids"] != one["records"]["ids"]
    pair = compare_models({"a": {"s": one}, "b": {"s": two}})["s"]["a", "b"]
    assert pair["exact_arguments"].num_discordant == 2 and pair["mean_generated_tokens"].difference == 0


def test_other_records_are_refused():
    one = {"s": scores(STRONG)}
    with pytest.raises(ComparisonError, match="split s: 1 of 200 records of a are not in b, such as 'r199'"):
        compare_models({"a": one, "b": {"s": scores(STRONG[:199])}})
    asked = {"user": "another question", "tools": ["f"], "results": []}
    with pytest.raises(ComparisonError, match="split s: record 'r0' asks a and b for different things"):
        compare_models({"a": one, "b": {"s": scores(STRONG, prompt=asked)}})


def test_records_of_one_id_are_told_apart():
    metrics = summarise([outcome(0, True), outcome(1, False, record_id="r0")])
    assert metrics["records"]["ids"] == ["r0", "r0 (2)"]


def test_a_function_of_ones_own_is_compared_where_the_order_is_the_same():
    METRICS.register("brevity", Metric("brevity", lambda cases: sum(c["num_tokens"] < 5 for c in cases) / len(cases)))
    try:
        same = {"a": {"s": scores(STRONG)}, "b": {"s": scores(STRONG, num_tokens=3)}}
        found = compare_models(same)["s"]["a", "b"]["brevity"]
        assert found.difference == -1 and found.num_discordant is None
        other = {"a": {"s": scores(STRONG)}, "b": {"s": scores(STRONG, order=range(199, -1, -1))}}
        assert "brevity" not in compare_models(other)["s"]["a", "b"]
    finally:
        METRICS.unregister("brevity")


def write(folder, evaluation):
    write_evaluation(folder / "evaluation.json", evaluation)
    return folder / "evaluation.json"


def test_the_file_carries_intervals_and_comparisons(tmp_path):
    path = write(tmp_path, {"teacher": {"s": scores(STRONG)}, "student": {"s": scores(WEAK)}})
    saved = json.loads(path.read_text())
    low, high = saved["student"]["s"]["intervals"]["exact_arguments"]
    assert low < 0.3 < high and saved["student"]["s"]["intervals"]["integration"] is None
    assert saved["teacher"]["s"]["comparisons"] == {}
    difference = saved["student"]["s"]["comparisons"]["teacher"]["exact_arguments"]
    assert difference["difference"] == pytest.approx(0.45) and difference["num_discordant"] == 90
    assert len(path.read_text().splitlines()) < 60  # a line a metric, not a line a record


def test_files_of_two_runs(tmp_path, capsys):
    for name, right in (("one", STRONG), ("two", CLOSE)):
        write(tmp_path / name, {"student": {"s": scores(right)}, "untrained": {"s": scores(WEAK)}})
    files = [str(tmp_path / name / "evaluation.json") for name in ("one", "two")]
    assert evaluate_command.main(["--compare", *files, "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    assert re.search(r"\| one/student \| (~ )?75\.0 % \(68\.\d to 80\.\d\)", table)
    assert re.search(r"\| one/student - two/student \| ~ \+0\.0 \(-1\.\d to \+1\.\d\) \[2 of 200\]", table)
    assert re.search(r"\| one/student - two/untrained \| \+45\.0 ", table)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "one/student" in page and "<script" not in page and page.count("<table>") == 3


def test_files_that_cannot_be_compared(tmp_path, capsys):
    good = write(tmp_path / "good", {"student": {"s": scores(STRONG)}})
    other = write(tmp_path / "other", {"student": {"t": scores(STRONG)}})
    shorter = write(tmp_path / "shorter", {"student": {"s": scores(STRONG[:9])}})
    old = tmp_path / "old.json"
    old.write_text('{"student": {"s": {"exact_arguments": 0.5, "num_records": 3}}}')
    broken = tmp_path / "broken.json"
    broken.write_text("[1]")
    for bad, said in (
        (other, "has the splits s, and bad/student t"),
        (shorter, "191 of 200 records of good/student are not in bad/student"),
        (old, "no results by record: evaluate again"),
        (broken, "no evaluation.json of this project"),
    ):
        assert evaluate_command.main(["--compare", f"good={good}", f"bad={bad}", "--out", str(tmp_path / "out")]) != 0
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        evaluate_command.main(["--compare", str(good), str(good)])
    assert "two are called 'good'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate_command.main(["--model", str(tmp_path)])
    assert "required: --data, --out" in capsys.readouterr().err


def test_the_report_shows_intervals_and_what_is_within_noise(tmp_path):
    write(tmp_path, {"teacher": {"s": scores(STRONG)}, "student": {"s": scores(CLOSE)}, "cut": {"s": scores(WEAK)}})
    text = re.sub(r"<[^>]+>", " ", write_report(tmp_path).read_text())
    assert re.search(r"75\.0 % ★\s+~ 68\.\d to 80\.\d", text) and re.search(r"30\.0 %\s+2\d\.\d to 36\.\d", text)
    assert "teacher − cut" in text and "[90 of 200]" in text


def test_a_page_and_a_table_escape_names(tmp_path):
    evaluation = {"a<b|c": {"s": scores(STRONG)}}
    write_comparison(tmp_path / "page.html", evaluation, [("x", tmp_path)])
    assert "a&lt;b|c" in (tmp_path / "page.html").read_text() and "| a<b/c |" in format_comparison(evaluation)
    assert read_evaluations([("x", write(tmp_path, evaluation))])["x/a<b|c"]["s"]["num_records"] == 200


def _edit(change):
    """Return a damage that changes the metrics of the only split."""

    def damage(evaluation):
        change(evaluation["student"]["s"])
        return evaluation

    return damage


DAMAGES = {
    "records null": (_edit(lambda m: m.update(records=None)), "student.s.records"),
    "no parts": (_edit(lambda m: m["records"].pop("parts")), "student.s.records.parts"),
    "fewer ids": (_edit(lambda m: m["records"].update(ids=["r0"])), "1 ids, and 3 of asked"),
    "ids of lists": (_edit(lambda m: m["records"].update(ids=[[1], [2], [3]])), "student.s.records.ids.0"),
    "a part of text": (_edit(lambda m: m["records"]["parts"].update(exact_arguments="x")), "parts.exact_arguments"),
    "no sums": (_edit(lambda m: m["records"]["parts"]["exact_arguments"].update(sums=[])), "other numbers of sums"),
    "no intervals": (_edit(lambda m: m.pop("intervals")), "student.s.intervals"),
    "an interval of text": (_edit(lambda m: m["intervals"].update(exact_arguments="ab")), "intervals.exact_arguments"),
    "a metric of text": (_edit(lambda m: m.update(exact_arguments="high")), "exact_arguments is no number"),
    "a metric past every float": (_edit(lambda m: m.update(exact_arguments=float("inf"))), "is no number"),
    "pass@k of text": (_edit(lambda m: m.update(pass_at_k={"exact_arguments": {"1": "x"}})), "pass_at_k"),
    "a run of BFCL without words": (_edit(lambda m: m.update(bfcl={})), "student.s.bfcl.judge"),
    "a split that is a list": (lambda evaluation: {"student": {"s": ["records"]}}, "student.s"),
    "nested": (lambda evaluation: "[" * 100_000, "no evaluation.json of this project"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name_and_place(tmp_path, capsys, damage):
    """Ten were tracebacks, one named no file, and one was taken."""
    change, said = DAMAGES[damage]
    good = write(tmp_path / "good", {"student": {"s": scores([True, False, True])}})
    (tmp_path / "bad.json").write_text(
        text if isinstance(text := change(json.loads(good.read_text())), str) else json.dumps(text)
    )
    files = [f"bad={tmp_path / 'bad.json'}", str(good)]
    assert evaluate_command.main(["--compare", *files, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "bad.json") in error and said in error and "Traceback" not in error


def test_names_that_no_utf8_has_are_written_with_escapes(tmp_path, capsys):
    good = write(tmp_path / "good", {"\ud800 a|b\nc": {"s": scores([True, False, True])}})
    assert evaluate_command.main(["--compare", str(good), "--out", str(tmp_path / "out")]) == 0
    assert "| good/\\ud800 a/b c |" in (tmp_path / "out" / "comparison.md").read_text()
