"""Page of a run, runs/<name>/report.html: one file, no script, nothing fetched.

It is made from the files in the run folder, so it can be made again at any time, also of a run under way:

    config.yaml      the resolved configuration
    metrics.jsonl    an object a line: step, stage, seconds, loss, its terms, temperature, lr, grad_norm,
                     tokens_per_second, ...; older runs call the term kd `kl`
    validation.jsonl an object a line: step, split, loss, terms and accuracies on records that are not trained
    evaluation.json  model -> split -> metrics (kd/evaluation/evaluate.py)
    cases.jsonl      every held-out case with each model's answer (kd/evaluation/evaluate.py)
    rollouts.jsonl   some of the student's own answers, where a stage samples them; they get a page beside this one
    run.json         facts that no other file has; every key may be missing: teacher_parameters, student_parameters
                     (counts), wall_seconds, data (one line of text), notes (lines of text shown at the top)

A missing figure is shown as not measured. Nothing is interpolated, guessed, or carried over from another run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from kd.atomic_files import publish
from kd.reports.answers_page import write_answers
from kd.reports.case_cards import choose, draw_card
from kd.reports.html import Html, el, join, page
from kd.reports.plots import NUM_STAGE_COLOURS, draw_curve
from kd.reports.scores import draw_scores, format_percent, format_words

NUM_CASES = 12
TERMS = {
    "loss": "Total loss",
    "kd": "Distillation (kd)",
    "hard": "Teacher's own choice",
    "truth": "All answer tokens",
    "tool": "Tool names",
    "args": "Arguments",
    "integration": "Values carried over",
}
DRIVERS = {
    "temperature": "Temperature",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
    "mfu": "Model FLOPs utilisation (MFU)",
    "data_wait": "Part of the time that waits for data",
    "teacher_wait": "Part of the time that the teacher's targets take",
    "rank_wait": "Part of the time that waits for the slowest rank",
    "sequences": "Records, or turns of those that are split",
    "memory_gib": "Memory, GiB",
}
_NOT_CURVES = {"step", "seconds", "stage", "split"}
_OLD_NAMES = {"kl": "kd"}  # of metrics.jsonl: name an older run wrote -> name of today


def write_report(run_dir: str | Path, facts: dict[str, Any] | None = None) -> Path:
    """Write `run_dir`/report.html, replacing an older one whole, and return its path.

    Args:
        facts: content of run.json; None reads the file.

    Raises:
        ValueError: no such folder, or evaluation.json, cases.jsonl or run.json is not what kd/evaluation/evaluate.py
            writes.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such run folder; a run makes it under run.output_dir")
    lines, metric_notes = _read_json_lines(run_dir / "metrics.jsonl")
    metrics = [{_OLD_NAMES.get(key, key): value for key, value in line.items()} for line in lines]
    validation, validation_notes = _read_json_lines(run_dir / "validation.jsonl")
    cases, case_notes = _read_json_lines(run_dir / "cases.jsonl")
    answers, answer_notes = _read_json_lines(run_dir / "rollouts.jsonl")
    evaluation = _read_json(run_dir / "evaluation.json")
    run = _read_json(run_dir / "run.json") if facts is None else facts
    notes = [*run.get("notes", []), *metric_notes, *validation_notes, *case_notes, *answer_notes]
    try:
        body = [
            _headline(run_dir.name, run, metrics, evaluation),
            *(el("p", note, class_="note") for note in notes),
            _scores(evaluation),
            _curves(metrics),
            _validation(validation, run.get("best")),
            _answers(run_dir, answers),
            _cases(cases),
            _config(run_dir / "config.yaml"),
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run_dir}: evaluation.json or cases.jsonl lacks {error}; evaluate again to write both anew"
        ) from error
    out = run_dir / "report.html"
    publish(out, page(f"{run_dir.name} · Spanwise", *body).encode("utf-8", "backslashreplace"))
    return out


def _headline(name: str, run: dict, metrics: Sequence[dict], evaluation: dict) -> Html:
    teacher, student = run.get("teacher_parameters"), run.get("student_parameters")
    seconds = run.get(
        "wall_seconds", max((row["seconds"] for row in metrics if _is_number(row.get("seconds"))), default=None)
    )
    steps = max((row["step"] for row in metrics if _is_number(row.get("step"))), default=None)
    share = (
        f"Student parameters, {student / teacher:.0%} of the teacher's" if teacher and student else "Student parameters"
    )
    tiles = [
        (_count(teacher), "Teacher parameters"),
        (_count(student), share),
        (_duration(seconds), "Wall time"),
        (f"{steps:,}" if steps is not None else "not recorded", "Optimizer steps"),
    ]
    student_scores = evaluation.get("student", {})
    for split, scores in student_scores.items():
        tiles.append((format_percent(scores["exact_arguments"]), f"Student's calls exact, {format_words(split)}"))
    return join(
        el("p", "Spanwise run", class_="eyebrow"),
        el("h1", name),
        el("p", run.get("data", "Data: not recorded."), class_="soft"),
        el(
            "div",
            *(el("div", el("b", value), el("span", label), class_="tile") for value, label in tiles),
            class_="tiles",
        ),
    )


def _scores(evaluation: dict) -> Html:
    title = el("h2", "Tool use on held-out records")
    if not evaluation:
        return join(title, el("p", "Not measured: this run has no evaluation yet.", class_="soft"))
    intro = el(
        "p",
        "Greedy generation, no partial credit. ★ marks the best student; teacher and untrained are there to compare.",
    )
    return join(title, intro, draw_scores(evaluation))


