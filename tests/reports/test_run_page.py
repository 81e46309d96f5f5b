"""The report shows what the run folder holds: all of it escaped, none of it invented, gaps named."""

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kd.evaluation.metrics import METRICS as METRICS_OF_TODAY
from kd.evaluation.metrics import Metric
from kd.reports.case_cards import choose
from kd.reports.html import el, mark_diff
from kd.reports.plots import MAX_POINTS, thin
from kd.reports.run_page import write_report

SCORES = {
    "tool_name_accuracy": 0.9,
    "exact_arguments": 0.625,
    "json_validity": 1.0,
    "schema_validity": 0.95,
    "over_calling": 0.1,
    "integration": None,
    "num_records": 200,
    "counts": {"call_turns": 150, "no_tool_turns": 50, "integration_turns": 0},
}
CALL = {"name": "get_weather", "arguments": {"city": "Oslo", "days": 1}}


def answer(correct=True, output=None, calls=None, problems=(), finished=True):
    calls = [CALL] if calls is None else calls
    output = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls) if output is None else output
    return {
        "output": output,
        "calls": calls,
        "problems": list(problems),
        "correct": correct,
        "num_tokens": 9,
        "finished": finished,
    }


def case(number=0, split="unseen_values", kind="call", gold=None, user="Weather?", results=(), **models):
    gold = gold or {"calls": [CALL], "text": "", "carried": []}
    prompt = {"user": user, "tools": ["get_weather"], "results": list(results)}
    return {
        "split": split,
        "record_id": f"r{number}",
        "turn": 1,
        "kind": kind,
        "prompt": prompt,
        "gold": gold,
        "models": models or {"teacher": answer(), "student": answer()},
    }


