"""HTML for the report: an element builder that escapes by default, and the style sheet.

Everything a model or a record says is text. `el` escapes each child that is not `Html`, so a <script> in a held-out
record reaches the page as the characters it is; only this package's own markup is ever `Html`.
"""

from __future__ import annotations

import html
import os.path
import re
from difflib import SequenceMatcher
from pathlib import Path

_WORDS = re.compile(r"\d+(?:[.,]\d+)*|\w+|\s+|[^\w\s]")  # a number is one word: half a number is no difference to read
_MOST_PAIRS = 250_000  # of words to compare; five hundred words on each side take a second at worst


class Html(str):
    """Markup that is safe to put into a page as it is."""


def el(tag: str, *children: object, **attributes: object) -> Html:
    """Build an element, as in el("td", text, class_="good").

    Children and attribute values are escaped unless they are Html; None is left out.
    """
    parts = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{parts}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """Join children into markup: each is escaped unless it is Html; None is left out."""
    safe = (
        child if isinstance(child, Html) else Html(html.escape(str(child), quote=True))
        for child in children
        if child is not None
    )
    return Html("".join(safe))


def mark_diff(text: str, reference: str) -> Html:
    """Mark a text against its reference word by word: added words in <ins>, words left out in <del>.

    Of long texts only the beginning that they share is left unmarked: a comparison takes cubic time where words repeat.
    """
    left, right = _WORDS.findall(reference), _WORDS.findall(text)
    out: list[Html] = []
    if len(left) * len(right) <= _MOST_PAIRS:
        changes = SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes()
    else:
        same = len(os.path.commonprefix([left, right]))
        changes = [("equal", 0, same, 0, same), ("replace", same, len(left), same, len(right))]
    for kind, a, b, c, d in changes:
        gone, new = "".join(left[a:b]), "".join(right[c:d])
        if kind == "equal":
            out.append(join(new))
            continue
        if gone.strip():
            out.append(el("del", gone.strip("\n")))
        if new.strip():
            out.append(el("ins", new))
        elif new:
            out.append(join(new))
    return join(*out)


def page(title: str, *body: object) -> str:
    """Build a whole document: no script, no outside asset, light or dark as the reader's system is."""
    head = join(
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        el("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return f'<!doctype html>\n<html lang="en">{el("head", head)}{el("body", el("main", *body))}</html>\n'


def is_page(path: Path) -> bool:
    """Tell whether a file is a document of `page`, of this version or an older one."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    return head.startswith(b'<!doctype html>\n<html lang="en"><head><meta charset') and b'class="eyebrow"' in head


STYLE = "\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8")
