"""Tables of an evaluation: each split's metrics with their intervals, and the differences of its models."""

from __future__ import annotations

from collections.abc import Sequence

from kd.evaluation.comparison import Evaluation, compare_models, find_ties
from kd.evaluation.files import describe_split, list_splits, show_difference, show_interval
from kd.evaluation.intervals import Difference
from kd.evaluation.metrics import DETAILS, Metric, find_metric, list_shown, read_value
from kd.reports.html import Html, el, join

_REFERENCES = {"teacher", "untrained"}  # every other model of evaluation.json is a student


def draw_scores(evaluation: Evaluation) -> Html:
    """Draw a table a split, and below it the further metrics and each pair of models.

    Raises:
        ComparisonError: two models were asked different records.
    """
    pairs = compare_models(evaluation)
    parts = []
    for split in list_splits(evaluation):
        rows = {model: scores[split] for model, scores in evaluation.items() if split in scores}
        size = next(iter(rows.values()))
        turns = ", ".join(f"{number} {format_words(kind)}" for kind, number in size.get("counts", {}).items())
        parts.append(
            el(
                "h3",
                format_words(split).capitalize(),
                el("span", f" · {size['num_records']} records; {turns}", class_="soft"),
            )
        )
        main = list_shown(rows.values())
        details = [
            name
            for name, metric in DETAILS.items()
            if metric.fraction and any(read_value(scores, name) is not None for scores in rows.values())
        ]
        ties = {name: find_ties(evaluation, split, name) for name in (*main, *details)}
        parts.append(_draw_table(rows, main, ties))
        if details:
            parts.append(el("details", el("summary", "Further metrics"), _draw_table(rows, details, ties)))
        if any(scores.get("errors") for scores in rows.values()):
            parts.append(el("details", el("summary", "Errors, by BFCL's names"), _draw_errors(rows)))
        parts += [
            el("p", el("b", format_words(model)), f": {words}", class_="soft")
            for model, scores in rows.items()
            for words in describe_split(scores)
        ]
        if pairs.get(split):
            parts.append(el("details", el("summary", "Differences"), _draw_pairs(pairs[split], [*main, *details])))
    if any("intervals" in scores for splits in evaluation.values() for scores in splits.values()):
        parts.append(
            el(
                "p",
                "Small figures: intervals of 95 % over records, paired by record for differences. ~ marks what is "
                "within noise: a model that cannot be told apart from the best of its split, or a difference whose "
                "interval holds 0. In brackets after a difference: records on which the two differ, of all.",
                class_="soft",
            )
        )
    return join(*parts)


def format_percent(fraction: float | None) -> str:
    """Format a fraction in percent."""
    return "not measured" if fraction is None else f"{100 * fraction:.1f} %"


def format_words(name: str) -> str:
    """Format a name of a file as words."""
    return str(name).replace("_", " ").replace("json", "JSON")


def _draw_table(rows: dict[str, dict], names: Sequence[str], ties: dict[str, set[str]]) -> Html:
    body = [
        el("tr", el("th", format_words(model)), *(_cell(rows, model, name, model in ties[name]) for name in names))
        for model in rows
    ]
    return _wrap(names, body)


def _draw_pairs(pairs: dict[tuple[str, str], dict[str, Difference]], names: Sequence[str]) -> Html:
    body = []
    for (one, two), pair in pairs.items():
        cells = (pair.get(name) for name in names)
        body.append(
            el(
                "tr",
                el("th", f"{format_words(one)} − {format_words(two)}"),
                *(
                    el("td", show_difference(found), class_="soft" if found is None or found.within_noise else None)
                    for found in cells
                ),
            )
        )
    return _wrap(names, body)


def _draw_errors(rows: dict[str, dict]) -> Html:
    names = dict.fromkeys(name for scores in rows.values() for name in scores.get("errors", {}))
    head = el("tr", el("th", "answers"), *(el("th", format_words(model)) for model in rows))
    body = [
        el("tr", el("th", name), *(el("td", scores.get("errors", {}).get(name, 0)) for scores in rows.values()))
        for name in names
    ]
    return el("div", el("table", el("thead", head), el("tbody", *body)), class_="scroll")


def _wrap(names: Sequence[str], body: Sequence[Html]) -> Html:
    head = [el("th", "")] + [
        el("th", metric.title, Html("<br>(lower is better)") if metric.lower_is_better else None)
        for metric in map(_find, names)
    ]
    return el("div", el("table", el("thead", el("tr", *head)), el("tbody", *body)), class_="scroll")


def _cell(rows: dict[str, dict], model: str, name: str, tied: bool) -> Html:
    value = read_value(rows[model], name)
    if value is None:
        return el("td", "not measured", class_="soft")
    values = {other: read_value(scores, name) for other, scores in rows.items() if other not in _REFERENCES}
    students = [score for score in values.values() if score is not None]
    best = (min if _find(name).lower_is_better else max)(students, default=None)
    star = model not in _REFERENCES and value == best and len(students) > 1
    interval = rows[model].get("intervals", {}).get(name)
    small = interval and el("small", f"{'~ ' if tied else ''}{show_interval(interval)}")
    return el(
        "td",
        format_percent(value) + (" ★" if star else ""),
        small,
        class_="meter best" if star else "meter",
        style=f"--p:{100 * value:.1f}%",
    )


def _find(name: str) -> Metric:
    metric = find_metric(name)
    assert metric is not None
    return metric