def _curves(metrics: Sequence[dict]) -> Html:
    parts = [el("h2", "Training")]
    if not metrics:
        return join(*parts, el("p", "Not measured: this run has no metrics.jsonl.", class_="soft"))
    # A resumed run logs some steps twice; the later line is the one that counts.
    rows = list({(row.get("stage"), row.get("step")): row for row in metrics if _is_number(row.get("step"))}.values())
    if keys := _colour_keys("Stages: ", rows, "stage"):
        parts.append(keys)
    others = {
        key: format_words(key).capitalize()
        for row in rows
        for key in row
        if key not in _NOT_CURVES | TERMS.keys() | DRIVERS.keys()
    }
    for title, names in (("Loss, term by term", TERMS), ("What drives it", DRIVERS), ("Also logged", others)):
        figures = [figure for key, label in names.items() if (figure := _figure(rows, "stage", key, label)) is not None]
        if figures:
            parts += [el("h3", title), el("div", *figures, class_="plots")]
    return join(*parts)


def _validation(lines: Sequence[dict], best: dict | None) -> Html:
    if not lines:
        return join()
    # Two measurements of one step, by teacher forcing and by generation, are two lines.
    rows = [row for row in lines if _is_number(row.get("step"))]
    labels = {
        key: TERMS.get(key) or format_words(key).capitalize() for row in rows for key in row if key not in _NOT_CURVES
    }
    figures = [figure for key, label in labels.items() if (figure := _figure(rows, "split", key, label)) is not None]
    chosen = (
        f" The best {format_words(best['metric'])}, {best['value']:.4g}, is of step {best['step']}." if best else ""
    )
    return join(
        el("h2", "Validation while it trained"),
        el("p", f"On records that are not trained; terms are means in nats a token.{chosen}", class_="soft"),
        _colour_keys("Splits: ", rows, "split"),
        el("div", *figures, class_="plots"),
    )


def _answers(run_dir: Path, lines: Sequence[dict]) -> Html:
    try:
        out = write_answers(run_dir, lines)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run_dir}: rollouts.jsonl lacks {error}; move it away, and the report is made without it"
        ) from error
    if out is None:
        return join()
    link = el("a", out.name, href=out.name)
    return join(
        el("h2", "The student's own answers"),
        el("p", f"{len(lines)} of them, with their rewards and corrections, token by token: ", link),
    )


def _colour_keys(title: str, rows: Sequence[dict], by: str) -> Html | None:
    """Write which colour is which stage or split, where there are several."""
    names = list(dict.fromkeys(row.get(by) for row in rows))
    keys = (
        el("span", el("i", style=f"background:var(--s{number % NUM_STAGE_COLOURS})"), str(name), class_="key")
        for number, name in enumerate(names)
    )
    return el("p", title, *keys) if len(names) > 1 else None


def _figure(rows: Sequence[dict], by: str, key: str, label: str) -> Html | None:
    series = [
        [(row["step"], row[key]) for row in rows if row.get(by) == name and _is_number(row.get(key))]
        for name in dict.fromkeys(row.get(by) for row in rows)
    ]
    if not any(series):
        return None
    last = next(row[key] for row in reversed(rows) if _is_number(row.get(key)))
    caption = el("figcaption", el("b", label), el("span", f"last {last:.4g}"))
    steps = [row["step"] for row in rows]
    return el("figure", caption, draw_curve(series, min(steps), max(steps)))


def _cases(cases: Sequence[dict]) -> Html:
    title = el("h2", "Side by side")
    if not cases:
        return join(title, el("p", "Not measured: this run has no cases.jsonl.", class_="soft"))
    present = list(dict.fromkeys(model for case in cases for model in case["models"]))
    models = [model for model in ("teacher", "student") if model in present] or present[:2]
    complete = [case for case in cases if all(model in case["models"] for model in models)]
    chosen, tally = choose(complete, models, NUM_CASES)
    drawn = "; ".join(f"{verdict}: {shown} shown of {total}" for verdict, shown, total in tally)
    intro = el(
        "p",
        f"{len(chosen)} of {len(complete)} held-out cases. Split, kind of turn and who is right take turns, so "
        f"mistakes are shown more often than they happen ({drawn}). Answers are marked where they depart from the "
        "record: ",
        el("ins", "said instead or in addition"),
        ", ",
        el("del", "left out"),
        ". Key order, 1 against 1.0 and the order of parallel calls are no difference. ",
        el("mark", "Marked"),
        " in a record: values carried from the tool's result.",
    )
    return join(title, intro, *(draw_card(case, models) for case in chosen))


def _config(path: Path) -> Html:
    title = el("h2", "Configuration")
    if not path.is_file():
        return join(title, el("p", "Not recorded: this run has no config.yaml.", class_="soft"))
    return join(
        title,
        el(
            "details",
            el("summary", "The resolved config.yaml of this run"),
            el("pre", path.read_text(encoding="utf-8")),
        ),
    )


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); remove it, or write it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds {type(value).__name__}, not an object; remove it, or write it again")
    return value


def _read_json_lines(path: Path) -> tuple[list[dict], list[str]]:
    """Read the objects of a JSON-lines file, and a note about lines that cannot be: a killed run tears its last one."""
    rows, torn = [], []
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                row = line
            if isinstance(row, dict) and all(isinstance(row.get(key, ""), str) for key in ("stage", "split")):
                rows.append(row)
            elif row is not None:
                torn.append(number)
    listed = ", ".join(map(str, torn[:5])) + (", ..." if len(torn) > 5 else "")
    note = (
        f"{path.name}: {len(torn)} of {len(rows) + len(torn)} lines could not be read and are left out (line {listed})."
    )
    return rows, [note] if torn else []


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _count(number: float | None) -> str:
    if number is None:
        return "not recorded"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
