"""HTML for the report: an element builder that escapes by default, and the style sheet.

Everything a model or a record says is text. `el` escapes each child that is not `Html`, so a <script> in a held-out record
reaches the page as the characters it is; only this package's own markup is ever `Html`.
"""

from __future__ import annotations

import html
import re
from difflib import SequenceMatcher

_WORDS = re.compile(r"\d+(?:[.,]\d+)*|\w+|\s+|[^\w\s]")  # a number is one word: half a number is no difference to read


class Html(str):
    """Markup that is already safe."""


def el(tag: str, *children: object, **attributes: object) -> Html:
    """`el("td", text, class_="good")`: children and attribute values are escaped unless they are Html; None is left out."""
    parts = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{parts}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    safe = (child if isinstance(child, Html) else Html(html.escape(str(child), quote=True)) for child in children if child is not None)
    return Html("".join(safe))


def marked_diff(text: str, reference: str) -> Html:
    """`text` with what the reference lacks in <ins> and what it leaves out of the reference in <del>, word by word."""
    left, right = _WORDS.findall(reference), _WORDS.findall(text)
    out: list[Html] = []
    for kind, a, b, c, d in SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes():
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
    """A whole document: no script, no outside asset, light or dark as the reader's system is."""
    head = join(
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        el("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return f'<!doctype html>\n<html lang="en">{el("head", head)}{el("body", el("main", *body))}</html>\n'


STYLE = """
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d2327; --soft: #66717a; --line: #e3e0d8;
  --accent: #0b7a75; --bar: #d5ece9; --good: #14733c; --good-bg: #dff3e4; --bad: #b3321b; --bad-bg: #fbe3dc;
  --gone: #7a5a00; --gone-bg: #fbf0cc; --s0: #0b7a75; --s1: #c2571a; --s2: #5b4bb5; --s3: #a8326e; --s4: #4d7c0f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181b; --card: #1c2226; --ink: #e6e8e6; --soft: #98a3aa; --line: #323a40;
    --accent: #4fd1c5; --bar: #1f4a48; --good: #7fdc9f; --good-bg: #173a25; --bad: #ff9d87; --bad-bg: #47211a;
    --gone: #f0d487; --gone-bg: #42371a; --s0: #4fd1c5; --s1: #f59e5b; --s2: #a99bff; --s3: #f084b8; --s4: #a3d65c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.15; margin: 0 0 .3rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .4rem; letter-spacing: -.01em; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
p { margin: .3rem 0 1rem; max-width: 76ch; }
article p { max-width: none; }
.eyebrow { color: var(--accent); font-weight: 600; font-size: .85rem; margin: 0; }
.soft, caption, figcaption { color: var(--soft); }
.tiles + .note { margin-top: 1.4rem; }
.note { border-left: 3px solid var(--gone); background: var(--gone-bg); padding: .5rem .8rem; border-radius: 0 6px 6px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: .7rem; margin: 1.4rem 0 0; padding: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .75rem .9rem; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { font-size: .82rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
th, td { padding: .5rem .7rem; text-align: right; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
th:first-child { text-align: left; } thead th { font-size: .82rem; color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
td.meter { background: linear-gradient(to right, var(--bar) var(--p), transparent var(--p)); background-origin: content-box;
  background-clip: content-box; background-repeat: no-repeat; }
td.best { font-weight: 700; color: var(--accent); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: .8rem; margin: .8rem 0; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem .7rem .3rem; }
figcaption { font-size: .85rem; display: flex; justify-content: space-between; gap: .5rem; }
figcaption span { white-space: nowrap; }
figcaption b { color: var(--ink); font-weight: 600; }
figure svg { width: 100%; height: auto; display: block; }
.key { display: inline-block; margin-right: 1rem; font-size: .88rem; }
.key i { display: inline-block; width: 1.1em; height: .25em; border-radius: 2px; margin-right: .4em; vertical-align: middle; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.1rem; margin: 1rem 0; }
.meta { display: flex; flex-wrap: wrap; gap: .4rem .9rem; color: var(--soft); font-size: .83rem; align-items: baseline; }
.user { font-size: 1.05rem; margin: .5rem 0; overflow-wrap: anywhere; }
.chip { display: inline-block; font: .78rem ui-monospace, Menlo, Consolas, monospace; border: 1px solid var(--line);
  border-radius: 5px; padding: .05rem .4rem; margin: .1rem .25rem .1rem 0; overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: .8rem; margin-top: .8rem; }
.side h4 { margin: 0 0 .3rem; font-size: .85rem; display: flex; gap: .5rem; align-items: center; }
.badge { font-size: .75rem; font-weight: 600; border-radius: 99px; padding: .02rem .55rem; }
.right { color: var(--good); background: var(--good-bg); } .wrong { color: var(--bad); background: var(--bad-bg); }
pre { font: .84rem/1.5 ui-monospace, Menlo, Consolas, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .7rem; }
ins, del { padding: 0 .12em; margin: 0 .04em; }
ins { color: var(--bad); background: var(--bad-bg); text-decoration: none; border-radius: 3px; }
del { color: var(--gone); background: var(--gone-bg); border-radius: 3px; }
mark { background: var(--bar); color: inherit; border-radius: 3px; }
.why { color: var(--soft); font-size: .8rem; margin: .35rem 0 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1rem; }
summary { cursor: pointer; font-weight: 600; } details pre { margin-top: .7rem; }
footer { color: var(--soft); font-size: .83rem; margin-top: 3rem; }
"""
