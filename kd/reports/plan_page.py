"""Page of a plan's table: one file, no script, nothing fetched."""

from __future__ import annotations

from pathlib import Path

from kd.atomic_files import publish
from kd.preflight.rental.table import Row, Table
from kd.reports.html import Html, el, page
from kd.units import size

_HEADINGS = ("GPUs", "of", "setting", "each GPU", "host of it", "s a step", "tokens/s", "hours", "money", "fits")


def write_plan(path: Path, table: Table) -> None:
    """Write the page of a table, replacing one that is there."""
    teacher = "none" if table.teacher_parameters is None else f"{table.teacher_parameters / 1e9:.2f} B parameters"
    body = [
        el("p", "Spanwise plan", class_="eyebrow"),
        el("h1", table.name),
        el("p", f"Student {table.student_parameters / 1e9:.2f} B parameters, teacher {teacher}."),
        el("p", f"An estimate; {table.rates.describe()}."),
        el("table", el("tr", *(el("th", name) for name in _HEADINGS)), *map(_row, table.rows)),
        *(el("p", f"Note: {note}.") for note in table.notes),
        el("h2", "Memory of one GPU, by part"),
        *map(_parts, table.rows),
    ]
    publish(path, page(f"Plan of {table.name} · Spanwise", *body).encode("utf-8", "backslashreplace"))


def _row(row: Row) -> Html:
    cells = (
        row.gpus,
        size(row.gpu_bytes),
        row.setting,
        size(sum(row.device_bytes.values())),
        size(sum(row.host_bytes.values())) if row.host_bytes else "-",
        f"{row.step_seconds:.1f}",
        f"{row.tokens_per_second:,.0f}",
        f"{row.hours:,.0f}",
        "" if row.money is None else f"{row.money:,.0f}",
        "yes" if row.fits else f"no: {row.change}",
    )
    return el("tr", *(el("td", cell) for cell in cells))


def _parts(row: Row) -> Html:
    items = [*row.device_bytes.items(), *((f"{name} (host memory)", value) for name, value in row.host_bytes.items())]
    title = f"{row.gpus} GPUs of {size(row.gpu_bytes)}, {row.setting}"
    cells = (el("tr", el("td", name), el("td", size(value))) for name, value in items)
    return el("details", el("summary", title), el("table", *cells))