class Reader(HTMLParser):
    """Checks that every element is closed, and gathers text, tags and outside references."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.outside, self.marks, self.text = [], set(), [], {"ins": [], "del": []}, ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.outside += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]
        if tag not in ("meta", "br", "path", "use"):
            self.open.append(tag)
        if tag in self.marks:
            self.marks[tag].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.marks:
            self.marks[self.open[-1]][-1] += data
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def run(tmp_path):
    """Writes files into a run folder and reads the report back."""

    def build(metrics=None, evaluation=None, cases=None, config=None, facts=None):
        folder = tmp_path / "my-run"
        folder.mkdir(exist_ok=True)
        if metrics is not None:
            (folder / "metrics.jsonl").write_text(
                metrics if isinstance(metrics, str) else "\n".join(map(json.dumps, metrics))
            )
        if evaluation is not None:
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        if cases is not None:
            (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
        if config is not None:
            (folder / "config.yaml").write_text(config)
        if facts is not None:
            (folder / "run.json").write_text(json.dumps(facts))
        return Reader(write_report(folder).read_text(encoding="utf-8"))

    return build


METRICS = [
    {
        "step": step,
        "stage": "echo" if step < 5 else "main",
        "seconds": 2.0 * step,
        "loss": 3 / step,
        "kd": 2 / step,
        "lr": 1e-3,
        "odd": 4.0,
    }
    for step in range(1, 11)
]


def test_an_empty_run_folder_says_what_is_missing(run):
    text = run().text
    assert text.count("Not measured") == 3 and "no config.yaml" in text and text.count("not recorded") == 5
    assert not re.search(r"\d %", text)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such run folder"):
        write_report(tmp_path / "absent")


def test_the_page_stands_alone(run):
    page = run(METRICS, {"student": {"unseen_values": SCORES}}, [case()], "run:\n  name: x\n")
    assert page.outside == [] and not page.tags & {"script", "link", "img", "iframe"}
    assert "svg" in page.tags and "details" in page.tags


def test_the_headline_says_sizes_time_and_notes(run):
    facts = {
        "teacher_parameters": 1_500_000,
        "student_parameters": 600_000,
        "wall_seconds": 3725,
        "data": "Demo data",
        "notes": ["Cut."],
    }
    text = run(METRICS, facts=facts).text
    for said in ("my-run", "1.5 M", "600 k", "40% of the teacher's", "1 h 02 min", "Demo data", "Cut."):
        assert said in text
    assert "20 s" in run(METRICS, facts={}).text  # without it, the last line's seconds


@pytest.mark.parametrize("old", ["kl", "kd"])
def test_each_logged_number_has_its_curve_and_no_other(run, old):
    """Runs from before the term was called kd logged it as kl."""
    metrics = [{old if key == "kd" else key: value for key, value in row.items()} for row in METRICS]
    text = run(metrics).text
    for label in ("Total loss", "Distillation (kd)", "Learning rate", "Odd", "echo", "main"):
        assert label in text
    for label in ("Arguments", "Temperature", "Memory, GiB"):
        assert label not in text
    assert "last 0.3" in text


@pytest.mark.parametrize(
    "line",
    ['{"step": 11, "stage": ["a"]}', '{"step": 11, "split": {}}', "[" * 100_000, '{"step": 1' + "1" * 4400 + "}"],
)
def test_a_damaged_line_is_left_out_and_said(run, line):
    """The report failed, and with it every later start of the run."""
    text = run(metrics="\n".join([*map(json.dumps, METRICS), line])).text
    assert "1 of 11 lines could not be read" in text and "line 11" in text and "last 0.3" in text


def test_a_number_past_every_float_is_no_point_of_a_curve(run):
    text = run(
        metrics="\n".join([*map(json.dumps, METRICS), '{"step": 11, "stage": "main", "loss": 1' + "0" * 400 + "}"])
    ).text
    assert "last 0.3" in text


def test_a_torn_last_line_is_left_out_and_said(run):
    text = run("\n".join(map(json.dumps, METRICS)) + '\n{"step": 11, "lo').text
    assert "1 of 11 lines could not be read" in text and "line 11" in text and "last 0.3" in text


def test_a_resumed_run_counts_the_later_line(run):
    assert "last 0.125" in run([*METRICS, {**METRICS[-1], "loss": 0.125}]).text


def test_not_finite_numbers_are_gaps(run):
    assert (
        "last 0.3"
        in run("\n".join(map(json.dumps, METRICS)) + '\n{"step": 11, "stage": "main", "loss": NaN, "kl": null}').text
    )


def test_the_table_marks_the_best_student(run):
    def scores(exact, over):
        return {"unseen_values": {**SCORES, "exact_arguments": exact, "over_calling": over}}

    evaluation = {
        "teacher": scores(0.99, 0),
        "student": scores(0.5, 0.2),
        "cross_entropy": scores(0.4, 0.1),
        "untrained": scores(0, 0),
    }
    text = run(evaluation=evaluation).text
    for said in ("50.0 % ★", "10.0 % ★", "200 records", "150 call turns", "not measured"):
        assert said in text
    for said in ("99.0 % ★", "40.0 % ★", "20.0 % ★"):
        assert said not in text


def test_nothing_a_record_or_model_says_becomes_markup(run):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    call = {"name": evil, "arguments": {evil: evil}}
    gold = {"calls": [], "text": f"{evil} 42", "carried": ["42"]}
    cases = [
        case(
            0,
            split=evil,
            user=evil,
            results=[evil],
            gold={"calls": [call], "text": "", "carried": []},
            teacher=answer(calls=[call]),
            student=answer(False, evil, [], [evil]),
        ),
        case(1, kind="integration", gold=gold, teacher=answer(True, evil, []), student=answer(False, "x", [])),
    ]
    evaluation = {evil: {evil: SCORES}}
    page = run([{**METRICS[0], "stage": evil, evil: 1.0}], evaluation, cases, evil, {"data": evil, "notes": [evil]})
    assert page.outside == [] and not page.tags & {"script", "img"}
    assert page.text.count("<script>alert(1)</script>") > 10


def test_differences_are_marked_and_spelling_is_none(run):
    same = {"name": "get_weather", "arguments": {"days": 1.0, "city": "Oslo"}}
    wrong = {"name": "get_weather", "arguments": {"city": "Bergen", "days": 1}}
    page = run(cases=[case(teacher=answer(calls=[same]), student=answer(False, calls=[wrong]))])
    assert page.marks == {"ins": ["said instead or in addition", "Bergen"], "del": ["left out", "Oslo"]}


def test_parallel_calls_are_compared_with_their_counterparts(run):
    other = {"name": "get_stock", "arguments": {"symbol": "AB"}}
    gold = {"calls": [CALL, other], "text": "", "carried": []}
    page = run(cases=[case(gold=gold, teacher=answer(calls=[other, CALL]), student=answer(False, calls=[other]))])
    assert page.marks["ins"] == ["said instead or in addition"]
    assert "get_weather" in page.marks["del"][1]


def test_a_call_where_an_answer_was_due_is_marked_whole(run):
    gold = {"calls": [], "text": "get_weather is not for that", "carried": []}
    page = run(
        cases=[case(kind="no_tool", gold=gold, teacher=answer(output=gold["text"], calls=[]), student=answer(False))]
    )
    assert page.marks["ins"][1:] == ['get_weather\n  city: "Oslo"\n  days: 1'] and page.marks["del"][1:] == []


def test_a_broken_call_is_shown_as_it_was_written(run):
    torn = '<tool_call>{"name": "get_weather", "arguments": {"city": "Os'
    page = run(
        cases=[case(teacher=answer(), student=answer(False, torn, [], ["call 1: not valid JSON"], finished=False))]
    )
    assert torn[:40] in page.text and "not valid JSON" in page.text and "cut after 9 tokens" in page.text


def test_calls_of_an_endpoint_and_of_another_syntax_are_shown_and_compared(run):
    wrong = {"name": "get_weather", "arguments": {"city": "Bergen", "days": 1}}
    apart = answer(False, "", [wrong]) | {"own_calls": [["get_weather", '{"city": "Bergen", "days": 1}']]}
    listed = answer(False, "[get_weather(city='Bergen', days=1)]", [wrong]) | {
        "outcome": {"json": True, "missed": False}
    }
    for one in (apart, listed):
        page = run(cases=[case(teacher=answer(), student=one)])
        assert page.marks == {"ins": ["said instead or in addition", "Bergen"], "del": ["left out", "Oslo"]}
    torn = answer(False, "", [], ["call 1: not valid JSON"]) | {"own_calls": [["get_weather", '{"city": "Ber']]}
    torn["outcome"] = {"json": False, "missed": False}
    page = run(cases=[case(teacher=answer(), student=torn)])
    assert '{"city": "Ber' in page.text and page.marks["ins"][1:] == page.marks["del"][1:] == []
    refused = answer(False, "", [wrong]) | {"own_calls": apart["own_calls"], "outcome": {"over_called": True}}
    gold = {"calls": [], "text": "None of my tools", "carried": []}
    page = run(cases=[case(kind="no_tool", gold=gold, teacher=answer(output=gold["text"], calls=[]), student=refused)])
    assert "Bergen" in page.marks["ins"][1] and page.marks["del"][1:] == []


@pytest.mark.parametrize(
    "text, reference, html",
    [
        ("a b", "a b", "a b"),
        ("a x c", "a b c", "a <del>b</del><ins>x</ins> c"),
        ("12.5", "1,234.5", "<del>1,234.5</del><ins>12.5</ins>"),
        ("<b>", "", "<ins>&lt;b&gt;</ins>"),
        ("", "a", "<del>a</del>"),
    ],
)
def test_word_diff(text, reference, html):
    assert mark_diff(text, reference) == html


def test_a_long_babble_is_marked_in_a_moment():
    """Repeated words would take the whole comparison cubic time."""
    began = time.monotonic()
    marked = mark_diff("It is. " + "a b " * 20_000, "It is. " + "a b c " * 20_000)
    assert time.monotonic() - began < 5
    assert marked.startswith("It is. a b <del>c a b") and marked.count("<ins>") == 1


def test_attributes_are_escaped():
    assert el("td", 1, class_='a"b', title=None) == '<td class="a&quot;b">1</td>'


def test_the_dozen_mixes_splits_kinds_and_verdicts():
    cases = []
    for number in range(200):  # mostly right calls; each rarer thing must still be seen
        kind = "call" if number % 10 else ("no_tool" if number % 20 else "integration")
        models = {"teacher": answer(number % 50 != 3), "student": answer(number % 9 != 4)}
        cases.append(case(number, ("unseen_values", "unseen_tools")[number % 2], kind, **models))
    chosen, tally = choose(cases, ["teacher", "student"], 12)
    assert len(chosen) == 12 and len({(one["split"], one["record_id"]) for one in chosen}) == 12
    assert {one["kind"] for one in chosen} == {"call", "no_tool", "integration"}
    assert len({one["split"] for one in chosen}) == 2
    verdicts = {tuple(model["correct"] for model in one["models"].values()) for one in chosen}
    assert verdicts >= {(True, True), (True, False), (False, True)}
    assert sum(shown for _, shown, _ in tally) == 12 and sum(total for _, _, total in tally) == 200
    assert choose(cases[::-1], ["teacher", "student"], 12)[0] == chosen  # the file's order does not matter


def test_fewer_cases_than_asked_are_all_shown():
    assert len(choose([case(0), case(1)], ["teacher", "student"], 12)[0]) == 2


def test_one_model_alone_and_cases_that_lack_one(run):
    page = run(cases=[case(0, student=answer()), case(1, student=answer(False))])
    assert "2 of 2 held-out cases" in page.text and "student wrong" in page.text.lower()


def test_long_curves_are_averaged_and_short_ones_kept():
    short = [(step, float(step)) for step in range(10)]
    assert thin(short) == short
    long = thin([(step, 1.0 if step % 2 else 3.0) for step in range(100_000)])
    assert len(long) == MAX_POINTS and all(abs(value - 2) < 0.02 for _, value in long)
    assert len(thin([(0, 1.0), (10**6, 1.0), *((step, 1.0) for step in range(10**6, 10**6 + 400))])) <= MAX_POINTS


def test_a_metric_of_ones_own_is_in_the_table_and_no_loss_to_older_evaluations(run):
    METRICS_OF_TODAY.register("politeness", Metric("politeness of answers", lambda cases: 0.5, lower_is_better=True))
    try:
        scores = {"student": {"unseen_values": {**SCORES, "politeness": 0.25}}, "other": {"unseen_values": SCORES}}
        text = run(evaluation=scores).text
        assert "politeness of answers(lower is better)" in text and "25.0 % ★" not in text and "25.0 %" in text
    finally:
        METRICS_OF_TODAY.unregister("politeness")
    assert "politeness" not in run(evaluation=scores).text


def test_an_older_evaluation_is_refused_with_the_remedy(run):
    with pytest.raises(ValueError, match="evaluate again"):
        run(evaluation={"student": {"unseen_values": {"exact_arguments": 0.5}}})


def test_a_run_does_without_matplotlib_and_tensorboard(tmp_path):
    program = """
import sys
sys.modules["matplotlib"] = sys.modules["tensorboard"] = None
from pathlib import Path
from kd.reports.run_page import write_report
from kd.training.log import RunLog
log = RunLog(Path(sys.argv[1]), 1)
log.line({"step": 1, "stage": "a", "loss": 2.0, "temperature": 1.0, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 1.0, "memory_gib": 1.0})
log.close()
write_report(sys.argv[1])
"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert "tensorboard is not installed" in done.stdout
    assert "matplotlib is not installed" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.0
