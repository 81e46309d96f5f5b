"""Curves as inline SVG. Colours are CSS variables of the page, so one drawing serves light and dark."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

try:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError:  # a machine that was lent may lack it: the run and the rest of the report do without
    matplotlib = None

from kd.reports.html import Html, el

NUM_STAGE_COLOURS = 5
MAX_POINTS = 300  # a curve 250 pixels wide shows no more; longer runs are averaged in equal bins of steps
# matplotlib knows no CSS variables: draw in colours nobody would choose, then swap them in the text.
_STAND_INS = {f"#0102{number:02x}": f"var(--s{number})" for number in range(NUM_STAGE_COLOURS)}
_INK, _LINE = "#010301", "#010302"
_STAND_INS |= {_INK: "var(--soft)", _LINE: "var(--line)"}

Series = Sequence[tuple[float, float]]  # (step, value)


def draw_curve(series: Sequence[Series], first: float, last: float) -> Html:
    """Draw one line a stage over the steps from `first` to `last`, as an <svg> of about 10 kB.

    An empty stage keeps its colour. Where matplotlib is not installed, return a line that says so.
    """
    if matplotlib is None:
        return el("p", "Not drawn: matplotlib is not installed here. The numbers are in metrics.jsonl.", class_="soft")
    style: dict[Any, Any] = {  # matplotlib's type lists its keys one by one
        "svg.fonttype": "none",
        "svg.hashsalt": "spanwise",
        "font.family": "sans-serif",
        "font.size": 8,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": _LINE,
        "grid.linewidth": 0.6,
        "axes.formatter.limits": (-3, 5),
        "axes.formatter.useoffset": False,
    }
    colours = list(_STAND_INS)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.4, 1.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for number, points in enumerate(series):
            points = thin(points)
            if not points:
                continue
            steps, values = zip(*points)
            marker = "o" if len(points) == 1 else None
            axes.plot(
                steps, values, color=colours[number % NUM_STAGE_COLOURS], linewidth=1.4, marker=marker, markersize=3
            )
        margin = 0.03 * max(last - first, 1)
        axes.set_xlim(
            first - margin, last + margin
        )  # the same steps in every plot, so that they can be read down the page
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(length=0)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in _STAND_INS.items():
        text = text.replace(stand_in, variable)
    return Html(text)


def thin(points: Series) -> list[tuple[float, float]]:
    """Reduce a series to MAX_POINTS points: means over equal bins of steps, empty bins left out; a short one stays."""
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) <= MAX_POINTS:
        return points
    first, last = points[0][0], points[-1][0]
    bins: dict[int, list[tuple[float, float]]] = {}
    for step, value in points:
        at = min(int((step - first) / max(last - first, 1) * MAX_POINTS), MAX_POINTS - 1)
        bins.setdefault(at, []).append((step, value))
    return [
        (sum(s for s, _ in bin_) / len(bin_), sum(v for _, v in bin_) / len(bin_)) for _, bin_ in sorted(bins.items())
    ]
